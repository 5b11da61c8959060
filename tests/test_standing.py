"""A new rule about clients is one function and one line, and all parts of the portal follow it."""

import re
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core import explanation
from capport.core import standing as core
from capport.core.captivity import captivity
from capport.core.client import Address, Client, ClientId, Mac, is_random
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Policy, Router
from capport.core.session import Session
from capport.core.standing import Facts, Kind, Standing, known_sessions, standing
from capport.core.verdict import NetworkAuthenticationRequired, Pass, Refuse
from capport.gate import Gate
from capport.linux import Neighbours
from capport.router.ruleset import ruleset
from capport.router.wanted_elements import WantedElements
from capport.stores.memory import MemoryStore

MADE_UP = Client(ip_address("192.0.2.7"), Mac("02:00:00:00:00:07"))
MADE = Client(ip_address("192.0.2.8"), Mac("00:00:5e:00:53:01"))
PAGE = Place("www.example.com", 80)
LOGIN = Place("login.example.net", 443)


def random_mac(facts: Facts, policy: Policy) -> Standing | None:
    """A randomised MAC always gets the 511."""
    if facts.client.mac is None or not is_random(facts.client.mac):
        return None
    return Standing(facts.client, Kind.BLOCKED, "has a MAC that it made up")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Both clients have a session."""
    monkeypatch.setattr(core, "RULES", (random_mac, *core.RULES))
    policy = Policy(login_url="https://login.example.net/", login_place=LOGIN)
    it = Gate(policy, MemoryStore())
    for client in (MADE_UP, MADE):
        it.grant(client.id)
    return it


@pytest.mark.parametrize(("client", "known"), [(MADE_UP, False), (MADE, True)])
async def test_a_rule_that_is_added_holds_everywhere(
    gate: Gate, client: Client, known: bool
) -> None:
    verdict = gate.request(client, HttpRequest(), PAGE, None)
    assert isinstance(verdict, Pass if known else NetworkAuthenticationRequired)
    assert isinstance(gate.connection(client, PAGE), Pass) == known
    assert isinstance(gate.handshake(client, PAGE, None), Refuse) != known
    assert (gate.known(client) is not None) == known
    assert (gate.standing(client).open_session is not None) == known
    assert (gate.standing(client).until is not None) == known
    said = gate.explain_url(client, explanation.parse_url("http://www.example.com/"))
    assert said.rule == ("open_session" if known else "blocked_client")
    if not known:
        assert said.verdict.because == "192.0.2.7 (02:00:00:00:00:07) has a MAC that it made up"
    found = gate.standing(client)
    assert (found.is_known, found.is_blocked) == (known, not known)
    assert captivity(found)["captive"] is not known
    session = gate.store.find(client.ids, 0.0)
    assert session
    assert bool([*known_sessions([session], gate.policy, gate.now())]) is known


# The kernel: its sets of networks and MACs let clients pass that nobody has looked up.

type Ruled = list[tuple[IPv4Network | IPv4Address | Mac, Access]]


def routed(rules: Ruled) -> Policy:
    """A policy for a router, with these client rules."""
    clients = ClientRules()
    for line, (subject, access) in enumerate(rules, 1):
        clients.section(access, "lab.yaml")
        clients.add(subject, line)
    router = Router("br-lan", "wan")
    return Policy(
        login_url="https://login.example.net/", login_place=LOGIN, clients=clients, router=router
    )


def elements(rules: str, name: str) -> list[str]:
    """The elements of a set, by the text that loads it."""
    found = re.search(rf"^set {name} \{{[^}}]*elements = \{{ ([^}}]*) \}}", rules, re.MULTILINE)
    return found[1].split(", ") if found else []


def has(rules: str, name: str, address: Address) -> bool:
    spans = (one.partition("-") for one in elements(rules, name))
    return any(int(ip_address(a)) <= int(address) <= int(ip_address(b or a)) for a, _, b in spans)


def passes(rules: str, client: Client) -> bool:
    """Whether the chain `known` accepts the client while the sets of `KnownClients` are empty."""
    if client.mac in elements(rules, "blocked"):
        return False
    if has(rules, "rules4", client.address):
        return True
    return client.mac in elements(rules, "rule_macs") and not has(rules, "barred4", client.address)


class Table(Neighbours):
    """A neighbour table with both clients."""

    def find_mac(self, address: Address) -> Mac | None:
        return {client.address: client.mac for client in (MADE_UP, MADE)}.get(address)


@pytest.mark.parametrize(
    ("before", "fixed", "by_mac", "made_up"),
    [
        (core.without_its_mac, False, False, False),
        (core.by_client_rule, False, False, False),
        (core.by_session, True, False, True),
        (core.by_nothing, True, True, True),
    ],
)
def test_the_kernel_looks_each_client_up_where_an_added_rule_may_hold_it_back(
    monkeypatch: pytest.MonkeyPatch, before: core.Rule, fixed: bool, by_mac: bool, made_up: bool
) -> None:
    assert MADE.mac is not None
    policy = routed(
        [
            (Mac("00:00:5e:00:53:02"), Access.KNOWN),
            (Mac("00:00:5e:00:53:03"), Access.BLOCKED),
            (IPv4Network("192.0.2.128/25"), Access.BLOCKED),
            (IPv4Network("192.0.2.0/24"), Access.KNOWN),
        ]
    )
    today = ruleset(policy)
    number = core.RULES.index(before)
    monkeypatch.setattr(core, "RULES", (*core.RULES[:number], random_mac, *core.RULES[number:]))
    rules = ruleset(policy)
    assert (rules == today) is fixed
    assert bool(elements(rules, "rules4")) is bool(elements(rules, "rule_macs")) is fixed
    for name in ("blocked", "barred4"):
        assert elements(rules, name) == elements(today, name) != []
    store = MemoryStore()
    store.put(Session(ClientId(MADE.mac), 0.0, 60.0))
    wanted = WantedElements(lambda: policy, store, Table())
    assert (wanted.of(MADE.mac, None, 1.0) is not None) is by_mac
    assert (wanted.of(MADE_UP.address, None, 1.0) is not None) is made_up
    assert wanted.of(MADE.address, None, 1.0) is not None


ADDRESSES = st.integers(0, 15).map(lambda n: IPv4Address("192.0.2.0") + n)
MACS = st.sampled_from([Mac(f"{first}:00:5e:00:53:01") for first in ("00", "02", "04", "06")])
NETWORKS = st.tuples(ADDRESSES, st.integers(26, 32)).map(lambda it: IPv4Network(it, strict=False))
RULED = st.lists(st.tuples(NETWORKS | ADDRESSES | MACS, st.sampled_from(Access)), max_size=6)


@given(RULED, ADDRESSES, MACS, st.integers(0, len(core.RULES) - 1))
def test_the_kernels_sets_of_client_rules_let_no_client_pass_that_is_not_known(
    rules: Ruled, address: IPv4Address, mac: Mac, number: int
) -> None:
    client, policy = Client(address, mac), routed(rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "RULES", (*core.RULES[:number], random_mac, *core.RULES[number:]))
        assert standing(client, policy, None, 0.0).is_known or not passes(ruleset(policy), client)
