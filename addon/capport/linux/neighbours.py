"""A replica of the kernel's neighbour table: which MAC is behind an address, IPv4 and IPv6.

One dump, then the kernel's own notifications (rtnetlink(7), RTNLGRP_NEIGH). `find_mac` reads a
dict. Only a miss looks into the socket, without waiting: the kernel queues the notification of a
new neighbour before it can send the SYN-ACK, so the entry of whoever has completed a handshake is
in that queue if it is not in the dict, and a new client is never taken for an off-link one.
"""

import asyncio
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from capport.core.client import Address, Mac, Way
from capport.linux import neighbour_lookup, netlink
from capport.linux.neighbour_lookup import Neighbour

logger = logging.getLogger(__name__)

_NEIGHBOURS_AND_LINKS = 0x4 | 0x1  # RTMGRP_NEIGH, RTMGRP_LINK, of linux/rtnetlink.h
_RECEIVE_BUFFER = 4 << 20  # bytes: some 5 000 notifications in the kernel's accounting
_QUIET = 60.0  # seconds between two lines of the log on the same fault
_RETRY = 0.5  # seconds between dumps that fail
_SETTLE = 0.05  # seconds between dumps in a flood, which would else be nothing but dumps
_CATCH_UP = 256  # datagrams that one miss reads at most: some 5 ms in a flood


class _OverflowError(Exception):
    """The kernel had more notifications than the socket's buffer holds (ENOBUFS)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Watcher:
    call: Callable[[Address], None]
    loop: asyncio.AbstractEventLoop | None

    def tell(self, address: Address) -> None:
        if self.loop is None:
            try:
                self.call(address)
            except Exception:  # the edge: somebody else's fault must not stop the replica
                logger.exception("A watcher of the neighbour table failed at %s", address)
            return
        with suppress(RuntimeError):  # that loop is closed
            self.loop.call_soon_threadsafe(self.call, address)


class Replica:
    """Addresses to MACs and back, kept from entries in the order the kernel told them.

    An address with different MACs on two interfaces (a link-local one, say) has none: nothing
    here could tell the two apart.
    """

    def __init__(self) -> None:
        self._entries: dict[Address, dict[int, Mac]] = {}
        self._macs: dict[Address, Mac] = {}
        self._addresses: dict[Mac, set[Address]] = {}

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has."""
        return self._macs.get(address)

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has: dual stack, privacy addresses (RFC 8981)."""
        return list(self._addresses.get(mac, ()))

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""
        return list(self._macs.items())

    def apply(self, neighbour: Neighbour) -> bool:
        """Takes one entry over; whether that changed the address's MAC."""
        found = self._entries.setdefault(neighbour.address, {})
        if neighbour.mac is None:
            found.pop(neighbour.interface, None)
        else:
            found[neighbour.interface] = neighbour.mac
        if not found:
            del self._entries[neighbour.address]
        return self._settle(neighbour.address, set(found.values()))

    def replace(self, entries: Iterable[Neighbour]) -> set[Address]:
        """Holds `entries` and nothing else; the addresses whose MAC that changed."""
        fresh: dict[Address, dict[int, Mac]] = {}
        for entry in entries:
            if entry.mac is not None:
                fresh.setdefault(entry.address, {})[entry.interface] = entry.mac
        before, self._entries = self._entries, fresh
        return {
            address
            for address in before.keys() | fresh.keys()
            if self._settle(address, set(fresh.get(address, {}).values()))
        }

    def _settle(self, address: Address, macs: set[Mac]) -> bool:
        before = self._macs.get(address)
        after = next(iter(macs)) if len(macs) == 1 else None
        if before == after:
            return False
        if before is not None:
            self._addresses[before].discard(address)
            if not self._addresses[before]:
                del self._addresses[before]
        if after is None:
            del self._macs[address]
        else:
            self._macs[address] = after
            self._addresses.setdefault(after, set()).add(address)
        return True


class NetlinkNeighbours:
    """The kernel's table of the network namespace it is made in, on a thread of its own.

    `interfaces` limits it to those, by name; they need not exist yet. Raises OSError where the
    kernel gives no dump. Needs no privilege.
    """

    def __init__(
        self, interfaces: Collection[str] | None = None, *, receive_buffer: int = _RECEIVE_BUFFER
    ) -> None:
        self.dumps = 0
        """How many dumps were taken: one, and one more for each overflow or change of a link."""
        self._replica = Replica()
        self._names = None if interfaces is None else frozenset(interfaces)
        self._numbers: frozenset[int] | None = None
        self._lock = threading.Lock()
        self._watchers: list[_Watcher] = []
        self._changes: deque[Address] = deque()
        self._stale = False
        self._broken = False
        self._quiet_until = 0.0
        self._closed = False
        self._receive_buffer = receive_buffer
        self._socket = self._listen()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._follow, name="neighbours", daemon=True)
        try:
            with self._lock:
                self._dump()
        except OSError:
            self._let_go()
            raise
        self._thread.start()

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now; None where it is off-link or there is no entry.

        A hit is a look-up in a dict. A miss makes one system call that does not wait (3 us).
        """
        mac = self._replica.find_mac(address)
        if mac is None and not self._closed:
            self._catch_up()
            mac = self._replica.find_mac(address)
        return mac

    def is_on_link(self, address: Address) -> bool:
        """Whether `address` is on a link of ours, by the kernel's routes; True if it does not say.

        Asked in the network namespace of whoever calls.
        """
        found = self.way(address)
        return found is not None and found.hop == address

    def way(self, address: Address) -> Way | None:
        """How frames go to `address`, by the kernel's routes; as if on the link if it does not say.

        A router before an address is known as its way only where `interfaces` says which side is
        the clients': elsewhere its frames may come from any of several. Asked in the network
        namespace of the caller.
        """
        try:
            found = neighbour_lookup.way(address, self._numbers)
        except OSError as error:
            # Any client's request brings it about.
            if (now := time.monotonic()) >= self._quiet_until:
                self._quiet_until = now + _QUIET
                logger.error("No route to %s is to be had: %s", address, error)
            return Way(address)
        if self._names is None and found is not None and found.hop != address:
            return None
        return found

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has."""
        with self._lock:
            return self._replica.addresses(mac)

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""
        with self._lock:
            return self._replica.items()

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Has `watcher` called with each address whose MAC changed, came or went.

        On the event loop that this is called on, where there is one, else on the replica's thread.
        """
        try:
            entry = _Watcher(watcher, asyncio.get_running_loop())
        except RuntimeError:
            entry = _Watcher(watcher, None)
        self._watchers.append(entry)
        return lambda: self._watchers.remove(entry)

    def close(self) -> None:
        """Ends the thread and lets go of the sockets."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The thread.

    def _follow(self) -> None:
        try:
            while not self._closed:
                poll = select.poll()  # the socket may be another one by now
                poll.register(self._socket, select.POLLIN)
                poll.register(self._wake, select.POLLIN)
                poll.poll()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._catch_up()
                if self._stale and not self._closed:
                    self._refresh()
                self._tell()
        finally:
            self._let_go()
            self._replica.replace(())  # whatever ended the thread: rather no MAC than an old one

    def _refresh(self) -> None:
        """Takes fresh dumps until one is whole and nothing was lost since."""
        said = False
        while self._stale and not self._closed:
            try:
                with self._lock:
                    if self._broken:
                        self._socket.close()
                        self._socket = self._listen()
                        self._broken = False
                    self._drain()
                    self._stale = False
                    self._dump()
            except OSError as error:
                with self._lock:
                    self._stale = True
                    self._changes.extend(self._replica.replace(()))  # rather none than an old one
                if not said:
                    logger.error(
                        "No dump of the neighbour table (%s): no client has a MAC until there is"
                        " one, tried again every %s s",
                        error,
                        _RETRY,
                    )
                said = True
                self._tell()
                time.sleep(_RETRY)
            else:
                time.sleep(_SETTLE)
                self._catch_up()

    def _tell(self) -> None:
        while self._changes:
            address = self._changes.popleft()
            for watcher in tuple(self._watchers):
                watcher.tell(address)

    # With the lock.

    def _catch_up(self) -> None:
        """Applies what the kernel has sent, up to a bound, and never waits."""
        with self._lock:
            before = len(self._changes)
            try:
                for datagram in self._received(_CATCH_UP):
                    for message in netlink.messages(datagram):
                        self._heard(message)
            except _OverflowError:
                self._stale = True
            woken = self._stale or len(self._changes) > before
            # With the lock: `_let_go` closes it, and another file may have its number then.
            if woken and threading.current_thread() is not self._thread and not self._closed:
                os.eventfd_write(self._wake, 1)

    def _drain(self) -> None:
        """Throws away what a dump will tell anyway, so that nothing older is applied over it."""
        with suppress(_OverflowError):
            for _ in self._received(1 << 20):
                pass

    def _received(self, limit: int) -> Iterator[bytes]:
        for _ in range(limit):
            try:
                datagram = self._socket.recv(netlink.DATAGRAM, socket.MSG_DONTWAIT)
                if not datagram:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                yield datagram
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._broken = True
                    logger.error("The neighbour notifications broke off (%s): dumping anew", error)
                raise _OverflowError from error

    def _heard(self, message: netlink.Message) -> None:
        if not neighbour_lookup.is_of_the_table(message):
            if self._names is not None and self._numbers != neighbour_lookup.numbers(self._names):
                self._stale = True  # an interface of ours came, went or changed its number
            return
        entry = neighbour_lookup.entry(message)
        if entry and self._is_ours(entry) and self._replica.apply(entry):
            self._changes.append(entry.address)

    def _is_ours(self, entry: Neighbour) -> bool:
        return self._numbers is None or entry.interface in self._numbers

    def _dump(self) -> None:
        self._numbers = None if self._names is None else neighbour_lookup.numbers(self._names)
        self._changes.extend(
            self._replica.replace(filter(self._is_ours, neighbour_lookup.entries()))
        )
        self.dumps += 1

    def _listen(self) -> socket.socket:
        listening = netlink.connect(netlink.ROUTE)
        listening.setblocking(False)
        # The kernel gives what net.core.rmem_max allows; too small means more dumps, nothing worse.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        listening.bind((0, _NEIGHBOURS_AND_LINKS))
        return listening

    def _let_go(self) -> None:
        with self._lock:
            self._closed = True
            self._socket.close()
            os.close(self._wake)
