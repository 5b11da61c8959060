"""The neighbour table in one dump, against the kernel's own in a namespace."""

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

import requires
from capport.core.client import Way, parse_mac
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Policy
from capport.gate import Gate
from capport.linux import neighbour_lookup
from capport.linux.neighbours import NetlinkNeighbours
from capport.stores.memory import MemoryStore
from lab.namespaces import Namespace, let_go, namespaces, wait_for

pytestmark = [pytest.mark.lab, requires.namespaces()]

MAC, OTHER_MAC = "00:00:5e:00:53:07", "02:00:5e:00:53:08"  # RFC 7042 section 2.1.2


@pytest.fixture
def network() -> Iterator[Namespace]:
    with namespaces("lookup") as (made,):
        made.ip(
            "link add lan0 type bridge",
            "link add lan1 type bridge",
            "link set lan0 up",
            "link set lan1 up",
            "addr add 192.0.2.1/24 dev lan0",
            "addr add 2001:db8::1/64 dev lan0 nodad",
        )
        yield made
    let_go()


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        ((), {4, 6}),
        (("addr del 2001:db8::1/64 dev lan0",), {4}),  # its link-local address stays
        (("addr del 192.0.2.1/24 dev lan0",), {6}),
        (("link del lan0",), set()),
    ],
)
def test_an_interface_has_the_families_of_its_addresses(
    network: Namespace, removed: tuple[str, ...], left: set[int]
) -> None:
    network.ip("addr add 198.51.100.1/24 dev lan1", *removed)
    assert network.call(neighbour_lookup.families, "lan0") == left


def test_each_usable_entry_is_found(network: Namespace) -> None:
    network.ip(
        f"neigh add 192.0.2.7 lladdr {MAC} dev lan0 nud permanent",
        f"neigh add 2001:db8::7 lladdr {MAC} dev lan0 nud stale",
        f"neigh add 192.0.2.8 lladdr {OTHER_MAC} dev lan0 nud reachable",
        f"neigh add 192.0.2.9 lladdr {OTHER_MAC} dev lan0 nud failed",
        f"neigh add 192.0.2.10 lladdr {OTHER_MAC} dev lan0 nud noarp",
        "neigh add proxy 192.0.2.11 dev lan0",
        f"neigh add 192.0.2.12 lladdr {MAC} dev lan0 nud permanent",
        f"neigh add 192.0.2.12 lladdr {OTHER_MAC} dev lan1 nud permanent",
        f"neigh add 192.0.2.13 lladdr {MAC} dev lan0 nud permanent",
        f"neigh add 192.0.2.13 lladdr {MAC} dev lan1 nud permanent",
    )
    found = network.call(neighbour_lookup.table)
    assert found == {
        ip_address("192.0.2.7"): MAC,
        ip_address("2001:db8::7"): MAC,
        ip_address("192.0.2.8"): OTHER_MAC,
        ip_address("192.0.2.13"): MAC,
    }


def test_it_finds_what_the_replica_finds(network: Namespace) -> None:
    """More entries than one datagram holds: 32 KiB are some 450."""
    network.ip(
        *(
            f"neigh add 192.0.2.{n} lladdr 02:00:5e:00:53:{n % 200:02x} dev lan0 nud permanent"
            for n in range(2, 255)
        ),
        *(
            f"neigh add 2001:db8::{n:x} lladdr 02:00:5e:10:{n >> 8:02x}:{n & 255:02x} dev lan0"
            " nud permanent"
            for n in range(2, 800)
        ),
    )
    found = network.call(neighbour_lookup.table)
    with contextlib.closing(network.call(NetlinkNeighbours)) as replica:
        assert found == dict(replica.items())
    assert len(found) == 253 + 798


def test_a_namespace_without_neighbours_has_none(network: Namespace) -> None:
    assert network.call(neighbour_lookup.table) == {}


@pytest.fixture
def routed(network: Namespace) -> Namespace:
    network.ip(
        "link add wan0 type bridge",
        "link set wan0 up",
        "addr add 203.0.113.1/24 dev wan0",
        "link set lan1 arp off",  # as a tunnel is
        "addr add 10.8.0.1/24 dev lan1",
        "route add 198.51.100.0/24 via 192.0.2.2",
        "route add 192.0.2.128/25 via 203.0.113.2",
        "route add unreachable 10.9.0.0/24",
        "route add blackhole 10.10.0.0/24",
        "route add prohibit 10.11.0.0/24",
        "route add 2001:db8:1::/64 via 2001:db8::2",
    )
    return network


@pytest.mark.parametrize(
    ("address", "any_interface", "of_the_clients"),
    [
        ("192.0.2.7", True, True),
        ("2001:db8::7", True, True),
        ("fe80::7", True, True),
        ("203.0.113.7", True, False),  # on the other side
        ("198.51.100.7", False, False),  # behind another router
        ("192.0.2.200", False, False),  # the same, in a network that looks like the link's
        ("2001:db8:1::7", False, False),
        ("192.0.2.1", False, False),  # this machine itself
        ("2001:db8::1", False, False),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("10.8.0.7", False, False),  # no link with MACs
        ("10.9.0.7", False, False),  # no route
        ("10.10.0.7", False, False),
        ("10.11.0.7", False, False),
        ("10.12.0.7", False, False),
        ("2001:db8:2::7", False, False),
    ],
)
def test_on_the_link_is_where_the_kernel_needs_a_mac(
    routed: Namespace, address: str, any_interface: bool, of_the_clients: bool
) -> None:
    asked = ip_address(address)
    assert (routed.call(neighbour_lookup.way, asked) == Way(asked)) == any_interface
    with contextlib.closing(routed.call(NetlinkNeighbours, ["lan0"])) as replica:
        assert routed.call(replica.is_on_link, asked) == of_the_clients


@pytest.mark.parametrize(
    ("address", "hop"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("198.51.100.7", "192.0.2.2"),
        ("2001:db8:1::7", "2001:db8::2"),
        ("198.51.101.7", "2001:db8::2"),  # IPv4 by a router that has IPv6 alone (RFC 5549)
        ("fe80::7", "fe80::7"),
        ("10.8.0.7", None),  # no link with MACs
    ],
)
def test_the_way_is_by_whose_mac_frames_come(
    routed: Namespace, address: str, hop: str | None
) -> None:
    routed.ip("route add 198.51.101.0/24 via inet6 2001:db8::2 dev lan0")
    way = Way(ip_address(hop) if hop else None)
    assert routed.call(neighbour_lookup.way, ip_address(address)) == way
    # Nothing is known about a router that is not on the clients' side.
    with contextlib.closing(routed.call(NetlinkNeighbours, ["wan0"])) as replica:
        by_wan = way if address.startswith("fe80") else None
        assert routed.call(replica.way, ip_address(address)) == by_wan


@pytest.mark.parametrize("address", ["203.0.113.1", "192.0.2.1", "127.0.0.1", "10.9.0.7"])
def test_no_way_leads_to_this_machine_or_nowhere(routed: Namespace, address: str) -> None:
    assert routed.call(neighbour_lookup.way, ip_address(address)) is None


@pytest.fixture
def two_sided(network: Namespace) -> Namespace:
    network.ip(
        "link add wan0 type bridge",
        "link set wan0 up",
        "addr add 198.51.100.1/24 dev wan0",
        "addr add 2001:db8:2::1/64 dev wan0 nodad",
        "route add 203.0.113.0/28 via 192.0.2.2",
        "route add 203.0.113.8/30 via 198.51.100.2",
        "route add 2001:db8:3::/48 via 2001:db8::2",
        "route add 10.0.0.0/8 nexthop via 198.51.100.2 nexthop via 198.51.100.3",
        "route add 10.1.0.0/16 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "route add unreachable 10.9.0.0/24",
    )
    return network


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", True),
        ("192.0.2.1", False),  # this machine itself: sent to lo
        ("203.0.113.7", True),  # the client interface, by another router
        ("203.0.113.9", False),  # a part of it that is elsewhere
        ("198.51.100.7", False),
        ("2001:db8::7", True),
        ("2001:db8:3::7", True),
        ("2001:db8:2::7", False),
        ("10.7.0.7", False),  # two ways
        ("10.1.0.7", True),
        ("10.9.0.7", False),
    ],
)
@pytest.mark.parametrize(
    "default",
    [None, "via 192.0.2.2", "via 198.51.100.2", "nexthop via 192.0.2.2 nexthop via 192.0.2.3"],
)
def test_behind_an_interface_is_what_is_routed_there_but_by_the_default_route(
    two_sided: Namespace, address: str, expected: bool, default: str | None
) -> None:
    if default is not None:
        two_sided.ip(f"route add default {default}", "route add default via 2001:db8::2")
    assert two_sided.call(neighbour_lookup.is_behind, ip_address(address), "lan0") == expected
    for elsewhere in ("100.64.0.7", "2001:db8:9::7"):
        assert not two_sided.call(neighbour_lookup.is_behind, ip_address(elsewhere), "lan0")


def test_nothing_is_behind_an_interface_that_is_not_there(network: Namespace) -> None:
    assert not network.call(neighbour_lookup.is_behind, ip_address("192.0.2.7"), "other")


def test_a_blocked_device_does_not_pass_when_its_entry_is_flushed(network: Namespace) -> None:
    rules = ClientRules()
    rules.section(Access.BLOCKED, "lab.yaml")
    rules.add(parse_mac(MAC), 3)
    rules.section(Access.KNOWN, "lab.yaml")
    rules.add(ip_network("192.0.2.0/24"), 4)
    policy = Policy(login_url="", login_place=Place("login.example.net", 443), clients=rules)
    network.ip(f"neigh add 192.0.2.7 lladdr {MAC} dev lan0 nud permanent")
    with contextlib.closing(network.call(NetlinkNeighbours, ["lan0"])) as replica:
        gate = Gate(policy, MemoryStore(), neighbours=replica)
        assert network.call(gate.known, gate.client("192.0.2.7")) is None
        network.ip("neigh flush dev lan0 nud permanent")
        wait_for(lambda: gate.client("192.0.2.7").mac is None)
        assert network.call(gate.known, gate.client("192.0.2.7")) is None
        network.ip(f"neigh add 192.0.2.8 lladdr {OTHER_MAC} dev lan0 nud permanent")
        wait_for(lambda: gate.client("192.0.2.8").mac is not None)
        assert network.call(gate.known, gate.client("192.0.2.8")) is not None
