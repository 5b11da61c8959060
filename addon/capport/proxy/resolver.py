"""Resolves names as this machine does."""

import asyncio
import time
from pathlib import Path

from capport.core.bounded_map import BoundedMap
from capport.core.client import Address, parse_address
from capport.core.place import Host
from capport.linux.file_state import state_of
from capport.linux.own_addresses import source_for
from capport.proxy.internals.mitmproxy_resolver import MitmproxyResolver, mitmproxy_resolver

PATIENCE = 5.0  # seconds for a name to resolve
MEMORY = 60.0  # seconds for which an address that did not answer is tried last
MOST_SILENT = 4096  # of those addresses; the one that failed longest ago is forgotten first

# The resolver reads these files once. When one of them changes, a new resolver is made.
_SOURCES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))


class SystemResolver:
    """Resolves names by the hosts file and this machine's name servers.

    The resolver of mitmproxy_rs (hickory) caches each answer for its TTL.
    """

    def __init__(self) -> None:
        self._resolver: MitmproxyResolver | None = None
        self._made_of: object = None
        self._silent = BoundedMap[Address, float](MOST_SILENT)  # until when each is tried last

    async def resolve(self, host: Host) -> list[Address]:
        """The addresses of `host`; last come those that did not answer lately. Raises OSError."""
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
        """Records that a connection to `address` failed, so that it is tried last for a while."""
        self._silent[address] = time.monotonic() + MEMORY

    def _order(self, address: Address) -> tuple[bool, bool, bool]:
        """The sort key: first addresses that answer, then those with a route, then IPv4.

        IPv4 comes before IPv6, because broken IPv6 is more common.
        """
        silent = self._silent.get(address, 0.0) > time.monotonic()
        return silent, source_for(address) is None, address.version == 6

    def _current(self) -> MitmproxyResolver:
        made_of = tuple(map(state_of, _SOURCES))
        if self._resolver is None or made_of != self._made_of:
            self._made_of = made_of
            self._resolver = mitmproxy_resolver()
        return self._resolver
