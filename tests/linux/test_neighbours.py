"""The replica of the neighbour table: in real namespaces on a real bridge, and against a model."""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

import requires
from capport.core.client import Address, Mac, is_random, parse_address, parse_mac
from capport.linux import Neighbours, neighbour_lookup, neighbours, netlink
from capport.linux.neighbour_lookup import Neighbour
from capport.linux.neighbours import NeighbourTable, NetlinkNeighbours
from conftest import SOON
from lab.namespaces import Namespace, let_go, namespaces, veth, wait_for

lab = pytest.mark.lab

V4 = parse_address("192.0.2.7")
V6 = parse_address("2001:db8:1::7")
FIRST = parse_mac("02:00:00:00:00:01")
SECOND = parse_mac("02:00:00:00:00:02")


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """A router with a bridge, `br-lan`, and two clients on it, both without an address."""
    requires.check(requires.namespaces())
    with namespaces("nb-router", "nb-one", "nb-two") as (router, one, two):
        router.ip(
            "link add br-lan type bridge",
            "link set br-lan up",
            "address add 192.0.2.1/24 dev br-lan",
            "address add 2001:db8:1::1/64 dev br-lan nodad",
        )
        for client, port, mac in ((one, "port1", FIRST), (two, "port2", SECOND)):
            veth(client, "eth0", router, port)
            client.ip(f"link set eth0 address {mac}", "link set eth0 up")
            router.ip(f"link set {port} master br-lan", f"link set {port} up")
        yield router, one, two
    let_go()


def take(client: Namespace, *addresses: str) -> None:
    client.ip(*(f"address add {a} dev eth0 {'nodad' if ':' in a else ''}" for a in addresses))


def leave(client: Namespace, *addresses: str) -> None:
    client.ip(*(f"address del {address} dev eth0" for address in addresses))


def announce(client: Namespace, address: str) -> None:
    """Asks for the router's MAC, as a new client does, so that the router learns the client."""
    target = "2001:db8:1::1" if ":" in address else "192.0.2.1"
    client.ip("neighbour flush dev eth0")
    client.call(_connect, address, target)


def _connect(address: str, target: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((address, 0))
        sender.sendto(b"", (target, 9))


@pytest.fixture
def replica(network: tuple[Namespace, Namespace, Namespace]) -> Iterator[NetlinkNeighbours]:
    router = network[0]
    router.ip("neighbour flush all")
    following = router.call(NetlinkNeighbours, ["br-lan"])
    yield following
    following.close()


@lab
def test_an_address_has_the_mac_of_the_device_that_took_it_over(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    _, one, two = network
    changed: list[Address] = []
    replica.watch(changed.append)
    take(one, "192.0.2.7/24")
    announce(one, "192.0.2.7")
    wait_for(lambda: replica.find_mac(V4) == FIRST)
    leave(one, "192.0.2.7/24")
    take(two, "192.0.2.7/24")
    try:
        announce(two, "192.0.2.7")
        wait_for(lambda: replica.find_mac(V4) == SECOND)
        wait_for(lambda: changed.count(V4) >= 2)
        assert V4 in replica.addresses(SECOND)
        assert V4 not in replica.addresses(FIRST)
    finally:
        leave(two, "192.0.2.7/24")


@lab
def test_several_addresses_of_one_mac_are_found_under_it(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    _, one, _ = network
    mine = ["192.0.2.7/24", "2001:db8:1::7/64", "2001:db8:1::8/64"]
    take(one, *mine)
    try:
        for address in mine:
            announce(one, address.partition("/")[0])
        wait_for(lambda: len({V4, V6} & set(replica.addresses(FIRST))) == 2)
        wait_for(lambda: replica.find_mac(parse_address("2001:db8:1::8")) == FIRST)
        assert is_random(FIRST)
    finally:
        leave(one, *mine)


@lab
def test_a_client_that_has_connected_is_found_at_its_first_packet(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    """Its MAC is there when `accept` returns, although the router had never seen it."""
    router, one, _ = network
    take(one, "192.0.2.7/24")
    listener = router.call(socket.create_server, ("192.0.2.1", 0))
    listener.settimeout(SOON)
    try:
        for _ in range(20):
            router.ip("neighbour flush dev br-lan")
            wait_for(lambda: replica.find_mac(V4) is None)
            client = one.call(
                socket.create_connection, listener.getsockname(), SOON, ("192.0.2.7", 0)
            )
            accepted, peer = listener.accept()
            found = replica.find_mac(parse_address(peer[0]))
            client.close()
            accepted.close()
            assert found == FIRST
    finally:
        listener.close()
        leave(one, "192.0.2.7/24")


@lab
@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8:1::9"])
@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("permanent", True),
        ("reachable", True),
        ("stale", True),
        ("failed", False),
        ("incomplete", False),
        ("noarp", False),
    ],
)
def test_only_entries_that_answered_have_a_mac(
    network: tuple[Namespace, Namespace, Namespace],
    replica: NetlinkNeighbours,
    address: str,
    state: str,
    usable: bool,
) -> None:
    router = network[0]
    at = f"{address} dev br-lan"
    router.ip(f"neighbour replace {at} lladdr {SECOND} nud permanent")
    wait_for(lambda: replica.find_mac(parse_address(address)) == SECOND)
    # the kernel retries what is incomplete, so its state does not last: what is asked is before
    router.ip(f"neighbour replace {at} lladdr {FIRST} nud {state}")
    wait_for(lambda: replica.find_mac(parse_address(address)) == (FIRST if usable else None))
    again = router.call(NetlinkNeighbours, ["br-lan"])
    assert again.find_mac(parse_address(address)) == (FIRST if usable else None)
    again.close()
    router.ip(f"neighbour replace {at} lladdr {FIRST} nud permanent", f"neighbour del {at}")
    wait_for(lambda: replica.find_mac(parse_address(address)) is None)


@lab
def test_the_dump_holds_what_was_there_before(
    network: tuple[Namespace, Namespace, Namespace],
) -> None:
    router = network[0]
    router.ip(
        f"neighbour replace 192.0.2.77 dev br-lan lladdr {FIRST} nud permanent",
        f"neighbour replace 2001:db8:1::77 dev br-lan lladdr {SECOND} nud permanent",
    )
    late = router.call(NetlinkNeighbours)
    elsewhere = router.call(NetlinkNeighbours, ["port1"])
    try:
        assert late.find_mac(parse_address("192.0.2.77")) == FIRST
        assert late.find_mac(parse_address("2001:db8:1::77")) == SECOND
        assert elsewhere.items() == []
    finally:
        late.close()
        elsewhere.close()
        router.ip("neighbour flush nud permanent dev br-lan")


@contextlib.contextmanager
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Makes readers of the kernel's reports wait, with the lock; the event says that one does."""
    waits, goes_on, reports = threading.Event(), threading.Event(), netlink.reports

    def late(kernel: socket.socket) -> Iterator[bytes]:
        waits.set()
        goes_on.wait()
        return reports(kernel)

    with monkeypatch.context() as patch:
        patch.setattr(netlink, "reports", late)
        try:
            yield waits
        finally:
            goes_on.set()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Each socket that a table listens at, the last one at the end."""
    made, listen = list[socket.socket](), netlink.listen

    def noted(protocol: int, groups: int, *, buffer: int = 0) -> socket.socket:
        made.append(listen(protocol, groups, buffer=buffer))
        return made[-1]

    monkeypatch.setattr(netlink, "listen", noted)
    return made


@lab
def test_an_overflow_leads_to_a_dump_and_not_to_a_stale_table(
    network: tuple[Namespace, Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change that matters is lost among thousands while the thread cannot read."""
    router = network[0]
    router.ip(f"neighbour replace 192.0.2.50 dev br-lan lladdr {FIRST} nud permanent")
    monkeypatch.setattr(neighbours, "RECEIVE_BUFFER", 1)  # the kernel's minimum
    small = router.call(NetlinkNeighbours, ["br-lan"])
    try:
        dumps = small.dumps
        flood = [
            f"neighbour replace 192.0.2.{n} dev br-lan lladdr {mac} nud permanent"
            for mac in (FIRST, SECOND)
            for n in range(100, 200)
        ]
        flood.insert(150, "neighbour del 192.0.2.50 dev br-lan")
        with nothing_is_read(monkeypatch):
            router.ip(*flood)
        wait_for(lambda: small.dumps > dumps)
        wait_for(lambda: small.find_mac(parse_address("192.0.2.50")) is None)
        wait_for(lambda: len(small.addresses(SECOND)) == 100)
        assert small.addresses(FIRST) == []
    finally:
        small.close()
        router.ip("neighbour flush nud permanent dev br-lan")


@lab
def test_a_lost_socket_is_replaced_and_what_was_missed_is_found(
    network: tuple[Namespace, Namespace, Namespace],
    listening: list[socket.socket],
    replica: NetlinkNeighbours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = network[0]
    nothing, other = socket.socketpair()
    other.close()
    with nothing_is_read(monkeypatch):
        os.dup2(nothing.fileno(), listening[-1].fileno())  # recv() gives an error from here on
        listening[-1].shutdown(socket.SHUT_RDWR)
        router.ip(f"neighbour replace 192.0.2.60 dev br-lan lladdr {FIRST} nud permanent")
    nothing.close()
    try:
        wait_for(lambda: replica.find_mac(parse_address("192.0.2.60")) == FIRST)
        router.ip(f"neighbour replace 192.0.2.60 dev br-lan lladdr {SECOND} nud permanent")
        wait_for(lambda: replica.find_mac(parse_address("192.0.2.60")) == SECOND)
    finally:
        router.ip("neighbour flush nud permanent dev br-lan")


def test_a_kernel_that_does_not_answer_is_a_line_of_the_log_and_not_one_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    def fails(*_: object) -> Never:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with contextlib.closing(NetlinkNeighbours()) as following:
        monkeypatch.setattr(neighbour_lookup, "way", fails)
        assert all(following.is_on_link(V4) for _ in range(3))
        assert caplog.text.count("The kernel did not say how to reach 192.0.2.7") == 1
        monkeypatch.setattr(neighbour_lookup, "entries", fails)
        following.use(["lo"])  # one dump here, and then those of the thread
        wait_for(lambda: tries >= 6)
        assert not following.works
        monkeypatch.undo()
        wait_for(lambda: following.works)
    assert caplog.text.count("No dump of the neighbour table") == 1


@lab
def test_an_interface_that_comes_later_is_followed(
    network: tuple[Namespace, Namespace, Namespace],
) -> None:
    router = network[0]
    following = router.call(NetlinkNeighbours, ["later"])
    try:
        router.ip(
            "link add later type bridge",
            "link set later up",
            f"neighbour replace 198.51.100.9 dev later lladdr {FIRST} nud permanent",
        )
        # Asked inside the namespace: which interfaces there are depends on the thread that asks.
        address = parse_address("198.51.100.9")
        wait_for(lambda: router.call(following.find_mac, address) == FIRST)
        router.ip("link del later")
        wait_for(lambda: router.call(following.find_mac, address) is None)
    finally:
        following.close()


@lab
def test_another_interface_counts_as_soon_as_it_is_named(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    router, one, _ = network
    take(one, "192.0.2.7/24")
    try:
        announce(one, "192.0.2.7")
        wait_for(lambda: replica.find_mac(V4) == FIRST)
        router.call(replica.use, ["port2"])
        assert router.call(replica.find_mac, V4) is None
        assert not router.call(replica.is_on_link, V4)
        router.call(replica.use, ["br-lan"])
        assert router.call(replica.find_mac, V4) == FIRST
        assert router.call(replica.is_on_link, V4)
    finally:
        leave(one, "192.0.2.7/24")


def test_what_the_thread_cannot_read_is_logged_and_the_table_is_read_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(NetlinkNeighbours()) as following:

        def fails(kernel: socket.socket) -> Never:
            monkeypatch.undo()
            raise struct.error("a message that is not as it should be")

        monkeypatch.setattr(netlink, "reports", fails)
        dumps = following.dumps
        following.use(["lo"])  # one dump here
        wait_for(lambda: following.dumps > dumps + 1 and following.works)
    assert "Cannot follow the neighbour table; reading it again" in caplog.text


@lab
async def test_watchers_are_called_on_the_loop_they_came_from(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    router = network[0]
    heard: asyncio.Queue[tuple[Address, bool]] = asyncio.Queue()

    def watcher(address: Address) -> None:
        heard.put_nowait((address, asyncio.get_running_loop() is here))

    here = asyncio.get_running_loop()
    stop = replica.watch(watcher)
    router.ip(f"neighbour replace 192.0.2.61 dev br-lan lladdr {FIRST} nud permanent")
    ours = parse_address("192.0.2.61")
    async with asyncio.timeout(SOON):
        while (news := await heard.get())[0] != ours:  # of what was there before
            pass
    assert news[1]
    stop()
    stop()  # like a store's, it may be called again
    router.ip("neighbour del 192.0.2.61 dev br-lan")
    wait_for(lambda: replica.find_mac(ours) is None)
    await asyncio.sleep(0.05)
    assert ours not in {heard.get_nowait()[0] for _ in range(heard.qsize())}


@lab
def test_a_watcher_that_fails_does_not_stop_the_replica(
    network: tuple[Namespace, Namespace, Namespace], replica: NetlinkNeighbours
) -> None:
    router = network[0]

    def faulty(address: Address) -> None:
        raise RuntimeError(address)

    replica.watch(faulty)
    for mac in (FIRST, SECOND):
        router.ip(f"neighbour replace 192.0.2.62 dev br-lan lladdr {mac} nud permanent")
        wait_for(lambda mac=mac: replica.find_mac(parse_address("192.0.2.62")) == mac)  # type: ignore[misc]
    router.ip("neighbour del 192.0.2.62 dev br-lan")


@lab
def test_it_keeps_the_protocol_and_closes_twice(
    network: tuple[Namespace, Namespace, Namespace],
) -> None:
    following: Neighbours = network[0].call(NetlinkNeighbours)
    following.close()
    following.close()
    assert following.find_mac(V4) is None


MACS = st.sampled_from([FIRST, SECOND, None])
ENTRIES = st.builds(
    Neighbour,
    st.integers(1, 3),
    st.builds(
        lambda version, n: ip_address(struct.pack("!I", n) if version == 4 else n.to_bytes(16)),
        st.sampled_from([4, 6]),
        st.integers(1, 4),
    ),
    MACS,
)


@given(st.lists(st.one_of(ENTRIES, st.lists(ENTRIES, max_size=6)), max_size=40))
def test_the_replica_agrees_with_a_model(steps: list[Neighbour | list[Neighbour]]) -> None:
    table = NeighbourTable()
    model: dict[tuple[int, Address], Mac] = {}

    def mac_of(address: Address) -> Mac | None:
        found = {mac for (_, at), mac in model.items() if at == address}
        return found.pop() if len(found) == 1 else None

    for step in steps:
        seen = {address: mac_of(address) for _, address in model}
        if isinstance(step, Neighbour):
            model.pop((step.interface, step.address), None)
            if step.mac:
                model[step.interface, step.address] = step.mac
            changed = {step.address} if table.apply(step) else set()
        else:
            model = {(e.interface, e.address): e.mac for e in step if e.mac}
            changed = table.replace(step)
        addresses = {*seen, *(address for _, address in model)}
        assert changed == {a for a in addresses if seen.get(a) != mac_of(a)}
        for address in addresses:
            assert table.find_mac(address) == mac_of(address)
        for mac in (FIRST, SECOND):
            assert set(table.addresses(mac)) == {a for a in addresses if mac_of(a) == mac}


def test_a_look_up_costs_no_system_call_when_there_is_an_entry(
    network: tuple[Namespace, Namespace, Namespace],
    replica: NetlinkNeighbours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the socket cannot be read, an address in the table is still found."""
    router = network[0]
    router.ip(f"neighbour replace 192.0.2.63 dev br-lan lladdr {FIRST} nud permanent")
    wait_for(lambda: replica.find_mac(parse_address("192.0.2.63")) == FIRST)
    with nothing_is_read(monkeypatch) as waits:  # a look-up that wanted the socket would wait too
        router.ip(f"neighbour replace 192.0.2.64 dev br-lan lladdr {FIRST} nud permanent")
        assert waits.wait(SOON)
        assert replica.find_mac(parse_address("192.0.2.63")) == FIRST
    router.ip("neighbour del 192.0.2.63 dev br-lan", "neighbour del 192.0.2.64 dev br-lan")
