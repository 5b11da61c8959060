"""DHCP by the snippet that is shipped: what a client says of itself is nothing to others."""

import pytest

from lab.dhcp import lease
from lab.network import ROUTER4, ROUTER6, Lab
from lab.resolving import exchange

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("name", ["wpad", "isatap"])
def test_no_client_is_found_by_the_name_it_gives_itself(lab: Lab, name: str) -> None:
    for client in lab.clients:
        client.namespace.call(lease, "eth0", client.mac, host_name=name)
    for resolver in (ROUTER4, ROUTER6):
        assert lab.client.namespace.call(exchange, resolver, name)[6:8] == b"\0\0"


def test_a_client_that_says_it_is_another_does_not_get_its_address(lab: Lab) -> None:
    """By the client identifier, which every DHCP message of another's has in it."""
    one, other = lab.clients
    named = bytes([1]) + bytes.fromhex(one.mac.replace(":", ""))
    assert one.namespace.call(lease, "eth0", one.mac, client_id=named).address == one.v4
    assert other.namespace.call(lease, "eth0", other.mac, client_id=named).address == other.v4
