"""Addresses that nobody reaches: the router's own services, loopback, our ports, no one host's."""

from collections.abc import Container
from dataclasses import dataclass
from ipaddress import ip_address

from capport.core.client import Address

_BROADCAST = ip_address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that decides: the addresses that are its own, and the proxy's ports there."""

    addresses: Container[Address] = frozenset()
    ports: Container[int] = frozenset()

    def is_own(self, address: Address) -> bool:
        """Whether a connection to `address` meets the services of this machine."""
        return address.is_loopback or address.is_unspecified or address in self.addresses

    def closes(
        self, address: Address, port: int, *, client: Address, listed: bool = False
    ) -> str | None:
        """Why nobody reaches `address` there, None where somebody may: "is no one host's".

        A service of the machine itself is open where the policy has `listed` it, by address or as
        the login server; and to a `client` on the machine, which needs no proxy to reach it.
        """
        if address.is_multicast or address.is_link_local or address == _BROADCAST:
            return "is no one host's address"
        if not self.is_own(address):
            return None
        if port in self.ports:
            return "is the proxy itself, which would loop"
        if listed or self.is_own(client):
            return None
        return "is this machine's own, which is closed to every client"


NOWHERE = Machine()
"""One that has loopback alone."""
