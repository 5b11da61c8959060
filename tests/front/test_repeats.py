"""What the gate remembers of its last refusals is never stale.

Two worlds are the same, and the same happens in both. In one of them there is a new gate for each
request, which can remember nothing. The client gets the same in both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capport import gate
from capport.budgets import Budgets
from capport.core.client import Address, Client, ClientId, Mac, Peer, Way
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.reach import Machine
from capport.core.verdict import Imitated
from capport.front.conversation import Answer, Conversation
from capport.linux import Neighbours
from capport.metrics import Metrics
from capport.policy import policy_file
from capport.stores.memory import MemoryStore
from front.faults import Fault, put_in
from front.law import PEER, state
from front.strict import undated

CLIENT = ClientId(str(PEER.address))
MAC, OTHER = Mac("02:00:00:00:00:07"), Mac("02:00:00:00:00:08")
WEB = Place(ip_address("203.0.113.9"), 80)
LOGIN = "login_url: https://login.example.net/?s={state}\n"


def read(text: str) -> Policy:
    return policy_file.parse(LOGIN + text, "lab.yaml", Path())


PLAIN = read("")
POLICIES = {
    "a garden": read("walled_garden: [www.example.org]\n"),
    "a network in the garden": read("walled_garden: [203.0.113.0/24]\n"),
    "a rate": read("limits: {unknown_requests: {count: 2, per: 1m}}\n"),
    "a limit of fields": read("limits: {header_field: 256}\n"),
    "dropping": read("limits: {drop_after: {count: 2, per: 1m}}\n"),
    "a MAC that is blocked": read(
        f'clients: [{{mac: "{OTHER}", access: blocked}}, {{address: {CLIENT}, access: known}}]\n'
    ),
    "a MAC that is known": read(f'clients: [{{mac: "{MAC}", access: known}}]\n'),
    "an address that is known": read("clients: [{address: 198.51.100.8, access: known}]\n"),
    "another network": read("network: Another\n"),
    "strict probes": read("probes: strict\n"),
}


def get(host: str, path: str = "/", *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


GET = get("www.example.com")
GARDEN = get("www.example.org")
PROBE = get("captive.apple.com", "/hotspot-detect.html")
LARGE = get("www.example.com", "/", "X: " + "y" * 300)
REQUESTS = [GET, GARDEN, PROBE, LARGE, b"HEAD" + GET[3:]]


@dataclass
class Link(Neighbours):
    """A link on which the client is, or is not."""

    mac: Mac | None = None
    is_direct: bool = False

    def find_mac(self, address: Address) -> Mac | None:
        return self.mac

    def is_on_link(self, address: Address) -> bool:
        return self.is_direct

    def way(self, address: Address) -> Way | None:
        return Way(address)


@dataclass
class World:
    """All that a refusal depends on, with a client's connection."""

    remembers: bool
    address: Address = PEER.address
    time: float = 1000.0
    own: set[Address] = field(default_factory=set)
    link: Link = field(default_factory=Link)
    answering: dict[Place, Address] = field(default_factory=dict)
    dropped: list[Client] = field(default_factory=list)

    store: MemoryStore = field(default_factory=MemoryStore)
    budgets: Budgets = field(default_factory=Budgets)
    metrics: Metrics = field(default_factory=Metrics)
    kind: gate.Imitate | None = None

    def __post_init__(self) -> None:
        self.gate = self.new_gate(PLAIN)
        self.connect()

    def new_gate(self, policy: Policy) -> gate.Gate:
        return gate.Gate(
            policy,
            self.store,
            now=lambda: self.time,
            neighbours=self.link,
            machine=Machine(self.own, frozenset({WEB.port})),
            state=state,
            answering=self.answering,
            budgets=self.budgets,
            drop=lambda client, _: self.dropped.append(client),
            metrics=self.metrics,
        )

    def imitate(self, kind: gate.Imitate) -> None:
        self.kind = kind
        self.gate.imitate(kind)

    def connect(self, address: Address | None = None) -> None:
        self.address = address or self.address
        self.connection = Conversation(self.gate, Peer(self.address), WEB)

    def ask(self, request: bytes) -> tuple[object, ...]:
        if not self.remembers:
            before, self.gate = self.gate, self.new_gate(self.gate.policy)
            self.gate.state = before.state
            self.gate.imitate(self.kind)
            self.connect()
        act = self.connection.receive(request)
        if not isinstance(act, Answer):
            self.connect()  # its `receive` must not be called again
            return (type(act), act and act.data)
        return act.status, undated(act.data), act.close, act.verdict, act.client, act.request


type Change = Callable[[World], object]


def follows(policy: Policy) -> Change:
    return lambda it: setattr(it.gate, "policy", policy)


CHANGES: dict[str, Change] = {
    "nothing": lambda it: None,
    "another address": lambda it: it.connect(ip_address("198.51.100.8")),
    "a grant to the address": lambda it: it.gate.grant(CLIENT, lifetime=90.0),
    "a grant to the MAC": lambda it: it.gate.grant(ClientId(MAC), lifetime=90.0),
    "a revocation": lambda it: it.gate.revoke(CLIENT, ClientId(MAC)),
    "a minute": lambda it: setattr(it, "time", it.time + 60.0),
    "its MAC": lambda it: setattr(it.link, "mac", MAC),
    "another MAC": lambda it: setattr(it.link, "mac", OTHER),
    "no MAC": lambda it: setattr(it.link, "mac", None),
    "on the link": lambda it: setattr(it.link, "is_direct", True),
    "behind a router": lambda it: setattr(it.link, "is_direct", False),
    "the login server answers": lambda it: it.answering.update(
        {it.gate.policy.login_place: ip_address("192.0.2.80")}
    ),
    "the login server is down": lambda it: it.answering.clear(),
    "the place is the proxy": lambda it: it.own.add(ip_address("203.0.113.9")),
    "the place is another's": lambda it: it.own.clear(),
    "another kind of portal": lambda it: it.imitate(lambda _: Imitated("another kind", 200)),
    "no state": lambda it: setattr(it.gate, "state", None),
    "the usual policy": follows(PLAIN),
    **{name: follows(policy) for name, policy in POLICIES.items()},
}


def same(_: object) -> int:
    return 0


@pytest.fixture(autouse=True, scope="module")
def guesses_are_wrong() -> Iterator[None]:
    """Everything that one client asks is looked up in the same place of the memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "id", same, raising=False)
        yield


type Steps = list[tuple[str, bytes]]
"""What changes, and what the client then asks."""


def play(steps: Steps) -> list[tuple[object, ...]]:
    """What the client gets at each step, the same in both worlds."""
    worlds, answers = [World(remembers=True), World(remembers=False)], []
    for change, request in steps:
        for it in worlds:
            CHANGES[change](it)
        got, expected = (it.ask(request) for it in worlds)
        assert got == expected
        counted, as_often = (it.gate.metrics for it in worlds)
        assert counted.verdicts == as_often.verdicts
        assert sum(counted.decisions.counts) == sum(as_often.decisions.counts)
        assert worlds[0].dropped == worlds[1].dropped
        answers.append(expected)
    return answers


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from([*CHANGES]), st.sampled_from(REQUESTS)), max_size=12))
def test_what_is_remembered_changes_no_answer_whatever_changes(steps: Steps) -> None:
    play(steps)


# In each, the second of the last two answers differs, although the client asks nearly the same.
DIFFERENT: dict[str, Steps] = {
    "a session": [("nothing", GET), ("a grant to the address", GET)],
    "a session of its MAC": [("its MAC", GET), ("a grant to the MAC", GET)],
    "the policy": [("nothing", GARDEN), ("a garden", GARDEN)],
    "the page": [("nothing", GET), ("another network", GET)],
    "the limit of fields": [("nothing", LARGE), ("a limit of fields", LARGE)],
    "the client": [
        ("its MAC", GET),
        ("an address that is known", GET),
        ("another address", GET),
    ],
    "the client's MAC": [("a MAC that is known", GET), ("its MAC", GET)],
    "the request": [("a limit of fields", GET), ("nothing", LARGE)],
    "the place": [("a garden", GET), ("nothing", GARDEN)],
    "the login server": [("nothing", PROBE), ("the login server answers", PROBE)],
    "the state": [("nothing", GET), ("no state", GET)],
    "the kind of portal": [("nothing", GET), ("another kind of portal", GET)],
    "the routes": [
        ("on the link", GET),
        ("a MAC that is blocked", GET),
        ("behind a router", GET),
    ],
    "the machine": [("a network in the garden", PROBE), ("the place is the proxy", PROBE)],
    "the rate": [("a rate", GET), ("nothing", GET), ("nothing", GET)],
    "the rate's end": [("a rate", GET), ("nothing", GET), ("nothing", GET), ("a minute", GET)],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_repeated_request_meets_what_has_changed(name: str) -> None:
    before, after = play(DIFFERENT[name])[-2:]
    assert before != after


def test_a_decision_is_not_used_for_another_place_that_is_dialled() -> None:
    it = World(remembers=True)
    it.gate.policy = POLICIES["a network in the garden"]
    client, asked = Client(PEER.address), HttpRequest()
    claim, inside = Place("www.example.com", WEB.port), WEB
    outside = Place(ip_address("198.51.100.1"), WEB.port)
    refused = it.gate.refusal(client, asked, claim, outside, None)
    assert refused
    assert it.gate.refusal(client, asked, claim, outside, None) == refused
    assert it.gate.refusal(client, asked, claim, inside, None) is None


def compares(all_but: int) -> Fault:
    """The comparison with the last decision leaves one thing out."""
    kept = [f"{{}}[{part}]" for part in range(5) if part != all_but]
    of, lately = (f"[{', '.join(kept)}]".replace("{}", it) for it in ("asked", "lately.asked"))
    return Fault("gate", "lately.asked == asked", f"{lately} == {of}")


FAULTS = {
    "a session": Fault("gate", " and not self.store.find(client.ids, self.now())", ""),
    "the policy": Fault("gate", "self._lately.clear()", "pass"),
    "the client": compares(0),
    "the request": compares(1),
    "the place": compares(2),
    "the login server": compares(4),
    "the routes": Fault("gate", "stays(client, policy) and ", ""),
    "the machine": Fault("gate", " and not decision.goes_by_machine(case, policy)", ""),
    "the rate": Fault(
        "gate", "wait = self._spend(found)\n        if wait", "wait = None\n        if wait"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_memory_that_is_stale_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gate, "id")
    put_in(FAULTS[name], monkeypatch)
    monkeypatch.setitem(gate.Gate.refusal.__globals__, "id", same)
    with pytest.raises(AssertionError):
        test_a_repeated_request_meets_what_has_changed(name)
