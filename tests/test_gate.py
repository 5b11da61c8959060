from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from capport.core.client import (
    UNSEEN,
    Address,
    Client,
    ClientId,
    Mac,
    Peer,
    Way,
    parse_address,
    parse_mac,
)
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Limits, Login, Policy, Rate, Router, Sessions
from capport.core.session import Session
from capport.core.verdict import NetworkAuthenticationRequired, Pass, SignIn, TooManyRequests
from capport.gate import Gate
from capport.linux import Neighbours
from capport.stores import StoreError
from capport.stores.memory import MemoryStore

POLICY = Policy(
    login_url="https://login.example.net/?s={state}", login_place=Place("login.example.net", 443)
)
ELSEWHERE = Place("elsewhere.example.com", 80)


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(policy: Policy = POLICY, **more: Any) -> tuple[Gate, Time]:
    time = Time()
    return Gate(policy, MemoryStore(), now=time, **more), time


def test_a_grant_lets_through_until_it_expires() -> None:
    gate, time = make(replace(POLICY, sessions=Sessions(lifetime=60.0)))
    client = gate.client("192.0.2.7")
    assert gate.known(client) is None
    gate.grant(client.id)
    assert gate.known(client)
    assert gate.standing(client).until == 1060.0
    time.now = 1060.0
    assert gate.known(client) is None


def test_a_revoked_client_is_unknown_at_once() -> None:
    gate, _ = make()
    client = gate.client("192.0.2.7")
    gate.grant(client.id, lifetime=60.0)
    assert gate.revoke(client.id)
    assert gate.known(client) is None
    assert not gate.revoke(client.id)


def test_a_client_that_the_router_has_no_place_for_gets_no_session() -> None:
    carried_out: list[ClientId] = []

    def full_after_one(client: ClientId) -> None:
        carried_out.append(client)
        if len(carried_out) > 1:
            raise StoreError("set known4 is full")

    gate, _ = make(carry_out=full_after_one)
    one, other = gate.client("192.0.2.7").id, gate.client("192.0.2.8").id
    gate.grant(other)
    with pytest.raises(StoreError, match="set known4 is full"):
        gate.grant(one)
    assert [session.client for session in gate.store.sessions()] == [other]
    assert gate.revoke(one, other)
    assert carried_out == [other, one, one, other]


def test_traffic_keeps_an_idle_session_up() -> None:
    gate, time = make(replace(POLICY, sessions=Sessions(lifetime=600.0, idle=30.0)))
    client = gate.client("192.0.2.7")
    gate.grant(client.id)
    for _ in range(5):
        time.now += 20
        assert isinstance(gate.request(client, HttpRequest(), ELSEWHERE, None), Pass)
    time.now += 30
    assert gate.known(client) is None


def test_what_was_relayed_without_a_decision_keeps_an_idle_session_up() -> None:
    gate, time = make(replace(POLICY, sessions=Sessions(lifetime=600.0, idle=30.0)))
    client = gate.client("192.0.2.7")
    gate.grant(client.id)
    time.now += 29
    gate.heard_of(client, time.now)
    time.now += 29
    assert gate.known(client)


def test_requests_that_come_too_fast_are_told_when_to_come_back() -> None:
    gate, time = make(replace(POLICY, limits=Limits(unknown_requests=Rate(2, 60.0))))
    client, other = gate.client("192.0.2.7"), gate.client("192.0.2.8")
    for _ in range(2):
        verdict = gate.request(client, HttpRequest(), ELSEWHERE, None)
        assert isinstance(verdict, NetworkAuthenticationRequired)
    verdict = gate.request(client, HttpRequest(), ELSEWHERE, None)
    assert isinstance(verdict, TooManyRequests)
    assert verdict.retry_after == 30
    assert not isinstance(gate.request(other, HttpRequest(), ELSEWHERE, None), TooManyRequests)
    time.now += verdict.retry_after
    assert not isinstance(gate.request(client, HttpRequest(), ELSEWHERE, None), TooManyRequests)


def test_a_device_has_one_budget_over_its_addresses_and_another_when_it_is_known() -> None:
    policy = replace(POLICY, limits=Limits(Rate(1, 60.0), unknown_requests=Rate(2, 60.0)))
    gate, _ = make(policy)
    mac = parse_mac("02:00:00:00:00:07")
    at = [Client(ip_address(address), mac) for address in ("192.0.2.7", "2001:db8:1::7")]

    def asks(client: Client) -> type:
        return type(gate.request(client, HttpRequest(), ELSEWHERE, None))

    assert [asks(at[0]), asks(at[1])] == [NetworkAuthenticationRequired] * 2
    assert [asks(at[0]), asks(at[1])] == [TooManyRequests] * 2
    gate.grant(ClientId(mac))
    assert [asks(at[0]), asks(at[1])] == [Pass, TooManyRequests]
    gate.revoke(ClientId(mac))
    assert asks(at[0]) is TooManyRequests


def test_a_client_that_uses_the_address_of_another_takes_nothing_from_its_budget() -> None:
    gate, _ = make(replace(POLICY, limits=Limits(unknown_requests=Rate(1, 60.0))))
    address = ip_address("192.0.2.7")
    for client in (Client(address, astray=True), Client(address)):
        verdict = gate.request(client, HttpRequest(), ELSEWHERE, None)
        assert isinstance(verdict, NetworkAuthenticationRequired)


def test_a_client_may_sign_in_however_many_requests_it_has_sent() -> None:
    gate, _ = make(replace(POLICY, limits=Limits(unknown_requests=Rate(1, 60.0))))
    client = gate.client("192.0.2.7")
    for _ in range(3):
        assert isinstance(gate.request(client, HttpRequest(), POLICY.login_place, None), Pass)
    assert isinstance(gate.request(client, HttpRequest(), ELSEWHERE, None), TooManyRequests)


def test_the_state_is_made_for_the_client_and_for_what_it_asked() -> None:
    gate, _ = make(state=lambda client, url: f"{client.id}+{url}")
    gate.policy = replace(gate.policy, login_url="https://login.example.net/?s={state}")
    client = gate.client("192.0.2.7")
    verdict = gate.request(client, HttpRequest(), ELSEWHERE, None, "http://elsewhere.example.com/")
    assert isinstance(verdict, NetworkAuthenticationRequired)
    assert verdict.login_url.endswith("?s=192.0.2.7+http://elsewhere.example.com/")


@pytest.mark.parametrize(
    ("answers_at", "client", "sign_in"),
    [
        ("192.0.2.1", "192.0.2.7", True),
        ("192.0.2.1", "127.0.0.1", True),
        ("127.0.1.1", "192.0.2.7", False),  # the client would ask itself
        ("127.0.1.1", "127.0.0.1", True),
        (None, "192.0.2.7", False),
    ],
)
def test_a_302_is_for_a_client_that_the_login_server_answers(
    answers_at: str | None, client: str, *, sign_in: bool
) -> None:
    gate, _ = make(answering={POLICY.login_place: ip_address(answers_at)} if answers_at else {})
    probe = Place("connectivitycheck.gstatic.com", 80)
    asked = HttpRequest(path="/generate_204")
    verdict = gate.request(gate.client(client), asked, probe, None)
    assert isinstance(verdict, SignIn if sign_in else NetworkAuthenticationRequired)


def test_a_302_is_for_the_family_whose_login_server_answers() -> None:
    six = Place(ip_address("2001:db8:1::1"), 8511)
    policy = replace(POLICY, other_login=Login(f"http://{six}/", six))
    policy = replace(policy, login_place=Place(ip_address("192.0.2.1"), 8511))
    gate, _ = make(policy, answering={six: ip_address("2001:db8:1::1")})
    probe = Place("connectivitycheck.gstatic.com", 80)
    asked = HttpRequest(path="/generate_204")
    for client, kind in (("2001:db8:1::7", SignIn), ("192.0.2.7", NetworkAuthenticationRequired)):
        assert isinstance(gate.request(gate.client(client), asked, probe, None), kind)


def test_explaining_neither_counts_nor_keeps_a_session_up() -> None:
    policy = replace(POLICY, limits=Limits(unknown_requests=Rate(1, 60.0)))
    gate, _ = make(policy)
    client = gate.client("192.0.2.7")
    for _ in range(3):
        said = gate.explain(client, HttpRequest(), ELSEWHERE, None, "http://elsewhere.example/")
        assert said.rule == "unknown_client"
    assert not isinstance(gate.request(client, HttpRequest(), ELSEWHERE, None), TooManyRequests)


def test_a_session_for_both_is_no_session_for_one_of_them() -> None:
    gate, _ = make()
    gate.grant(ClientId("02:00:00:00:00:07@192.0.2.7"), lifetime=60.0)
    assert gate.known(gate.client("192.0.2.7")) is None  # its MAC is not known here


class OnLink(Neighbours):
    """A link with 192.0.2.0/24 on it, whose neighbour table was flushed."""

    def is_on_link(self, address: Address) -> bool:
        return address in ip_network("192.0.2.0/24")


class Seen(OnLink):
    """The same link, on which 192.0.2.7 has been heard of, and 203.0.113.9, which is not on it."""

    def find_mac(self, address: Address) -> Mac | None:
        return OWN if str(address) in ("192.0.2.7", "203.0.113.9") else None


AT, OFF_LINK = ClientId("192.0.2.7"), ClientId("203.0.113.9")


def test_a_session_of_an_address_becomes_that_of_the_first_device_there() -> None:
    gate, _ = make(neighbours=OnLink())
    gate.grant(AT, lifetime=60.0, by="operator", name="Ada")
    granted = gate.standing(gate.client("192.0.2.7")).open_session
    gate.bind(AT)
    assert granted is not None
    assert gate.store.find((AT,), 1000.0) == granted  # no device is there yet
    gate.neighbours = Seen()
    gate.bind(AT)
    assert [*gate.store.sessions()] == [replace(granted, client=ClientId(OWN))]
    assert gate.known(Client(parse_address("192.0.2.8"), OWN))
    assert gate.known(Client(parse_address("192.0.2.7"), OTHER)) is None


def test_a_session_that_should_be_for_an_address_stays() -> None:
    gate, _ = make(neighbours=Seen())
    pair = ClientId(f"{OWN}@192.0.2.7")
    for client in (OFF_LINK, pair):  # the MAC of a router does not identify a client behind it
        gate.grant(client, lifetime=60.0)
        gate.bind(client)
    assert {session.client for session in gate.store.sessions()} == {OFF_LINK, pair}


@pytest.mark.parametrize(("own", "left"), [(30.0, 60), (90.0, 90)])
def test_a_device_that_has_a_session_keeps_the_longer_one(own: float, left: int) -> None:
    gate, _ = make(neighbours=Seen())
    gate.grant(ClientId(OWN), lifetime=own)
    gate.grant(AT, lifetime=60.0)
    gate.bind(AT)
    (session,) = gate.store.sessions()
    assert session.client == ClientId(OWN)
    assert session.seconds_remaining(1000.0) == left


def test_a_session_that_is_revoked_while_it_is_bound_does_not_live_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, _ = make(neighbours=Seen())
    gate.grant(AT, lifetime=60.0)
    put = gate.store.put

    def slow(session: Session) -> None:
        put(session)
        assert gate.store.revoke(AT)

    monkeypatch.setattr(gate.store, "put", slow)
    gate.bind(AT)
    assert [*gate.store.sessions()] == []


BLOCKED, PRINTER = Mac("02:00:00:00:00:07"), Mac("02:00:00:00:00:08")


def rules(*lines: tuple[str, Access]) -> ClientRules:
    made = ClientRules()
    for number, (subject, access) in enumerate(lines, 1):
        made.section(access, "lab.yaml")
        made.add(Mac(subject) if subject.count(":") == 5 else ip_network(subject), number)
    return made


class Link(Neighbours):
    """A link with a client on it, and a router with 203.0.113.0/24 behind it.

    A device on the link has answered for an address behind that router, too.
    """

    def find_mac(self, address: Address) -> Mac | None:
        macs = {"192.0.2.7": OWN, "192.0.2.9": HOP, "203.0.113.9": OTHER}
        return macs.get(str(address))

    def way(self, address: Address) -> Way | None:
        if address in ip_network("203.0.113.0/24"):
            return Way(parse_address("192.0.2.9"))
        return Way(address) if address in ip_network("192.0.2.0/24") else None


OWN, HOP, OTHER = (Mac(f"02:00:00:00:00:{end}") for end in ("07", "09", "66"))


@pytest.mark.parametrize(
    ("session", "address", "frame", "known"),
    [
        (OWN, "192.0.2.7", OWN, True),
        (OWN, "192.0.2.7", OTHER, False),
        (OWN, "192.0.2.7", UNSEEN, False),
        (OWN, "192.0.2.7", None, True),  # nothing was asked of a frame
        (OWN, "192.0.2.8", OWN, True),  # an address that is not in the table yet
        (f"{OWN}@192.0.2.7", "192.0.2.7", OTHER, False),
        (OTHER, "192.0.2.7", OTHER, True),  # as itself, wherever it is
        ("192.0.2.7", "192.0.2.7", OWN, True),
        ("192.0.2.7", "192.0.2.7", OTHER, False),
        ("203.0.113.8", "203.0.113.8", HOP, True),
        ("203.0.113.8", "203.0.113.8", OTHER, False),
        ("203.0.113.8", "203.0.113.8", UNSEEN, False),
        ("203.0.113.9", "203.0.113.9", HOP, True),
        ("203.0.113.9", "203.0.113.9", OTHER, False),  # the device that answered for it
        (HOP, "203.0.113.8", HOP, False),  # the router's own session is not theirs behind it
        ("198.51.100.7", "198.51.100.7", OTHER, True),  # by another interface
    ],
)
def test_a_client_is_the_device_that_its_frames_come_from(
    session: str, address: str, frame: Mac | None, known: bool
) -> None:
    policy = replace(POLICY, router=Router("lan0", "wan0"))
    gate = Gate(policy, MemoryStore(), neighbours=Link())
    gate.grant(ClientId(session), lifetime=60.0)
    client = gate.client(Peer(parse_address(address), frame))
    assert (gate.known(client) is not None) == known
    assert (gate.standing(client).until is not None) == known


def test_without_a_router_a_frame_that_was_not_seen_says_nothing() -> None:
    gate = Gate(POLICY, MemoryStore(), neighbours=Link())
    gate.grant(ClientId(OWN), lifetime=60.0)
    assert gate.known(gate.client(Peer(parse_address("192.0.2.7"), UNSEEN)))


NETWORK = ("192.0.2.0/24", Access.KNOWN)


@pytest.mark.parametrize(
    ("lines", "address", "granted", "known"),
    [
        ([(BLOCKED, Access.BLOCKED), NETWORK], "192.0.2.7", False, False),
        ([(BLOCKED, Access.BLOCKED), NETWORK], "192.0.2.7", True, False),
        ([(BLOCKED, Access.BLOCKED)], "192.0.2.7", True, False),
        ([NETWORK, (BLOCKED, Access.BLOCKED)], "192.0.2.7", False, True),
        ([(PRINTER, Access.KNOWN), NETWORK], "192.0.2.7", False, True),
        ([(PRINTER, Access.KNOWN)], "192.0.2.7", True, True),
        ([NETWORK], "192.0.2.7", False, True),
        # Behind another router, or of a network that has no MACs.
        ([(BLOCKED, Access.BLOCKED)], "198.51.100.7", True, True),
        (
            [(BLOCKED, Access.BLOCKED), ("198.51.100.0/24", Access.KNOWN)],
            "198.51.100.7",
            False,
            True,
        ),
    ],
)
def test_a_client_on_the_link_without_a_mac_gets_past_no_rule_by_mac(
    lines: list[tuple[str, Access]], address: str, granted: bool, known: bool
) -> None:
    gate = Gate(replace(POLICY, clients=rules(*lines)), MemoryStore(), neighbours=OnLink())
    client = gate.client(address)
    if granted:
        gate.grant(client.id)
    verdict = gate.request(client, HttpRequest(), ELSEWHERE, None)
    assert isinstance(verdict, Pass if known else NetworkAuthenticationRequired)
    assert (gate.known(client) is not None) == known
    if not known:
        assert verdict.because == (
            "192.0.2.7 has a MAC that is not known now, and a rule may block it by that MAC"
        )
        assert gate.standing(client).until is None
    # Without a neighbour table, no client has a MAC.
    gate.neighbours = Neighbours()
    assert (gate.known(client) is not None) == (granted or NETWORK in lines or known)


def test_the_garden_is_open_to_a_client_that_has_no_mac_now() -> None:
    gate = Gate(
        replace(POLICY, clients=rules((BLOCKED, Access.BLOCKED))),
        MemoryStore(),
        neighbours=OnLink(),
    )
    verdict = gate.connection(gate.client("192.0.2.7"), POLICY.login_place)
    assert isinstance(verdict, Pass)
