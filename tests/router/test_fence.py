"""What the table has not marked is not forwarded, even after a flush or without a portal."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

import requires
from capport.router import fence, known_clients, nftables
from capport.router.fence import Fence
from capport.router.known_clients import KnownClients
from capport.router.restorer import Restorer
from capport.stores.memory import MemoryStore
from lab.namespaces import Namespace, veth, wait_for
from lab.network import CLIENT_SIDE, ORIGIN4, ORIGIN6, ROUTER4, ROUTER6, STATUS4, Lab
from router.granting import grant
from router.pinging import pings

pytestmark = pytest.mark.lab

FLUSHES = ["flush ruleset", "delete table inet capport"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=2, portal=False, name="fence") as it:
        yield it


@pytest.fixture
def store(lab: Lab) -> MemoryStore:
    """The first client is known."""
    store = MemoryStore()
    grant(store, lab.client.mac, 3600)
    return store


@pytest.fixture
def up(lab: Lab, store: MemoryStore) -> None:
    lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def portal(lab: Lab, up: None, store: MemoryStore, reports: list[str]) -> Iterator[None]:
    """A running portal's part: it keeps the rules."""
    known = lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    restorer = lab.router.call(Restorer, known, reports.append)
    store.watch(known.changed)
    lab.router.call(known.start)
    lab.router.call(restorer.start)
    yield
    restorer.close()
    known.close()


def reaches(lab: Lab, number: int, origin: str = ORIGIN4) -> bool:
    host = f"[{origin}]" if ":" in origin else origin
    return lab.clients[number].status(f"http://{host}/") == 200


def is_fenced(lab: Lab) -> bool:
    with contextlib.closing(lab.router.call(Fence)) as asked:
        return asked.interfaces() == {CLIENT_SIDE}


def ip_rules(namespace: Namespace) -> list[str]:
    return [namespace.run("ip", family, "rule").stdout for family in ("-4", "-6")]


@contextlib.contextmanager
def flood(lab: Lab, number: int) -> Iterator[None]:
    """Datagrams from that client to the origin all the time, in both families."""
    over, sent = threading.Event(), [0]

    def send() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fourth,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sixth,
        ):
            while not over.wait(0.0002):
                for sender, address in ((fourth, ORIGIN4), (sixth, ORIGIN6)):
                    with contextlib.suppress(OSError):  # the answers to it
                        sender.sendto(b"out", (address, 9))
                sent[0] += 1

    thread = threading.Thread(target=lambda: lab.clients[number].namespace.call(send))
    thread.start()
    try:
        wait_for(lambda: sent[0] > 10)
        yield
        so_far = sent[0]
        wait_for(lambda: sent[0] > so_far + 10)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("how", FLUSHES)
def test_nothing_of_an_unknown_client_gets_out_while_the_portal_puts_the_rules_back(
    lab: Lab, portal: None, reports: list[str], how: str
) -> None:
    before = len(lab.reached())
    with flood(lab, 1):
        for times in range(1, 11):
            lab.rules.run(f"{how}\n")
            wait_for(lambda times=times: len(reports) == times)  # type: ignore[misc]
    assert lab.reached()[before:] == []
    for origin in (ORIGIN4, ORIGIN6):
        assert reaches(lab, 0, origin)


@pytest.mark.parametrize("how", FLUSHES)
def test_without_the_portal_a_flush_leaves_clients_shut_in_and_nobody_else(
    lab: Lab, up: None, store: MemoryStore, how: str
) -> None:
    assert reaches(lab, 0)
    before = len(lab.reached())
    with other_network(lab) as other:
        lab.rules.run(f"{how}\n")
        with flood(lab, 0), flood(lab, 1):
            pass
        assert lab.reached()[before:] == []
        for number, client in enumerate(lab.clients):
            assert not reaches(lab, number)
            for router in (ROUTER4, ROUTER6):
                assert client.namespace.call(pings, router, 1)
        for beyond in (lab.router, other):
            for origin in (ORIGIN4, ORIGIN6):
                assert beyond.call(pings, origin, 1)
        lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)
    assert reaches(lab, 0)
    assert not reaches(lab, 1)


@contextlib.contextmanager
def other_network(lab: Lab) -> Iterator[Namespace]:
    """A machine on another network of the router, with no clients."""
    other = Namespace("fence-other")
    try:
        veth(other, "eth0", lab.router, "lan2")
        lab.router.ip(
            "address add 203.0.113.1/24 dev lan2",
            "address add 2001:db8:3::1/64 dev lan2 nodad",
            "link set lan2 up",
        )
        other.ip(
            "address add 203.0.113.2/24 dev eth0",
            "address add 2001:db8:3::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 203.0.113.1",
            "route add default via 2001:db8:3::1",
        )
        yield other
    finally:
        other.delete()


def test_down_leaves_no_rule_behind_while_several_keep_them(lab: Lab, portal: None) -> None:
    with contextlib.closing(lab.router.call(Fence)) as mine:
        for _ in range(20):
            lab.router.call(known_clients.down)
            nftables.up(lab.policy, rules=lab.rules)
            wait_for(lambda: is_fenced(lab))
            nftables.down(rules=lab.rules)
            wait_for(lambda: not is_fenced(lab))
            mine.put(CLIENT_SIDE)
            lab.router.call(known_clients.up, lab.policy, MemoryStore(), lab.neighbours)
        lab.router.call(known_clients.down)
    # The portal may put it back before it hears that the rules were meant to go.
    wait_for(lambda: all("prohibit" not in rules for rules in ip_rules(lab.router)))


def test_the_rule_that_somebody_takes_away_is_back(
    lab: Lab, portal: None, reports: list[str]
) -> None:
    for times, family in enumerate(("-4", "-6"), 1):
        lab.router.run("ip", family, "rule", "del", "priority", "1")
        wait_for(lambda times=times: len(reports) == times)  # type: ignore[misc]
        assert is_fenced(lab)
    assert reports[0] == (
        "another program removed the ip rule that stops clients while the table is missing; capport"
        " put it back"
    )


def test_up_twice_is_one_rule_and_another_interface_takes_it_along(lab: Lab, up: None) -> None:
    once = ip_rules(lab.router)
    assert "1:\tfrom all fwmark 0/0x20000000 iif br-lan prohibit proto 212\n" in once[0]
    lab.router.ip("rule add priority 1 iif br-lan fwmark 7 lookup main")  # somebody else's
    with contextlib.closing(lab.router.call(Fence)) as mine:
        assert not mine.put(CLIENT_SIDE)
        assert mine.put("br-lan2")
        assert mine.interfaces() == {"br-lan2"}
        assert mine.put(CLIENT_SIDE)
        lab.router.ip("rule del priority 1 iif br-lan fwmark 7 lookup main")
        assert ip_rules(lab.router) == once


def test_a_machine_without_ipv6_has_it_in_ipv4(
    lab: Lab, up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "FAMILIES", (socket.AF_INET, socket.AF_X25))
    with contextlib.closing(lab.router.call(Fence)) as mine:
        assert not mine.put(CLIENT_SIDE)
        assert mine.interfaces() == {CLIENT_SIDE}
        mine.take_away()
        assert mine.interfaces() == set()


MARKING = """
table inet marking {
chain marks { type filter hook prerouting priority mangle; meta mark set 7
}
}
"""


def test_others_marks_and_routing_go_on(lab: Lab, up: None, store: MemoryStore) -> None:
    lab.rules.run(MARKING)
    lab.router.ip(f"rule add priority 100 iif br-lan fwmark 7/0xff to {STATUS4} prohibit")
    try:
        assert reaches(lab, 0)
        assert reaches(lab, 0, ORIGIN6)
        assert not reaches(lab, 1)
        assert not reaches(lab, 0, STATUS4)
    finally:
        lab.router.ip("rule del priority 100")
        lab.rules.run("delete table inet marking\n")
        lab.router.call(known_clients.up, lab.policy, store, lab.neighbours)
    assert reaches(lab, 0, STATUS4)
