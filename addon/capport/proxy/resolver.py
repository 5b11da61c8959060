"""Which address a name has for us."""

import asyncio
import time
from pathlib import Path

from capport.core.client import Address, parse_address
from capport.core.place import Host
from capport.linux.file_state import state_of
from capport.linux.own_addresses import source_for
from capport.proxy.internals.names import Resolver, system_resolver

PATIENCE = 5.0  # seconds for a name to resolve
MEMORY = 60.0  # seconds for which an address that did not answer is tried last

# What the resolver reads once: it is made anew when one of them changes.
_SOURCES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))


class Addresses:
    """Resolves names as this machine does: hosts file and name servers, cached by TTL.

    The cache is hickory's (mitmproxy_rs), which keeps to each record's TTL.
    """

    def __init__(self) -> None:
        self._resolver: Resolver | None = None
        self._made_of: object = None
        self._silent: dict[Address, float] = {}

    async def resolve(self, host: Host) -> list[Address]:
        """The addresses of `host`, those that answered last first. Raises OSError."""
        if not isinstance(host, str):
            return [host]
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._current().lookup_ip(host)
        except TimeoutError:
            raise OSError(f"{host} did not resolve within {PATIENCE:g} s") from None
        except OSError as error:
            raise OSError(f"{host} has no address: {error.strerror or error}") from error
        addresses = {parse_address(text): None for text in found}
        return sorted(addresses, key=self._order)

    def did_not_answer(self, address: Address) -> None:
        """A connection to `address` failed: another of the same name's goes first for a while."""
        now = time.monotonic()
        self._silent = {a: until for a, until in self._silent.items() if until > now}
        self._silent[address] = now + MEMORY

    def _order(self, address: Address) -> tuple[bool, bool, bool]:
        """What answers, where we have a way to, and IPv4 first: broken IPv6 is the commoner."""
        silent = self._silent.get(address, 0.0) > time.monotonic()
        return silent, source_for(address) is None, address.version == 6

    def _current(self) -> Resolver:
        made_of = tuple(map(state_of, _SOURCES))
        if self._resolver is None or made_of != self._made_of:
            self._made_of = made_of
            self._resolver = system_resolver()
        return self._resolver
