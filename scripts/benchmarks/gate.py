"""How long a decision takes, which must not grow with the number of clients.

In microseconds of this thread's own processor time: the clock would count other processes too.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network

from benchmarks.figures import Figure, Promise, alternate
from capport import clock
from capport.core import decision
from capport.core.client import Client, Mac, parse_address
from capport.core.decision import Case, HttpRequest
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, GardenEntry, Policy, WalledGarden
from capport.core.reply import Asked, reply_to
from capport.core.session import Session
from capport.core.standing import standing
from capport.core.verdict import NetworkAuthenticationRequired
from capport.gate import Gate
from capport.stores.memory import MemoryStore

LOGIN = "https://login.example.net/"
PLACE = Place("login.example.net", 443)
ORIGIN = Place("www.example.com", 80)
REQUEST = HttpRequest(fields=(("host", 20), ("user-agent", 90), ("accept", 60)), section_size=300)
CHROMIUM = Asked("GET", "text/html,application/xhtml+xml,*/*;q=0.8", "de-DE,de;q=0.9,en;q=0.7")
ACTIVE = 500  # clients that are asked about, again and again, as on a network
TEN = "with ten"


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the gate."""
    many = 10_000 if quick else 1_000_000
    rounds, calls = (3, 1_000) if quick else (9, 10_000)

    def timed(work: Callable[[int], object]) -> Callable[[], float]:
        return lambda: microseconds(work, calls)

    few_gate, many_gate = gate_of(10), gate_of(many)
    few, most = active(10), active(many)
    label = f"with {many:_}".replace("_", " ")

    def asking(gate: Gate, clients: Sequence[Client]) -> Callable[[], float]:
        return timed(lambda n: gate.request(clients[n % ACTIVE], REQUEST, ORIGIN, None))

    yield from decisions(rounds, timed)
    unknown = [Client(parse_address(f"2001:db8::{n:x}"), mac(many + n)) for n in range(ACTIVE)]
    rows = alternate(
        rounds,
        {
            f"{label} sessions and rules": asking(many_gate, most),
            f"{TEN} of each": asking(few_gate, few),
            f"{label}, an unknown client": asking(many_gate, unknown),
        },
    )
    yield Figure("Gate.request, a known client's", "us", rows, f"{TEN} of each")

    store, small, now = many_gate.store, few_gate.store, clock.now()
    rows = alternate(
        rounds,
        {
            f"{label} sessions": timed(lambda n: store.find(most[n % ACTIVE].ids, now)),
            TEN: timed(lambda n: small.find(few[n % ACTIVE].ids, now)),
        },
    )
    yield Figure(
        "look-up of a session, as the gate asks",
        "us",
        rows,
        TEN,
        (Promise.AT_MOST, 1.5),
        of_peer=True,
    )

    rules, small_rules = many_gate.policy.clients, few_gate.policy.clients
    rows = alternate(
        rounds,
        {
            f"{label} rules": timed(lambda n: rules.find(most[n % ACTIVE])),
            TEN: timed(lambda n: small_rules.find(few[n % ACTIVE])),
        },
    )
    yield Figure("client rules, which one", "us", rows, TEN, (Promise.AT_MOST, 1.5), of_peer=True)
    yield from replies(rounds, timed)


def decisions(rounds: int, timed: Callable[..., Callable[[], float]]) -> Iterator[Figure]:
    """`decide` alone: its time depends on which rule answers, and not on the garden's size."""
    client = Client(parse_address("192.0.2.7"), mac(7))
    session = Session(client.ids[0], granted=0.0, expires=3600.0)
    small, large = policy(ClientRules(), 10), policy(ClientRules(), 10_000)
    unknown = Case(standing(client, small, None, 60.0), claim=ORIGIN, request=REQUEST)
    known = Case(standing(client, small, session, 60.0), claim=ORIGIN, request=REQUEST)
    rows = alternate(
        rounds,
        {
            "an unknown client, garden of 10 000 names": timed(
                lambda n: decision.decide(unknown, large)
            ),
            "an unknown client, garden of ten": timed(lambda n: decision.decide(unknown, small)),
            "a known client": timed(lambda n: decision.decide(known, small)),
        },
    )
    yield Figure("decide", "us", rows, "an unknown client, garden of ten")


def replies(rounds: int, timed: Callable[..., Callable[[], float]]) -> Iterator[Figure]:
    """The 511 as a page."""
    same = NetworkAuthenticationRequired("it has no session", LOGIN)
    serial = iter(range(1 << 60))

    def fresh(_: int) -> object:
        url = f"{LOGIN}?state={next(serial)}"
        return reply_to(NetworkAuthenticationRequired("it has no session", url), CHROMIUM)

    rows = alternate(
        rounds,
        {
            "with a link of its own": timed(fresh),
            "with the link that all have": timed(lambda n: reply_to(same, CHROMIUM)),
        },
    )
    yield Figure("reply_to, a 511 as HTML", "us", rows)


def microseconds(work: Callable[[int], object], calls: int) -> float:
    """Microseconds a call."""
    gc.collect()
    before = time.thread_time()
    for number in range(calls):
        work(number)
    return (time.thread_time() - before) / calls * 1e6


def gate_of(count: int) -> Gate:
    """A gate with `count` sessions, and as many client rules, none of them about these clients."""
    rules = ClientRules()
    rules.section(Access.KNOWN, "staff.csv")
    for number in range(count):
        rules.add(mac((1 << 32) + number), number + 1)
    rules.add(ip_network("198.51.100.0/28"), count + 1)
    store, now = MemoryStore(), clock.now()
    for number in range(count):
        store.put(Session(client(number).ids[0], now, now + 8 * 3600.0))
    return Gate(policy(rules, 10), store)


def policy(rules: ClientRules, names: int) -> Policy:
    """A policy with these rules and `names` names in its garden."""
    garden = WalledGarden()
    for number in range(names):
        name = f"{'*.' if number % 2 else ''}n{number}.example.org"
        garden.add(name, GardenEntry(name, frozenset({80, 443}), f"bench.yaml:{number}"))
    return Policy(login_url=LOGIN, login_place=PLACE, clients=rules, walled_garden=garden)


def active(count: int) -> list[Client]:
    """The same few of `count` clients, which are the ones on the network now."""
    dice = random.Random(511)
    some = [client(dice.randrange(count)) for _ in range(min(count, ACTIVE))]
    return (some * (ACTIVE // len(some) + 1))[:ACTIVE]


def client(number: int) -> Client:
    """One of the clients that have a session."""
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Client(parse_address(address), mac(number))


def mac(number: int) -> Mac:
    """A locally administered MAC."""
    return Mac((0x020000000000 + number).to_bytes(6).hex(":"))
