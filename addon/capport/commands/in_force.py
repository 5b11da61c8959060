"""Whether the kernel lets a client through, as far as this process can see.

A grant and a revocation are durable once the store has them, and each process that has the store
open hears of them: the proxy, whose requests ask the store itself, a millisecond later (there is
nothing to wait for, nor to ask); the router's rules when the portal has carried them over. That
can be seen, with CAP_NET_ADMIN, so it is waited for. Nothing is put into the rules from here: what
the policy in force says of a client, only the portal knows.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable

from capport.core.client import Address, Client, Mac, parse_address, parse_mac
from capport.linux import neighbour_lookup
from capport.linux.libnftables import Nftables, RulesError
from capport.router.nftables import TABLE, listed

PATIENCE = 1.0
"""Seconds that a portal has to carry over what it hears of at once."""
_EVERY = 0.005  # seconds between looks; one takes half a millisecond


class Kernel:
    """The router's rules: none where they are not up, or this process may not see them."""

    def __init__(self) -> None:
        self._rules: Nftables | None = None
        try:
            rules = Nftables()
        except OSError:  # no libnftables: `capport router` does not work here either
            return
        try:
            rules.outline(f"list set {TABLE} known4")
        except RulesError:
            rules.close()
        else:
            self._rules = rules

    def let_through(self, parts: Collection[Mac | Address]) -> list[Client]:
        """Who of these MACs and addresses the rules know now."""
        found = []
        for name in ("known4", "known6", "routed4", "routed6") if self._rules else ():
            assert self._rules is not None
            for element, _ in listed(self._rules, name):
                address, _, mac = element.partition(" . ")
                client = Client(parse_address(address), parse_mac(mac) if mac else None)
                if client.address in parts or client.mac in parts:
                    found.append(client)
        return found

    def wait_until_in(self, clients: Iterable[Client]) -> bool:
        """Whether one of `clients` was let through in time; True where that cannot be seen."""
        forwarded = [client for client in clients if not client.address.is_link_local]
        if self._rules is None or not forwarded:
            return True
        return self._wait(lambda: any(map(self._is_in, forwarded)))

    def wait_until_out(self, clients: Collection[Client]) -> bool:
        """Whether none of `clients` was let through any more in time."""
        return self._wait(lambda: not any(map(self._is_in, clients)))

    def _is_in(self, client: Client) -> bool:
        assert self._rules is not None
        version = client.address.version
        sender = client.mac or _hop_of(client.address)
        pair = f"{client.address} . {sender}"
        name, element = (
            (f"known{version}", pair) if sender else (f"routed{version}", str(client.address))
        )
        try:
            self._rules.run(f"get element {TABLE} {name} {{ {element} }}")
        except RulesError as error:
            if not error.missing:
                raise
            return False
        return True

    @staticmethod
    def _wait(done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_EVERY)
        return True


def _hop_of(address: Address) -> Mac | None:
    """The MAC of the router that `address` is behind."""
    with contextlib.suppress(OSError):
        way = neighbour_lookup.way(address)
        return neighbour_lookup.table().get(way.hop) if way and way.hop else None
    return None
