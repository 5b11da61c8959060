"""The kernel's part: what the rules let through, and how the sets follow the sessions."""

import contextlib
import itertools
import math
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import requires
from capport import clock
from capport.core import standing
from capport.core.client import Address, ClientId, parse_address, parse_client_id, parse_mac
from capport.core.client import Client as CoreClient
from capport.core.policy import Access, ClientRules, Network, Policy
from capport.core.session import Session, first_open
from capport.core.standing import Kind, Standing
from capport.linux import conntrack, libnftables
from capport.linux.libnftables import Nftables, RulesError
from capport.policy import policy_file
from capport.router import garden_addresses, known_clients, nftables
from capport.router import ranges as spans
from capport.router import ruleset as ruletext
from capport.router.garden_addresses import GardenFollower
from capport.router.known_clients import KnownClients
from capport.router.membership import is_let_through
from capport.stores.memory import MemoryStore
from conftest import SOON
from lab.namespaces import Namespace, wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, ROUTER4, ROUTER6, STATUS4, Client, Lab
from router.pinging import QUIET, pings

LAB = pytest.mark.lab


def policy_of(text: str) -> Policy:
    whole = POLICY.replace("{folder}", "/tmp") + text
    return policy_file.parse(whole, "lab.yaml", Path("/"))


FIREWALL = """
table inet firewall {
chain onward { type filter hook forward priority filter + 10; policy accept;
iifname "wan" ct state != { established, related } drop
}
}
"""


@pytest.fixture(scope="module", params=["alone", "beside a firewall"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab without mitmdump: whatever passes, the kernel forwards."""
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl", "conntrack"))
    with Lab(clients=2, portal=False, follow=False, name="nft") as it:
        if request.param != "alone":
            it.rules.run(FIREWALL)
            nftables.up(it.policy, rules=it.rules)
        yield it


def proxy_ports(lab: Lab) -> tuple[int, ...]:
    state = lab.router.call(nftables.in_force)
    assert state is not None
    return state.proxy_ports


def is_tracked(lab: Lab) -> bool:
    state = lab.router.call(nftables.in_force)
    assert state is not None
    return state.tracked


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def started(lab: Lab, store: MemoryStore) -> Iterator[KnownClients]:
    """The rules, loaded again, and a set that does not watch `store`."""
    nftables.up(lab.policy, rules=lab.rules)
    seen(lab, lab.client)  # whatever an earlier test has made the router forget
    following = lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    lab.router.call(following.start)
    yield following
    following.close()


@pytest.fixture
def known(store: MemoryStore, started: KnownClients) -> KnownClients:
    """The rules, loaded again, and a set that watches `store`."""
    store.watch(started.changed)
    return started


def session(client: str, seconds: float = 3600, idle: float | None = None) -> Session:
    now = clock.now()
    return Session(parse_client_id(client), now, now + seconds, idle, last_seen=now)


def echoes(client: Client, address: str, *, udp: bool = False, seconds: float = SOON) -> bool:
    """Whether the origin's echo answers `client` at `address`. A refusal comes at once.

    Only if a session ends between the question and the answer does it wait.
    """

    def ask() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as talk:
            talk.settimeout(seconds)
            with contextlib.suppress(OSError):
                talk.connect((address, 7))
                talk.sendall(b"there?")
                return talk.recv(100) == b"there?"
        return False

    return client.namespace.call(ask)


def connected(client: Client, address: str = ORIGIN4) -> socket.socket:
    """A connection to the origin's echo."""
    made = client.namespace.call(socket.create_connection, (address, 7), SOON)
    assert answers(made)
    return made


def answers(connection: socket.socket, seconds: float = SOON) -> bool:
    connection.settimeout(seconds)
    try:
        connection.sendall(b"still?")
        return connection.recv(100) == b"still?"
    except OSError:
        return False


def seen(lab: Lab, client: Client) -> None:
    """Waits until the router knows the MAC of `client`: all namespaces share one table of them."""
    address = parse_address(client.v4)
    # The router needs no MAC to refuse a packet, but asks for it to answer an echo request.
    wait_for(lambda: client.namespace.call(pings, ROUTER4, 0) and lab.neighbours.find_mac(address))


def elements(lab: Lab, name: str) -> dict[str, float]:
    return lab.elements(name)


def ruleset(lab: Lab) -> str:
    return lab.router.run("nft", "-s", "list", "ruleset").stdout


# The text.


@st.composite
def rule_lists(draw: st.DrawFn) -> list[tuple[Network, Access]]:
    lengths = st.integers(20, 32)
    numbers = st.integers(0, 4095).map(lambda n: (192 << 24) + n)
    networks = st.tuples(numbers, lengths).map(
        lambda pair: ip_network((pair[0], pair[1]), strict=False)
    )
    return draw(st.lists(st.tuples(networks, st.sampled_from(Access)), max_size=12))


@given(rule_lists(), st.lists(st.integers(0, 4095), max_size=50), st.sampled_from(Access))
def test_the_ranges_are_what_the_first_rule_by_address_says(
    given_rules: list[tuple[Network, Access]], probes: list[int], wanted: Access
) -> None:
    rules = ClientRules()
    edges = set(probes)
    for line, (network, access) in enumerate(given_rules):
        rules.section(access, "lab.yaml")
        rules.add(network, line)
        edges |= {int(network[0]) - (192 << 24), int(network[-1]) - (192 << 24)}
    ranges = spans.ranges(rules, Kind(wanted))
    for before, after in itertools.pairwise(ranges):
        assert int(before[1]) + 1 < int(after[0]), "apart, and merged where they touch"
    for offset in {e + d for e in edges for d in (-1, 0, 1)}:
        address = IPv4Address((192 << 24) + offset)
        rule = rules.find(CoreClient(address))
        assert any(int(a) <= int(address) <= int(b) for a, b in ranges) == (
            rule is not None and rule.access is wanted
        )


def test_a_policy_without_a_router_is_refused() -> None:
    with pytest.raises(ValueError, match="has no `router`"):
        ruletext.ruleset(replace(policy_of(""), router=None))


@pytest.mark.parametrize("ports", [(), (0,), (8080, 65536)])
def test_proxy_ports_are_ports(ports: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ports of a proxy"):
        ruletext.ruleset(policy_of(""), proxy_ports=ports)


def test_dnsmasq_fills_the_sets_for_stars_alone_and_not_by_the_name_itself() -> None:
    """Names without a star are followed by the portal; `nftset=` takes what is below them too."""
    text = POLICY.replace("  - www.example.org\n", '  - www.example.org\n  - "*.example.com:993"\n')
    policy = policy_file.parse(text.replace("{folder}", "/tmp"), "lab.yaml", Path("/"))
    assert nftables.to_stars(policy) == "server=/*.example.com/127.0.0.1#5312\n"
    assert [line for line in nftables.stars(policy).splitlines() if "nftset" in line] == [
        "nftset=/example.com/4#inet#capport#garden4_993,6#inet#capport#garden6_993"
    ]
    assert nftables.stars(policy_of("")) == nftables.to_stars(policy_of("")) == ""


# The table.


@LAB
def test_down_leaves_no_trace_and_up_touches_no_other_table(lab: Lab) -> None:
    nftables.down(rules=lab.rules)
    lab.router.run("nft", "add", "table", "inet", "others")
    before = ruleset(lab)
    nftables.up(lab.policy, rules=lab.rules)
    assert "table inet others {\n}" in ruleset(lab)
    once = lab.rules.outline("list table inet capport")
    nftables.up(lab.policy, rules=lab.rules)
    assert lab.rules.outline("list table inet capport") == once
    nftables.down(rules=lab.rules)
    nftables.down(rules=lab.rules)
    assert nftables.show(rules=lab.rules) is None
    assert ruleset(lab) == before
    lab.router.run("nft", "delete", "table", "inet", "others")
    nftables.up(lab.policy, rules=lab.rules)


PROTOCOLS = ("tcp", "udp", "icmp", "igmp", "gre", "esp", "ah", "sctp", "ipv6-icmp", "dccp")
NAMES = "".join(f"meta l4proto {name}\n" for name in PROTOCOLS * 2)


@LAB
def test_rules_are_what_they_are_however_many_threads_look(lab: Lab) -> None:
    """libnftables has one table of protocol names for all threads.

    Without a lock, one of 50 listings of these rules is wrong.
    """
    lab.rules.run(f"table inet names {{\nchain named {{\n{NAMES}}}\n}}\n")

    def looked(_: int) -> set[str]:
        own = lab.router.call(Nftables)
        try:
            return {own.outline("list table inet names") for _ in range(250)}
        finally:
            own.close()

    try:
        with ThreadPoolExecutor(4) as threads:
            seen = set[str]().union(*threads.map(looked, range(4)))
    finally:
        lab.rules.run("delete table inet names\n")
    assert len(seen) == 1


@LAB
def test_the_library_serves_one_thread_at_a_time_and_the_elements_of_a_set_are_read_without_it(
    lab: Lab,
) -> None:
    """Even with separate contexts, two threads in libnftables have crashed, and mixed up sets."""
    mac = "02:00:00:00:00:99"
    lab.rules.run(f"add element inet capport macs {{ {mac} timeout 60s }}\n")
    done = threading.Event()

    def work() -> None:
        own = lab.router.call(Nftables)
        own.run(f"delete element inet capport macs {{ {mac} }}\n")
        own.close()
        done.set()

    thread = threading.Thread(target=work)
    with libnftables.ONE_AT_A_TIME:
        thread.start()
        assert mac in elements(lab, "macs")
        assert not done.wait(0.2)
    assert done.wait(SOON)
    thread.join()
    assert mac not in elements(lab, "macs")


@LAB
def test_rules_that_do_not_load_leave_the_old_ones(lab: Lab) -> None:
    before = lab.rules.outline("list table inet capport")
    with pytest.raises(RulesError, match="syntax error"):
        nftables.up(lab.policy, rules=lab.rules, elements="add element inet capport {\n")
    with pytest.raises(RulesError):
        nftables.up(
            lab.policy, rules=lab.rules, elements="add element inet capport nosuchset { 1 }\n"
        )
    assert lab.rules.outline("list table inet capport") == before
    shown = nftables.show(rules=lab.rules)
    assert shown is not None
    assert shown.startswith("table inet capport {")


@LAB
@pytest.mark.parametrize(
    "more",
    [
        "",
        "tls: {known: inspect}\nhttp: {known: inspect}\n",
        "clients:\n  - {address: 10.0.0.0/8, access: known}\n"
        "  - {address: 10.1.0.0/16, access: blocked}\n"
        "  - {mac: 02:00:00:00:00:66, access: blocked}\n"
        "  - {mac: 02:00:00:00:00:67, access: known}\n",
    ],
)
@pytest.mark.parametrize("ethernet", [True, False])
def test_every_policy_loads(lab: Lab, more: str, ethernet: bool) -> None:
    for tracked in (True, False):
        text = ruletext.ruleset(
            policy_of(more), proxy_ports=(8080, 8082), ethernet=ethernet, tracked=tracked
        )
        lab.rules.run(text)
        assert is_tracked(lab) is tracked
    assert proxy_ports(lab) == (8080, 8082)
    nftables.up(lab.policy, rules=lab.rules)
    assert proxy_ports(lab) == (8080,)


# The set.


@LAB
def test_a_known_client_passes_by_the_kernel_and_nobody_else(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    mine, other = lab.clients
    assert not echoes(mine, ORIGIN4)
    store.put(session(mine.mac))
    wait_for(lambda: echoes(mine, ORIGIN4))
    wait_for(lambda: echoes(mine, ORIGIN6))
    assert echoes(mine, ORIGIN4, udp=True)
    assert mine.namespace.call(pings, ORIGIN4, 1)
    assert not other.namespace.call(pings, ORIGIN4, 0)
    before = len(lab.reached())
    assert not echoes(other, ORIGIN4)
    assert not echoes(other, ORIGIN6, udp=True)
    assert len(lab.reached()) == before


@LAB
def test_update_is_in_force_when_it_returns(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client = lab.client
    seen(lab, client)
    granted = session(f"{client.mac}@{client.v4}")
    store.put(granted)
    known.update([granted.client])
    assert f"{client.v4} . {client.mac}" in elements(lab, "known4")
    assert elements(lab, "known6") == {}
    assert echoes(client, ORIGIN4)


@contextlib.contextmanager
def one_more_rule(client: Client) -> Iterator[None]:
    """Adds a rule in front of all others, which blocks `client` by its MAC."""

    def nobody_by_mac(facts: standing.Facts, policy: Policy) -> Standing | None:
        made_up = facts.client.mac == client.mac
        return Standing(facts.client, Kind.BLOCKED, "has this MAC") if made_up else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing, "RULES", (nobody_by_mac, *standing.RULES))
        yield


@LAB
def test_a_rule_of_who_is_known_that_is_added_holds_in_the_kernel(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    clients = client, other = lab.clients
    seen(lab, other)
    for one in clients:
        store.put(session(one.mac))
    with one_more_rule(client):
        known.update([ClientId(one.mac) for one in clients])
        assert client.mac not in " ".join([*elements(lab, "macs"), *elements(lab, "known4")])
        assert f"{other.v4} . {other.mac}" in elements(lab, "known4")
    known.update([ClientId(client.mac)])
    assert client.mac in elements(lab, "macs")


@LAB
@pytest.mark.parametrize("subject", ["address: 192.0.2.0/24", "mac: {mac}"])
def test_no_client_rule_lets_a_client_pass_that_an_added_rule_holds_back(
    lab: Lab, store: MemoryStore, subject: str
) -> None:
    rules = [f"  - {{{subject.format(mac=one.mac)}, access: known}}\n" for one in lab.clients]
    policy = policy_of("clients:\n" + "".join(dict.fromkeys(rules)))
    for client in lab.clients:
        seen(lab, client)
    nftables.up(policy, rules=lab.rules)
    assert [echoes(client, ORIGIN4) for client in lab.clients] == [True, True]
    with one_more_rule(lab.clients[0]):
        lab.router.call(known_clients.up, policy, store, lab.neighbours)
    assert [echoes(client, ORIGIN4) for client in lab.clients] == [False, True]
    nftables.up(lab.policy, rules=lab.rules)


@LAB
def test_revocation_cuts_what_is_open_and_empties_conntrack(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client, other = lab.clients
    for one in (client, other):
        store.put(session(one.mac))
        known.update([ClientId(one.mac)])
        # Its address is in the set once a first packet has shown it: until then all is tracked.
        wait_for(lambda c=one: echoes(c, ORIGIN4) and c.v4 in " ".join(elements(lab, "known4")))  # type: ignore[misc]
    lab.router.run("conntrack", "-F")
    open_here, open_there = connected(client), connected(other)
    store.revoke(ClientId(client.mac))
    wait_for(lambda: not answers(open_here, 3))
    assert answers(open_there)
    wait_for(lambda: client.v4 not in tracked(lab))
    assert (other.v4 in tracked(lab)) is is_tracked(lab)
    open_here.close()
    open_there.close()


def tracked(lab: Lab) -> str:
    return lab.router.run("conntrack", "-L", "-p", "tcp", "--dport", "7").stdout


@LAB
def test_what_known_clients_have_open_is_tracked_only_where_others_may_need_it(
    lab: Lab, store: MemoryStore, known: KnownClients, request: pytest.FixtureRequest
) -> None:
    assert is_tracked(lab) is ("firewall" in request.node.callspec.id)
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    for address, name in ((ORIGIN4, "known4"), (ORIGIN6, "known6")):
        wait_for(lambda a=address, n=name: echoes(lab.client, a) and bool(elements(lab, n)))  # type: ignore[misc]
        with connected(lab.client, address) as connection:
            entries = lab.router.run(
                *("conntrack", "-L", "-f", "ipv6" if ":" in address else "ipv4")
            ).stdout
            ours = f"sport={connection.getsockname()[1]} dport=7 " in entries
            assert ours is is_tracked(lab)


@LAB
def test_a_known_client_gets_icmpv6_and_what_it_says_of_its_packets(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    """RFC 4890 section 4.3.1: without Packet Too Big, what is long never arrives."""
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    wait_for(lambda: echoes(lab.client, ORIGIN6) and bool(elements(lab, "known6")))
    assert lab.client.namespace.call(pings, ORIGIN6, 1)
    lab.router.ip("link set wan mtu 1280")
    try:
        with connected(lab.client, ORIGIN6) as connection:
            connection.sendall(b"x" * 20_000)
            connection.settimeout(SOON)
            got = b""
            while len(got) < 20_000:
                got += connection.recv(65536)
    finally:
        lab.router.ip("link set wan mtu 1500")
    other = lab.clients[1]
    assert not other.namespace.call(pings, ORIGIN6, 0)
    assert not [line for line in lab.reached() if other.v6 in line]


@LAB
def test_neighbour_discovery_is_no_way_out(lab: Lab, known: KnownClients) -> None:
    """The kernel does not track it, like the traffic of known clients."""

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            for kind in range(256):
                with contextlib.suppress(OSError):
                    raw.sendto(bytes([kind, 0, 0, 0]) + b"a way out" * 4, (ORIGIN6, 0))

    every = 3  # ETH_P_ALL
    with lab.origin.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every)
    ) as wire:
        lab.client.namespace.call(send)
        await_router(lab)
        assert lab.router.call(pings, ORIGIN6, 1)  # comes after whatever the router sent on
        wire.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while packet := wire.recv(2000):
                assert b"a way out" not in packet


@LAB
@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_what_was_redirected_before_the_grant_stays_the_proxys(
    lab: Lab, store: MemoryStore, known: KnownClients, address: str
) -> None:
    """If its packets went to the origin from then on, the origin would reset it."""
    with lab.router.call(
        socket.create_server, ("", 8080), family=socket.AF_INET6, dualstack_ipv6=True
    ) as listener:
        listener.settimeout(SOON)
        asking = lab.client.namespace.call(socket.create_connection, (address, 80), SOON)
        at_proxy, _ = listener.accept()
        store.put(session(lab.client.mac))
        known.update([ClientId(lab.client.mac)])
        with asking, at_proxy:
            asking.sendall(b"again")
            at_proxy.settimeout(SOON)
            assert at_proxy.recv(10) == b"again"
            at_proxy.sendall(b"still here")
            assert asking.recv(10) == b"still here"
        assert lab.client.status(f"http://[{address}]/" if ":" in address else f"http://{address}/")
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@LAB
def test_expiry_cuts_what_is_open(lab: Lab, store: MemoryStore, known: KnownClients) -> None:
    client = lab.client
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    with connected(client) as connection:
        short = session(client.mac, seconds=2)
        store.put(short)
        known.update([ClientId(client.mac)])
        wait_for(lambda: not answers(connection, 3))
        assert clock.now() > short.expires - 0.1
    wait_for(lambda: elements(lab, "known4") == {})


@LAB
def test_what_the_kernel_would_not_have_at_first_is_tried_again(
    lab: Lab, store: MemoryStore, started: KnownClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(session(lab.client.mac))
    started.update([ClientId(lab.client.mac)])
    wait_for(lambda: echoes(lab.client, ORIGIN4) and bool(elements(lab, "known4")))
    run, again, goes_on = Nftables.run, started.resync, threading.Event()

    def once(its: Nftables, commands: str) -> str:
        monkeypatch.setattr(Nftables, "run", run)
        raise RulesError(f"no memory for {commands}")

    def late() -> None:
        assert goes_on.wait(SOON)
        again()

    monkeypatch.setattr(Nftables, "run", once)
    monkeypatch.setattr(started, "resync", late)
    store.revoke(ClientId(lab.client.mac))
    with pytest.raises(RulesError, match="no memory"):
        started.update([ClientId(lab.client.mac)])
    assert elements(lab, "known4")
    goes_on.set()
    wait_for(lambda: not elements(lab, "known4"))


@LAB
def test_a_client_that_is_being_added_is_not_yet_one_that_the_kernel_should_have(
    lab: Lab, store: MemoryStore, started: KnownClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its request at that moment would look as if the kernel had lost it."""
    client = CoreClient(parse_address(lab.client.v4), lab.client.mac)
    run, had = Nftables.run, list[bool]()

    def watched(its: Nftables, commands: str) -> str:
        had.append(started.has(client))
        return run(its, commands)

    monkeypatch.setattr(Nftables, "run", watched)
    store.put(session(lab.client.mac))
    started.update([ClientId(lab.client.mac)])
    assert had[0] is False
    assert started.has(client)


@LAB
def test_without_us_the_kernel_ends_a_session_in_time(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    assert echoes(lab.client, ORIGIN4)
    store.put(session(lab.client.mac, seconds=2))
    known.update([ClientId(lab.client.mac)])
    known.close()
    wait_for(lambda: not echoes(lab.client, ORIGIN4, seconds=3))


@LAB
def test_a_session_that_is_extended_or_shortened_is_in_the_kernel_too(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    pair = f"{lab.client.v4} . {lab.client.mac}"
    for seconds in (600, 7200, 300):
        store.put(session(lab.client.mac, seconds))
        known.update([ClientId(lab.client.mac)])
        assert seconds - 100 <= elements(lab, "known4")[pair] <= seconds


class Leased(MemoryStore):
    """A store whose sessions another router granted."""

    def find(self, ids: Sequence[ClientId], now: float) -> Session | None:
        found = super().find(ids, now)
        return found and first_open([replace(found, lease=self.lease)], now)


@LAB
def test_sessions_of_other_routers_are_in_force_while_the_lease_that_the_kernel_has_lasts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One element is renewed for any number of clients; without it, all are out."""
    monkeypatch.setattr(known_clients, "LEASE_CHECK", 0.05)
    store, client = Leased(), lab.client
    store.lease = clock.now() + 60
    nftables.up(lab.policy, rules=lab.rules)
    store.put(session(client.mac, seconds=3000))

    def lease() -> dict[str, float]:
        listed = lab.rules.ask("list set inet capport lease")[1]["set"].get("elem", ())
        return {one["elem"]["val"]: one["elem"]["expires"] for one in listed}

    def leased() -> float:
        return min(lease().values(), default=0.0)

    with contextlib.closing(
        lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    ) as following:
        lab.router.call(following.start)
        wait_for(lambda: echoes(client, ORIGIN4) and echoes(client, ORIGIN6))
        assert lease().keys() == {"ipv4", "ipv6"}
        assert 50 < leased() <= 60
        known = elements(lab, "leased_macs")
        assert known[client.mac] > 2000
        assert elements(lab, "macs") == {}
        store.lease = clock.now() + 600
        wait_for(lambda: leased() > 500)
        assert lab.router.call(is_let_through, parse_address(client.v4), client.mac)
        for family in ("ipv4", "ipv6"):  # as if it had not been renewed
            lab.rules.run(f"delete element inet capport lease {{ {family} }}")
        assert not echoes(client, ORIGIN4, seconds=QUIET)
        assert not echoes(client, ORIGIN6, seconds=QUIET)
        assert not lab.router.call(is_let_through, parse_address(client.v4), client.mac)
        store.lease = clock.now() - 1
        following.changed(ClientId(client.mac))
        following.update([ClientId(client.mac)])
        assert elements(lab, "leased_macs").keys() == known.keys()
        store.lease = clock.now() + 1200
        wait_for(lambda: echoes(client, ORIGIN4) and echoes(client, ORIGIN6))
        assert elements(lab, "leased_macs").keys() == known.keys()


@LAB
def test_a_client_that_is_granted_a_session_here_too_loses_no_packet_by_it(lab: Lab) -> None:
    """The client's elements move to the sets of sessions that need no lease, and back."""
    store, client = Leased(), lab.client
    store.lease = clock.now() + 600
    nftables.up(lab.policy, rules=lab.rules)
    store.put(session(client.mac))
    with contextlib.closing(
        lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    ) as following:
        lab.router.call(following.start)
        wait_for(lambda: echoes(client, ORIGIN4) and bool(elements(lab, "leased_known4")))
        with connected(client) as connection:
            for store.lease in (math.inf, clock.now() + 600, math.inf):
                following.update([ClientId(client.mac)])
                for name in ("macs", "known4", "return4"):
                    mine, other = name, f"leased_{name}"
                    if store.lease < math.inf:
                        mine, other = other, mine
                    assert elements(lab, mine)
                    assert elements(lab, other) == {}
                assert answers(connection)


@LAB
def test_an_address_that_another_mac_takes_over_is_out(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client, thief = lab.clients
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    assert echoes(client, ORIGIN4)
    client.namespace.ip("link set eth0 down")
    thief.namespace.ip(f"address add {client.v4}/24 dev eth0")
    try:
        announce(thief, client.v4)
        wait_for(lambda: f"{client.v4} . {client.mac}" not in elements(lab, "known4"))
        assert client.v4 not in elements(lab, "return4")
        assert not thief.namespace.call(_echo_from, client.v4, 1)
    finally:
        thief.namespace.ip(f"address del {client.v4}/24 dev eth0")
        client.namespace.ip("link set eth0 up", f"route replace default via {ROUTER4}")
    announce(client, client.v4)
    wait_for(lambda: echoes(client, ORIGIN4), message="the client that came back is known again")
    wait_for(client.has_v6)


@LAB
def test_a_spoofed_address_does_not_pass_with_another_mac(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    """Without ARP, so that the neighbour table still has the client: each packet is checked."""
    client, thief = lab.clients
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    assert echoes(client, ORIGIN4)
    router_mac = lab.router.run("cat", "/sys/class/net/br-lan/address").stdout.strip()
    before = lab.reached().count(f"udp {client.v4} -> {ORIGIN4} 7")
    thief.namespace.call(_spoof, router_mac, thief.mac, client.v4)
    assert lab.reached().count(f"udp {client.v4} -> {ORIGIN4} 7") == before
    client.namespace.call(_spoof, router_mac, client.mac, client.v4)
    # And the same frames do pass from the client itself.
    wait_for(lambda: lab.reached().count(f"udp {client.v4} -> {ORIGIN4} 7") == before + 5)


def announce(client: Client, address: str) -> None:
    """Asks for the router's MAC, as a new client does, so that the router learns the client's."""
    client.namespace.ip("neighbour flush dev eth0")
    client.namespace.call(_send_from, address)


def _send_from(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((address, 0))
        sender.sendto(b"", (ROUTER4, 9))


def _echo_from(address: str, seconds: float = SOON) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection((ORIGIN4, 7), seconds, (address, 0)) as talk,
    ):
        talk.sendall(b"there?")
        return talk.recv(100) == b"there?"
    return False


def _datagram(source: str, to: str, port: int, body: bytes) -> bytes:
    """UDP over IPv4 with its head, from port 40000; without a checksum of its own (RFC 768)."""
    udp = (40000).to_bytes(2) + port.to_bytes(2) + (8 + len(body)).to_bytes(2) + b"\0\0" + body
    head = bytearray(b"\x45\0" + (20 + len(udp)).to_bytes(2) + b"\0\1\0\0\x40\x11\0\0")
    head += socket.inet_aton(source) + socket.inet_aton(to)
    total = sum(int.from_bytes(head[i : i + 2]) for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (~total & 0xFFFF).to_bytes(2)
    return bytes(head) + udp


def await_router(lab: Lab) -> None:
    """Returns once the router has handled what the clients have sent: it answers a later ping."""
    for client in lab.clients:
        assert client.namespace.call(pings, ROUTER4, 1)


def _spoof(router_mac: str, mac: str, source: str) -> None:
    """Raw frames to the router: UDP to the origin's echo from somebody else's address."""
    to, by = (bytes.fromhex(text.replace(":", "")) for text in (router_mac, mac))
    frame = to + by + b"\x08\0" + _datagram(source, ORIGIN4, 7, b"away")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for _ in range(5):
            raw.send(frame)


@LAB
def test_a_new_address_of_a_known_mac_is_let_in(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client = lab.client
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    client.namespace.ip("address add 192.0.2.77/24 dev eth0")
    try:
        assert client.namespace.call(_echo_from, "192.0.2.77"), "from the first packet on"
        wait_for(lambda: f"192.0.2.77 . {client.mac}" in elements(lab, "known4"))
    finally:
        client.namespace.ip("address del 192.0.2.77/24 dev eth0")


@LAB
def test_a_client_that_sleeps_keeps_its_pair(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client = lab.client
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    with connected(client) as connection:
        lab.router.ip("neighbour flush dev br-lan")
        wait_for(lambda: lab.neighbours.addresses(client.mac) == [])
        known.resync()
        assert answers(connection)


@LAB
def test_a_mac_has_only_so_many_addresses(
    lab: Lab, store: MemoryStore, known: KnownClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_clients, "ADDRESSES", 4)
    mac = parse_mac("02:00:00:00:00:0a")
    store.put(session(mac))
    many = [f"192.0.2.{n} dev br-lan" for n in range(210, 220)]
    lab.router.ip(*(f"neighbour replace {a} lladdr {mac} nud permanent" for a in many))
    try:
        wait_for(lambda: len(lab.neighbours.addresses(mac)) == 10)
        known.update([ClientId(mac)])
        assert len([e for e in elements(lab, "known4") if e.endswith(mac)]) == 4
    finally:
        lab.router.ip(*(f"neighbour del {a}" for a in many))


@LAB
@pytest.mark.parametrize(
    ("rule", "session_for", "in_set"),
    [
        ("{{mac: {mac}, access: known}}", None, True),
        ("{{address: {v4}, access: known}}", None, True),
        ("{{mac: {mac}, access: blocked}}", "{mac}", False),
        ("{{address: 192.0.2.0/24, access: blocked}}", "{mac}@{v4}", False),
        ("{{mac: 02:00:00:00:00:99, access: blocked}}", "{v4}", True),
    ],
)
def test_the_policys_rules_come_before_sessions(
    lab: Lab, store: MemoryStore, rule: str, session_for: str | None, in_set: bool
) -> None:
    client = lab.client
    named = {"mac": client.mac, "v4": client.v4}
    policy = policy_of(f"clients:\n  - {rule.format(**named)}\n")
    if session_for:
        store.put(session(session_for.format(**named)))
    lab.router.call(known_clients.up, policy, store, lab.neighbours)
    assert (f"{client.v4} . {client.mac}" in elements(lab, "known4")) == in_set
    assert echoes(client, ORIGIN4) == in_set
    nftables.up(lab.policy, rules=lab.rules)


@LAB
def test_a_blocked_mac_does_not_pass_with_the_address_of_a_client_off_the_link(lab: Lab) -> None:
    """A rule by address holds for clients behind another router, not for a MAC blocked here."""
    one, other = lab.clients
    policy = policy_of(
        f"clients:\n  - {{mac: {one.mac}, access: blocked}}\n"
        "  - {address: 203.0.113.0/24, access: known}\n"
    )
    nftables.up(policy, rules=lab.rules)
    lab.router.ip(f"route replace 203.0.113.0/24 via {other.v4} dev br-lan")
    lab.origin.ip("route replace 203.0.113.0/24 via 198.51.100.1")
    for client in (one, other):
        client.namespace.ip("address add 203.0.113.9/32 dev lo")
    assert other.namespace.call(_echo_from, "203.0.113.9")
    before = len(lab.reached())
    assert not one.namespace.call(_echo_from, "203.0.113.9", 1)
    assert len(lab.reached()) == before
    for client in (one, other):
        client.namespace.ip("address del 203.0.113.9/32 dev lo")
    nftables.up(lab.policy, rules=lab.rules)


@LAB
def test_a_session_for_an_address_off_the_link_is_for_the_frames_of_the_router_before_it(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    hop, other = lab.clients
    behind = ClientId("203.0.113.8")
    lab.router.ip(f"route replace {behind}/32 via {hop.v4} dev br-lan")
    lab.origin.ip(f"route replace {behind}/32 via 198.51.100.1")
    for client in lab.clients:
        client.namespace.ip(f"address add {behind}/32 dev lo")
    hop.namespace.call(pings, ROUTER4, 1)  # so that its MAC is known
    try:
        store.put(session(behind))
        lab.router.call(known.update, [behind])
        wait_for(lambda: f"{behind} . {hop.mac}" in elements(lab, "known4"))
        assert hop.namespace.call(_echo_from, behind)
        # It also claims the address by ARP, as a client on the link would.
        before = len(lab.reached())
        assert not other.namespace.call(_echo_from, behind, 1)
        router_mac = lab.router.run("cat", "/sys/class/net/br-lan/address").stdout.strip()
        other.namespace.call(_spoof, router_mac, other.mac, behind)
        lab.router.call(known.resync)
        other.namespace.call(_spoof, router_mac, other.mac, behind)
        await_router(lab)
        assert not [line for line in lab.reached()[before:] if line.startswith("udp")]
        assert elements(lab, "known4").keys() == {f"{behind} . {hop.mac}"}
        assert elements(lab, "routed4") == {}
        # From here on, the router before it has another interface.
        moved = "02:00:00:00:00:77"
        lab.router.ip(f"neighbour replace {hop.v4} lladdr {moved} dev br-lan nud permanent")
        wait_for(lambda: elements(lab, "known4").keys() == {f"{behind} . {moved}"})
        store.revoke(behind)
        wait_for(lambda: elements(lab, "known4") == {})
        assert elements(lab, "return4") == {}
    finally:
        lab.router.ip(f"neighbour del {hop.v4} dev br-lan", f"route del {behind}/32")
        lab.origin.ip(f"route del {behind}/32")
        for client in lab.clients:
            client.namespace.ip(f"address del {behind}/32 dev lo")


@LAB
def test_up_again_loses_nobody_a_packet(lab: Lab, store: MemoryStore, known: KnownClients) -> None:
    client = lab.client
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    with connected(client) as connection:
        lab.router.ip("neighbour flush dev br-lan")  # it sleeps: only the kernel's set knows it
        for _ in range(5):
            lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)
            assert answers(connection)


@LAB
def test_what_the_sessions_do_not_account_for_goes_at_the_start(
    lab: Lab, store: MemoryStore
) -> None:
    nftables.up(lab.policy, rules=lab.rules)
    stray = f"{lab.client.v4} . {lab.client.mac}"
    strays = [("known4", stray, 3600), ("known4", f"192.0.2.5 . {lab.client.mac}", 9)]
    lab.rules.run("\n".join(nftables.add_all(strays)) + "\n")
    following = lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    store.watch(following.changed)
    lab.router.call(following.start)
    try:
        assert elements(lab, "known4") == {}
    finally:
        following.close()


@LAB
def test_what_somebody_takes_out_of_the_kernel_comes_back(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    nftables.up(lab.policy, rules=lab.rules)
    assert elements(lab, "known4") == {}
    known.resync()
    assert f"{lab.client.v4} . {lab.client.mac}" in elements(lab, "known4")


@LAB
def test_a_new_policy_is_put_in_force_with_the_same_ports_and_known_clients(
    lab: Lab, store: MemoryStore
) -> None:
    policies = [lab.policy]
    nftables.up(lab.policy, proxy_ports=(8080, 8082), rules=lab.rules)
    following = lab.router.call(KnownClients, lambda: policies[-1], store, lab.neighbours)
    store.watch(following.changed)
    lab.router.call(following.start)
    try:
        store.put(session(lab.client.mac))
        following.update([ClientId(lab.client.mac)])
        with connected(lab.client) as connection:
            policies.append(policy_of("clients:\n  - {address: 203.0.113.0/24, access: known}\n"))
            lab.router.call(following.reapply)
            assert answers(connection)
            assert proxy_ports(lab) == (8080, 8082)
            assert "203.0.113.0/24" in lab.router.run("nft", "list", "ruleset").stdout
            policies.append(
                policy_of(f"clients:\n  - {{mac: {lab.client.mac}, access: blocked}}\n")
            )
            lab.router.call(following.reapply)
            assert not answers(connection)
        nftables.down(rules=lab.rules)
        lab.router.call(following.reapply)
        assert nftables.show(rules=lab.rules) is None, "rules that a user has taken down stay down"
    finally:
        following.close()


@LAB
def test_the_garden_follows_its_names(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nftables.up(lab.policy, rules=lab.rules)
    found = {"status.example.org": ["198.51.100.3", "2001:db8:2::3"]}
    asked: list[str] = []

    def resolver(name: str) -> list[Address]:
        asked.append(name)
        if not found[name]:
            raise OSError("no such name")
        return [parse_address(text) for text in found[name]]

    monkeypatch.setattr(garden_addresses, "resolve", resolver)
    monkeypatch.setattr(garden_addresses, "EVERY", 0.5)
    following = lab.router.call(GardenFollower, lambda: lab.policy)
    lab.router.call(following.start)
    try:
        wait_for(lambda: "198.51.100.3" in elements(lab, "garden4_8081"))
        wait_for(lambda: "2001:db8:2::3" in elements(lab, "garden6_8081"))
        assert set(asked) == {"status.example.org"}, "www.example.org is mitmproxy's"
        found["status.example.org"] = ["198.51.100.4"]
        following.look_up_now()
        wait_for(lambda: "198.51.100.4" in elements(lab, "garden4_8081"))
        wait_for(lambda: "198.51.100.3" not in elements(lab, "garden4_8081"))
        found["status.example.org"] = []
        wait_for(lambda: elements(lab, "garden4_8081") == {})
        assert caplog.text.count("Cannot resolve status.example.org, a name in the policy") == 1
    finally:
        following.close()


@LAB
def test_without_the_table_nothing_fails_and_up_puts_everybody_in(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    seen(lab, lab.client)
    nftables.down(rules=lab.rules)
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)
    assert f"{lab.client.v4} . {lab.client.mac}" in elements(lab, "known4")


@LAB
@pytest.mark.timeout(600)
def test_traffic_that_the_kernel_forwards_puts_an_idle_session_off(
    lab: Lab, store: MemoryStore
) -> None:
    # Where the machine stands still for seconds, one that may be idle for longer.
    assert any(is_put_off(lab, store, idle) for idle in (2.0, 8.0, 32.0))


@LAB
def test_traffic_is_heard_of_although_its_counter_began_again(
    lab: Lab, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_clients, "RESYNC", math.inf)  # it adds elements again, too
    nftables.up(lab.policy, rules=lab.rules)
    now = it_is = clock.now()
    following = lab.router.call(
        KnownClients, lambda: lab.policy, store, lab.neighbours, now=lambda: it_is
    )
    mac = parse_client_id(lab.client.mac)
    store.put(session(mac, idle=600.0))
    try:
        lab.client.namespace.call(pings, ROUTER4, 1)  # so that its address is known
        address, mac_of = parse_address(lab.client.v4), lab.neighbours.find_mac
        wait_for(lambda: mac_of(address) == lab.client.mac)
        lab.router.call(following.start)
        assert elements(lab, "known4")
        for after, packets in ((100.0, 5), (200.0, 1), (300.0, 1)):
            assert lab.client.namespace.call(pings, ORIGIN4, packets, packets) == packets
            it_is = now + after
            following.changed(mac)  # extends the elements that are due, or adds them again
            wait_for(lambda at=it_is: last_seen(store, mac) == at)  # type: ignore[misc]
    finally:
        following.close()


def last_seen(store: MemoryStore, client: ClientId) -> float | None:
    found = store.find([client], clock.now())
    return found.last_seen if found else None


def is_put_off(lab: Lab, store: MemoryStore, idle: float) -> bool:
    """Whether a session is there after twice its idle time of traffic; after silence it is not."""
    policy = replace(lab.policy, sessions=replace(lab.policy.sessions, idle=idle))
    nftables.up(policy, rules=lab.rules)
    following = lab.router.call(KnownClients, lambda: policy, store, lab.neighbours)
    store.watch(following.changed)
    lab.router.call(following.start)
    try:
        store.put(session(lab.client.mac, idle=idle))
        following.update([ClientId(lab.client.mac)])
        with connected(lab.client) as connection:
            end, stays = time.monotonic() + 2 * idle, True
            while stays and time.monotonic() < end:
                time.sleep(0.1)
                stays = answers(connection, 2 * idle)
            wait_for(lambda: elements(lab, "known4") == {})
            assert not answers(connection, 3)
        return stays
    finally:
        following.close()


# The rules, packet by packet.


@LAB
def test_a_name_in_the_garden_is_open_on_its_port_where_it_was_found(
    lab: Lab, known: KnownClients
) -> None:
    client = lab.client

    def reaches(address: str, port: int) -> bool:
        def connect() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection((address, port), SOON).close()
                return True
            return False

        return client.namespace.call(connect)

    listener = lab.origin.call(socket.create_server, ("", 8081))
    try:
        assert not reaches(STATUS4, 8081)
        nftables.update_names(
            lab.policy, "status.example.org", [parse_address(STATUS4)], 60, lab.rules
        )
        assert reaches(STATUS4, 8081)
        assert not reaches(ORIGIN4, 8081)
        assert not reaches(STATUS4, 8443)
        nftables.up(lab.policy, rules=lab.rules)
        assert reaches(STATUS4, 8081), "kept when the rules are put in force again"
        nftables.up(lab.policy, rules=lab.rules)
        lab.rules.run("flush set inet capport garden4_8081\n")
        assert not reaches(STATUS4, 8081)
        client.run("getent", "ahosts", "evil.status.example.org")
        client.run("getent", "ahosts", "status.example.org")
        assert elements(lab, "garden4_8081") == {}, "what is asked for opens nothing"
    finally:
        listener.close()


@LAB
def test_several_proxies_share_the_clients_by_address(lab: Lab) -> None:
    ports = (9001, 9002)
    nftables.up(lab.policy, proxy_ports=ports, rules=lab.rules)
    listeners = [lab.router.call(socket.create_server, ("", port)) for port in ports]
    found: dict[str, set[int]] = {}
    addresses = [f"192.0.2.{n}" for n in range(40, 80)]  # by a hash: all at one, once in 2**39
    lab.client.namespace.ip(*(f"address add {a}/24 dev eth0" for a in addresses))
    try:
        for address in addresses * 2:
            with lab.client.namespace.call(
                socket.create_connection, (ORIGIN4, 80), SOON, (address, 0)
            ):
                (listener,), _, _ = select.select(listeners, [], [], SOON)
                accepted, peer = listener.accept()
                found.setdefault(peer[0], set()).add(accepted.getsockname()[1])
                accepted.close()
    finally:
        for listener in listeners:
            listener.close()
        lab.client.namespace.ip(*(f"address del {a}/24 dev eth0" for a in addresses))
        nftables.up(lab.policy, rules=lab.rules)
    assert found.keys() == set(addresses)
    assert all(len(ports) == 1 for ports in found.values()), "a client stays with its proxy"
    assert set.union(*found.values()) == set(ports)


@LAB
def test_one_client_has_only_so_many_connections(lab: Lab, known: KnownClients) -> None:
    """The same number of new connections in a second, and the next client does not notice."""
    client, other = lab.clients
    listener = lab.router.call(socket.create_server, ("", 8080), backlog=500)
    held: list[socket.socket] = []

    def connect(limit: float = 4) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_connection((ORIGIN4, 80), limit)
        return None

    try:
        for _ in range(80):
            made = client.namespace.call(connect)
            if made is None:
                break
            held.append(made)
        assert 40 <= len(held) <= 64
        last = other.namespace.call(connect, SOON)
        assert last is not None
        held.append(last)
    finally:
        for made in held:
            made.close()
        listener.close()


@LAB
def test_made_up_macs_ask_no_more_than_all_unknown_clients_together_may(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    """A bound by MAC alone could be evaded."""
    client, other = lab.clients
    router_mac = lab.router.run("cat", "/sys/class/net/br-lan/address").stdout.strip()
    began = time.monotonic()
    client.namespace.call(_ask_as_many, router_mac, client.v4, 1500)
    seconds = time.monotonic() - began + 1
    wait_for(lambda: questions(lab) > 100)
    time.sleep(0.3)
    assert questions(lab) <= 200 + 100 * (seconds + 1)
    store.put(session(other.mac))
    known.update([ClientId(other.mac)])
    assert other.status(f"http://{ORIGIN4}/") == 200


def questions(lab: Lab) -> int:
    """How many of those with made up MACs have got through to the origin's name server."""
    return sum("tunnelled" in str(packet) for packet in lab.packets())


def _ask_as_many(router_mac: str, source: str, count: int) -> None:
    """DNS questions for a name each, from a MAC each."""
    to = bytes.fromhex(router_mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for number in range(count):
            name = f"n{number}".encode()
            body = number.to_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + bytes([len(name)]) + name
            body += b"\x09tunnelled\x07example\x03com\0\0\1\0\1"
            mac = b"\x02\x99" + number.to_bytes(4)
            raw.send(to + mac + b"\x08\0" + _datagram(source, ROUTER4, 53, body))


@LAB
@pytest.mark.parametrize("version", [4, 6])
def test_nobody_opens_a_connection_to_a_known_client_from_outside(
    lab: Lab, store: MemoryStore, known: KnownClients, version: int
) -> None:
    client = lab.client
    store.put(session(client.mac))
    known.update([ClientId(client.mac)])
    far, near = ((ORIGIN4, client.v4), (ORIGIN6, client.v6))[version == 6]
    wait_for(lambda: echoes(client, far) and bool(elements(lab, f"known{version}")))

    def connect() -> None:
        socket.create_connection((near, 2323), 1).close()

    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    listener = client.namespace.call(socket.create_server, (near, 2323), family=family)
    with listener, pytest.raises(TimeoutError):
        lab.origin.call(connect)


@LAB
def test_an_address_on_the_link_without_a_mac_or_of_the_router_is_no_clients(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    """Otherwise any MAC on the link could send from it."""
    for address in ("192.0.2.99", ROUTER4, ROUTER6, "2001:db8:1::99"):
        store.put(session(address))
    lab.router.call(known.resync)
    assert "192.0.2.99" not in elements(lab, "routed4")
    assert "2001:db8:1::99" not in elements(lab, "routed6")
    router_mac = lab.router.run("cat", "/sys/class/net/br-lan/address").stdout.strip()
    before = len(lab.reached())
    for source in (ROUTER4, "192.0.2.99"):
        lab.client.namespace.call(_spoof, router_mac, lab.client.mac, source)
    lab.client.namespace.call(_spoof6, router_mac, lab.client.mac, ROUTER6)
    await_router(lab)
    assert not [line for line in lab.reached()[before:] if line.startswith("udp")]


def _spoof6(router_mac: str, mac: str, source: str) -> None:
    """The same as `_spoof`, over IPv6."""
    to, by = (bytes.fromhex(text.replace(":", "")) for text in (router_mac, mac))
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, ORIGIN6)
    udp = (40000).to_bytes(2) + (7).to_bytes(2) + (12).to_bytes(2) + b"\0\0" + b"away"
    words = ends + len(udp).to_bytes(4) + (17).to_bytes(4) + udp
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + (~total & 0xFFFF).to_bytes(2) + udp[8:]
    head = b"\x60\0\0\0" + len(udp).to_bytes(2) + b"\x11\x40" + ends
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for _ in range(5):
            raw.send(to + by + b"\x86\xdd" + head + udp)


@LAB
def test_what_a_known_mac_was_learned_at_ends_with_its_session(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    store.put(session(lab.client.mac))
    known.update([ClientId(lab.client.mac)])
    lab.rules.run("add element inet capport learned4 { 192.0.2.98 timeout 10s }\n")
    store.revoke(ClientId(lab.client.mac))
    wait_for(lambda: "192.0.2.98" not in elements(lab, "learned4"))


@LAB
def test_the_router_answers_pings_but_not_a_flood_of_them(lab: Lab, known: KnownClients) -> None:
    assert lab.client.namespace.call(pings, ROUTER4, 1)
    assert not lab.client.namespace.call(pings, ORIGIN4, 0)
    began = time.monotonic()
    answered = lab.client.namespace.call(pings, ROUTER4, 1, 40)
    assert answered <= 11 + 5 * (time.monotonic() - began)
    assert lab.clients[1].namespace.call(pings, ROUTER4, 1)


@pytest.mark.rfc(8908, "4.1", "SHOULD also permit connections to Network Time Protocol servers")
@LAB
def test_the_time_is_to_be_had_at_the_router_and_nothing_else_by_that_way(
    lab: Lab, known: KnownClients
) -> None:
    """A check of a certificate needs the time (NTP, RFC 5905)."""
    client = lab.client

    def ask(address: str, expected: int, count: int = 1, length: int = 48) -> int:
        answered = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
            talk.connect((address, 123))
            with contextlib.suppress(OSError):
                for _ in range(count):
                    talk.send(b"\x23".ljust(length, b"\0"))
                while answered < count:
                    talk.settimeout(SOON if answered < expected else QUIET)
                    answered += bool(talk.recv(100))
        return answered

    with ntp_server(lab.router, ROUTER4), ntp_server(lab.origin, STATUS4):
        assert client.namespace.call(ask, ROUTER4, 1)
        # Extension fields carry anything.
        assert not client.namespace.call(ask, ROUTER4, 0, length=68)
        assert not client.namespace.call(ask, STATUS4, 0)
        text = POLICY.replace("status.example.org:8081", "status.example.org:123")
        policy = policy_file.parse(text.replace("{folder}", "/tmp"), "lab.yaml", Path("/"))
        nftables.up(policy, rules=lab.rules)
        found = [parse_address(STATUS4)]
        nftables.update_names(policy, "status.example.org", found, 60, lab.rules)
        assert client.namespace.call(ask, STATUS4, 1)
        assert not client.namespace.call(ask, STATUS4, 0, length=68)
        assert not client.namespace.call(ask, ORIGIN4, 0)
        # Bounded: a client can fill its 48 bytes freely.
        began = time.monotonic()
        answered = client.namespace.call(ask, STATUS4, 1, count=30)
        assert answered <= 11 + (time.monotonic() - began)


@contextlib.contextmanager
def ntp_server(namespace: Namespace, address: str) -> Iterator[None]:
    """Answers datagrams on the port of NTP, as a server does, with 48 bytes."""
    server = namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 123))

    server.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                _, asker = server.recvfrom(200)
                server.sendto(bytes(48), asker)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        server.close()


@LAB
@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_what_is_refused_is_refused_at_once(lab: Lab, known: KnownClients, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def tcp() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as talk:
            talk.settimeout(SOON)
            talk.connect((address, 7))

    def quic() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as talk:
            talk.settimeout(SOON)
            talk.connect((address, 443))
            talk.send(b"initial")
            talk.recv(100)

    before = len(lab.reached())
    with pytest.raises(ConnectionRefusedError):
        lab.client.namespace.call(tcp)
    with pytest.raises(OSError, match=r"Permission denied|No route to host|unreachable"):
        lab.client.namespace.call(quic)
    assert len(lab.reached()) == before


@LAB
def test_under_inspection_known_clients_go_to_the_proxy_and_not_past_it(
    lab: Lab, store: MemoryStore
) -> None:
    store.put(session(lab.client.mac))
    policy = policy_of("tls: {known: inspect}\n")
    lab.router.call(known_clients.up, policy, store, lab.neighbours)
    listener = lab.router.call(socket.create_server, ("", 8080))
    listener.settimeout(SOON)
    try:
        lab.client.namespace.call(socket.create_connection, (ORIGIN4, 443), SOON).close()
        listener.accept()[0].close()
        assert echoes(lab.client, ORIGIN4)
        assert not lab.client.namespace.call(_quic_answers, 3)
        assert lab.client.status(f"http://{ORIGIN4}/") == 200, "port 80 is not inspected"
    finally:
        listener.close()
        nftables.up(lab.policy, rules=lab.rules)
    assert echoes_quic_when_known(lab, store)


def _quic_answers(seconds: float = SOON) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
        talk.settimeout(seconds)
        with contextlib.suppress(OSError):
            talk.connect((ORIGIN4, 443))
            talk.send(b"initial")
            return talk.recv(100) == b"initial"
    return False


def echoes_quic_when_known(lab: Lab, store: MemoryStore) -> bool:
    lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)
    return lab.client.namespace.call(_quic_answers)


@LAB
def test_forget_drops_one_clients_connections_and_not_those_to_the_proxy(
    lab: Lab, store: MemoryStore, known: KnownClients
) -> None:
    client, other = lab.clients
    lab.rules.run(ruletext.ruleset(lab.policy, tracked=True))
    listener = lab.router.call(socket.create_server, ("", 8080))
    redirected = client.namespace.call(socket.create_connection, (ORIGIN4, 80), SOON)
    for one in (client, other):
        store.put(session(one.mac))
        known.update([ClientId(one.mac)])
    # By their ports, because packets of earlier connections may be tracked again.
    with connected(client) as mine, connected(other) as theirs, redirected, listener:
        assert lab.router.call(conntrack.forget, [parse_address(client.v4)]) >= 1
        entries = lab.router.run("conntrack", "-L").stdout
        assert f"sport={redirected.getsockname()[1]} dport=80 " in entries
        assert f"sport={theirs.getsockname()[1]} dport=7 " in entries
        assert (
            f"src={client.v4} dst={ORIGIN4} sport={mine.getsockname()[1]} dport=7 " not in entries
        )
        with connected(client, ORIGIN6) as sixth:
            assert lab.router.call(conntrack.forget, [parse_address(client.v6)]) >= 1
            assert f"sport={sixth.getsockname()[1]} dport=7 " not in tracked(lab)
    assert lab.router.call(conntrack.forget, [parse_address("2001:db8::1")]) == 0


@LAB
def test_a_question_is_answered_while_others_change_the_rules(lab: Lab) -> None:
    """The kernel breaks such listings off with EINTR."""
    nftables.up(lab.policy, rules=lab.rules)
    pair = f"192.0.2.9 . {lab.client.mac}"
    commands = "\n".join(nftables.renew_all([("known4", pair, 60)])) + "\n"
    lab.rules.run(commands)
    over, changes = threading.Event(), [0, 0, 0]

    def change(number: int) -> None:
        rules = lab.router.call(Nftables)
        while not over.is_set():
            rules.run(commands)
            changes[number] += 1
        rules.close()

    with ThreadPoolExecutor(3) as pool:
        changing = [pool.submit(change, number) for number in range(3)]
        try:
            asked = 0
            while asked < 200 or min(changes) < 10:
                lab.rules.run(f"get element inet capport known4 {{ {pair} }}")
                assert elements(lab, "known4").keys() == {pair}
                asked += 1
        finally:
            over.set()
        for future in changing:
            future.result()


@LAB
def test_nftables_that_is_closed_raises_an_error(lab: Lab) -> None:
    rules = lab.router.call(Nftables)
    rules.close()
    rules.close()
    with pytest.raises(ValueError, match="closed"):
        rules.run("list tables")
