"""Which addresses are this machine's own, and so closed to clients, asked without mitmproxy."""

import socket
from collections.abc import Container
from ipaddress import IPv4Address, IPv6Address

from capport.core.client import Address, parse_address


class OwnAddresses(Container[Address]):
    """Each address of this machine's; the kernel is asked at each question."""

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address | IPv6Address) and is_own(address)


OWN = OwnAddresses()


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
