"""Places that no client reaches, and which clients reach services of the portal's own machine."""

from ipaddress import ip_address

import pytest

from capport.core.client import Address
from capport.core.reach import NOWHERE, Machine

OWN = ip_address("192.0.2.1")
MACHINE = Machine(frozenset({OWN}), frozenset({8080}))
CLIENT, ITSELF = ip_address("198.51.100.7"), ip_address("127.0.0.1")


@pytest.mark.parametrize(
    ("address", "port", "client", "listed", "because"),
    [
        ("203.0.113.9", 80, CLIENT, False, None),
        ("203.0.113.9", 8080, CLIENT, False, None),
        ("224.0.0.1", 80, CLIENT, False, "multicast, link-local or broadcast"),
        ("169.254.1.1", 80, CLIENT, True, "multicast, link-local or broadcast"),
        ("255.255.255.255", 80, ITSELF, False, "multicast, link-local or broadcast"),
        ("192.0.2.1", 22, CLIENT, False, "this machine's own"),
        ("127.0.0.1", 22, CLIENT, False, "this machine's own"),
        ("0.0.0.0", 22, CLIENT, False, "this machine's own"),
        ("192.0.2.1", 22, CLIENT, True, None),
        ("192.0.2.1", 22, ITSELF, False, None),
        ("192.0.2.1", 22, OWN, False, None),
        ("192.0.2.1", 8080, ITSELF, True, "would loop"),
        ("127.0.0.1", 8080, CLIENT, False, "would loop"),
    ],
)
def test_who_reaches_what(
    address: str, port: int, client: Address, listed: bool, because: str | None
) -> None:
    why = MACHINE.closes(ip_address(address), port, client=client, listed=listed)
    assert (because is None) == (why is None)
    assert because is None or because in (why or "")


def test_by_default_a_place_is_not_listed() -> None:
    assert MACHINE.closes(OWN, 22, client=CLIENT) is not None  # by default it is not listed


def test_only_the_proxys_ports_at_our_addresses_loop() -> None:
    assert MACHINE.is_proxy(OWN, 8080)
    assert not MACHINE.is_proxy(OWN, 80)
    assert not MACHINE.is_proxy(CLIENT, 8080)


def test_nowhere_has_loopback_alone_and_no_proxy() -> None:
    assert NOWHERE.is_own(ITSELF)
    assert not NOWHERE.is_own(OWN)
    assert not NOWHERE.is_proxy(ITSELF, 8080)
