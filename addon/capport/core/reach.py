"""Addresses that nobody may reach: this machine's, its proxy, link-local, multicast, broadcast."""

from collections.abc import Collection, Container
from dataclasses import dataclass
from ipaddress import ip_address

from capport.core.client import Address

_BROADCAST = ip_address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that the portal runs on: its own addresses, and the proxy's ports there."""

    addresses: Container[Address] = frozenset()
    ports: Collection[int] = frozenset()

    def is_own(self, address: Address) -> bool:
        """Whether a connection to `address` ends at a service of this machine."""
        return address.is_loopback or address.is_unspecified or address in self.addresses

    def is_proxy(self, address: Address, port: int) -> bool:
        """Whether `port` at `address` is the proxy's own, so that a connection would loop."""
        return port in self.ports and self.is_own(address)

    def closes(
        self, address: Address, port: int, *, client: Address, listed: bool = False
    ) -> str | None:
        """Why nobody may reach `port` at `address`, as the end of a sentence; None if it is open.

        A service of the machine itself is open if the policy has it, by address or as the login
        server (`listed`). It is also open to a `client` on the machine itself, which could reach it
        without the proxy.
        """
        if address.is_multicast or address.is_link_local or address == _BROADCAST:
            return "is a multicast, link-local or broadcast address"
        if not self.is_own(address):
            return None
        if port in self.ports:
            return "is the proxy itself, which would loop"
        if listed or self.is_own(client):
            return None
        return "is this machine's own, which is closed to every client"


NOWHERE = Machine()
"""A machine with no addresses but loopback, and no ports of a proxy."""
