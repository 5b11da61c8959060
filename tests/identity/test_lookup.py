"""The neighbour table in one dump, against the kernel's own in a namespace."""

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

import requires
from capport.identity import lookup
from capport.identity.neighbours import NetlinkNeighbours
from lab.namespaces import Namespace, let_go, namespaces

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
    found = network.call(lookup.table)
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
    found = network.call(lookup.table)
    with contextlib.closing(network.call(NetlinkNeighbours)) as replica:
        assert found == dict(replica.items())
    assert len(found) == 253 + 798


def test_a_namespace_without_neighbours_has_none(network: Namespace) -> None:
    assert network.call(lookup.table) == {}
