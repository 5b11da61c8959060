"""Waits until a grant or a revocation is in force in the kernel, as far as this process can see.

Once the store has a change, every process that has the store open learns of it. The proxy reads the
store for each request, so it needs no waiting. The router's rules change when the portal updates
them. With CAP_NET_ADMIN this process can see the rules, so it waits for that. It never changes the
rules itself, because only the portal knows which policy is in force.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from itertools import chain

from capport.core.client import Address, Client, Mac, parse_address, parse_mac
from capport.linux import neighbour_lookup
from capport.linux.libnftables import Nftables
from capport.router.membership import elements, is_let_through, table
from capport.router.ruleset import CLIENT_SETS

PATIENCE = 1.0
"""Seconds that the portal has to update the rules; it learns of a change at once."""
_EVERY = 0.005  # seconds between looks


class RouterRules:
    """The router's rules; without them, or without the right to see them, there is no waiting."""

    def __init__(self) -> None:
        self._rules: Nftables | None = None
        # No libnftables (`capport router` does not work here either), or no right to see the rules.
        with contextlib.suppress(OSError):
            if table() is not None:
                self._rules = Nftables()

    def let_through(self, parts: Collection[Mac | Address]) -> list[Client]:
        """The clients with one of these MACs or addresses that the rules let through now."""
        if self._rules is None:
            return []
        found = []
        for element in chain.from_iterable(elements(self._rules, name) for name in CLIENT_SETS):
            address, _, mac = element.text.partition(" . ")
            client = Client(parse_address(address), parse_mac(mac) if mac else None)
            if client.address in parts or client.mac in parts:
                found.append(client)
        return found

    def wait_until_in(self, clients: Iterable[Client]) -> bool:
        """Whether the rules let one of `clients` through in time; True if they cannot be seen."""
        forwarded = [client for client in clients if not client.address.is_link_local]
        if self._rules is None or not forwarded:
            return True
        return self._wait(lambda: any(map(_is_in, forwarded)))

    def wait_until_out(self, clients: Collection[Client]) -> bool:
        """Whether the rules stop letting any of `clients` through in time."""
        return self._wait(lambda: not any(map(_is_in, clients)))

    @staticmethod
    def _wait(done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_EVERY)
        return True


def _is_in(client: Client) -> bool:
    return is_let_through(client.address, client.mac or _hop_of(client.address))


def _hop_of(address: Address) -> Mac | None:
    """The MAC address of the router that `address` is behind; None if there is none."""
    with contextlib.suppress(OSError):
        way = neighbour_lookup.way(address)
        return neighbour_lookup.table().get(way.hop) if way and way.hop else None
    return None
