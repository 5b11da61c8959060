"""Which addresses are this machine's own, and so closed to clients, asked without mitmproxy."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from capport.core.client import Address, Client, parse_address
from capport.core.place import Host


def is_reachable(address: Address) -> bool:
    """Whether a connection there can mean one machine: not multicast, broadcast, or link-local."""
    if address.is_multicast or address.is_link_local:
        return False
    return address != ip_address("255.255.255.255")


def may_reach(client: Client, address: Address, allowed_here: Sequence[Host]) -> bool:
    """Whether `client`, known or not, may be connected to `address`.

    The router's own services are closed to everyone, but for what the policy itself lists by
    address or as the login server, and for a client that is on this machine and needs no proxy to
    reach them.
    """
    if not is_reachable(address):
        return False
    return not is_own(address) or address in allowed_here or is_own(client.address)


def is_own(address: Address) -> bool:
    """Whether `address` is this machine's: what connects there meets the router's own services."""
    if address.is_loopback or address.is_unspecified:
        return True
    # What is sent to an address of our own, or routed to us, is sent from that address.
    return source_for(address) == address


def source_for(address: Address) -> Address | None:
    """The address of ours that what we send to `address` comes from; None where there is no way."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))  # UDP: looks up the route, sends nothing
        except OSError:
            return None
        return parse_address(probe.getsockname()[0])
