"""A replica of the kernel's neighbour table: which MAC is behind an address, IPv4 and IPv6.

The replica starts with one dump and follows the kernel's notifications (rtnetlink(7),
RTNLGRP_NEIGH). `find_mac` reads a dict. Only if the address is not in it, `find_mac` reads the
socket, without waiting. The kernel queues the notification of a new neighbour before it can send
the SYN-ACK. So when a client has completed a handshake, its entry is in the dict or in that queue,
and a new client is never mistaken for an off-link one.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice

from capport.core.client import Address, Mac, Way
from capport.linux import Neighbours, neighbour_lookup, netlink
from capport.linux.neighbour_lookup import Neighbour
from capport.log_limits import FAULTS, Seldom
from capport.watchers import Watchers

logger = logging.getLogger(__name__)

_GROUPS = 0x4 | 0x1  # RTMGRP_NEIGH, RTMGRP_LINK, of linux/rtnetlink.h
RECEIVE_BUFFER = 4 << 20  # bytes: some 5 000 notifications in the kernel's accounting
_RETRY = 0.5  # seconds between dumps that fail
_SETTLE = 0.05  # seconds between dumps in a flood, or the thread would do nothing else
_CATCH_UP = 256  # datagrams that one look-up reads at most: some 5 ms in a flood


class NeighbourTable:
    """Maps addresses to MACs and back, from entries in the order in which the kernel sent them.

    An address with different MACs on two interfaces (for example a link-local one) has no MAC here,
    because nothing says which of the two is meant.
    """

    def __init__(self) -> None:
        self._entries: dict[Address, dict[int, Mac]] = {}
        # By version and number, because to hash an address takes a microsecond.
        self._macs: dict[int, dict[int, Mac]] = {4: {}, 6: {}}
        self._addresses: dict[Mac, set[Address]] = {}

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has."""
        return self._macs[address.version].get(int(address))

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has: dual stack, privacy addresses (RFC 8981)."""
        return list(self._addresses.get(mac, ()))

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""
        return [(address, mac) for mac, its in self._addresses.items() for address in its]

    def apply(self, neighbour: Neighbour) -> bool:
        """Applies one entry. Returns whether that changed the address's MAC."""
        found = self._entries.setdefault(neighbour.address, {})
        if neighbour.mac is None:
            found.pop(neighbour.interface, None)
        else:
            found[neighbour.interface] = neighbour.mac
        if not found:
            del self._entries[neighbour.address]
        return self._set_mac(neighbour.address, set(found.values()))

    def replace(self, entries: Iterable[Neighbour]) -> set[Address]:
        """Replaces everything by `entries`. Returns the addresses whose MAC changed."""
        fresh: dict[Address, dict[int, Mac]] = {}
        for entry in entries:
            if entry.mac is not None:
                fresh.setdefault(entry.address, {})[entry.interface] = entry.mac
        before, self._entries = self._entries, fresh
        return {
            address
            for address in before.keys() | fresh.keys()
            if self._set_mac(address, set(fresh.get(address, {}).values()))
        }

    def _set_mac(self, address: Address, macs: set[Mac]) -> bool:
        before = self.find_mac(address)
        after = next(iter(macs)) if len(macs) == 1 else None
        if before == after:
            return False
        if before is not None:
            self._addresses[before].discard(address)
            if not self._addresses[before]:
                del self._addresses[before]
        if after is None:
            del self._macs[address.version][int(address)]
        else:
            self._macs[address.version][int(address)] = after
            self._addresses.setdefault(after, set()).add(address)
        return True


def _is_loopback(address: Address) -> bool:
    """As `address.is_loopback`, in a third of the time: it is asked for each request."""
    number = int(address)
    return number >> 24 == 127 if address.version == 4 else number == 1


class NetlinkNeighbours(Neighbours):
    """The neighbour table of the network namespace that it is made in, followed by a thread.

    `interfaces` are the names of the interfaces that count, which need not exist yet; by default
    all count. Raises OSError if the kernel gives no dump. Needs no privilege.
    """

    def __init__(self, interfaces: Collection[str] | None = None) -> None:
        self.dumps = 0
        """Dumps so far: one at the start, and one for each overflow or change of a link."""
        self._table = NeighbourTable()
        self._names = None if interfaces is None else frozenset(interfaces)
        self._numbers: frozenset[int] | None = None
        self._lock = threading.Lock()
        self._watchers = Watchers[Address]("the neighbour table")
        self._changes: deque[Address] = deque()
        self._stale = False
        self._seldom = Seldom(FAULTS)
        self._closed = False
        self._socket = netlink.connect(netlink.ROUTE)  # each dump makes a new one
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._follow, name="neighbours", daemon=True)
        try:
            with self._lock:
                self._dump()
        except OSError:
            self._close_sockets()
            raise
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether the table here is as the kernel's is."""
        return not (self._stale or self._closed)

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now; None if it is off-link or there is no entry.

        An address with a MAC is found in a dict. Any other takes one more system call (3 us), which
        does not wait. A loopback address has no MAC, so it takes none.
        """
        mac = self._table.find_mac(address)
        if mac is None and not self._closed and not _is_loopback(address):
            self._catch_up()
            mac = self._table.find_mac(address)
        return mac

    def way(self, address: Address) -> Way | None:
        """How frames go to `address`, by the kernel's routes.

        If the kernel gives no answer, `address` counts as on the link. For an address behind a
        router it returns None, unless `interfaces` says on which side the clients are: without
        that, frames may come from one of several routers. The routes are those of the caller's
        network namespace.
        """
        try:
            found = neighbour_lookup.way(address, self._numbers)
        except OSError as error:
            # Any client's request can cause this, so it is logged once a minute.
            if self._seldom.is_due(time.monotonic(), "way"):
                logger.error(f"The kernel did not say how to reach {address}: {error}")
            return Way(address)
        if self._names is None and found is not None and found.hop != address:
            return None
        return found

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has."""
        with self._lock:
            return self._table.addresses(mac)

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""
        with self._lock:
            return self._table.items()

    def use(self, interfaces: Collection[str] | None) -> None:
        """Makes other `interfaces` count from now on."""
        names = None if interfaces is None else frozenset(interfaces)
        with self._lock:
            if names == self._names or self._closed:
                return
            self._names = names
            with suppress(OSError):  # the thread tries again, and logs why
                self._dump()
            os.eventfd_write(self._wake, 1)

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Calls `watcher` with each address whose MAC changed, appeared or disappeared.

        It calls on the event loop on which `watch` was called, or on a thread if there was none.
        Returns a function that stops this.
        """
        return self._watchers.add(watcher)

    def close(self) -> None:
        """Ends the thread and closes the sockets."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._watchers.close()

    # The thread.

    def _follow(self) -> None:
        try:
            while not self._closed:
                poll = select.poll()  # a new one, because the socket may be a new one
                with self._lock:  # `use` closes the socket
                    poll.register(self._socket, select.POLLIN)
                poll.register(self._wake, select.POLLIN)
                poll.poll()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._turn()
        finally:
            self._close_sockets()
            self._table.replace(())  # no MAC is better than an old one, whatever ended the thread

    def _turn(self) -> None:
        try:
            self._catch_up()
            if self._stale and not self._closed:
                self._refresh()
            self._notify()
        except Exception:  # the edge: without this thread no client would have a MAC
            if self._seldom.is_due(time.monotonic(), "turn"):
                logger.exception("Cannot follow the neighbour table; reading it again")
            time.sleep(_RETRY)
            with self._lock:
                self._stale = True
                self._changes.extend(self._table.replace(()))
                os.eventfd_write(self._wake, 1)

    def _refresh(self) -> None:
        """Takes dumps until one succeeds and no notification was lost since."""
        logged = False
        while self._stale and not self._closed:
            try:
                with self._lock:
                    self._dump()
            except OSError as error:
                if not logged:
                    logger.error(
                        f"No dump of the neighbour table ({error}): until one succeeds, no client"
                        f" has a MAC; trying again every {_RETRY} s"
                    )
                logged = True
                self._notify()
                time.sleep(_RETRY)
            else:
                time.sleep(_SETTLE)
                self._catch_up()

    def _notify(self) -> None:
        while self._changes:
            self._watchers.notify(self._changes.popleft())

    # With the lock.

    def _catch_up(self) -> None:
        """Applies what the kernel has sent, at most `_CATCH_UP` datagrams, and never waits."""
        with self._lock:
            before = len(self._changes)
            try:
                for datagram in islice(netlink.reports(self._socket), _CATCH_UP):
                    self._stale = self._stale or not datagram
                    for message in netlink.messages(datagram):
                        self._apply(message)
            except OSError as error:
                self._stale = True
                logger.error(
                    f"The neighbour notifications stopped ({error}): reading the table again"
                )
            woken = self._stale or len(self._changes) > before
            # Still with the lock, because `_close_sockets` closes the eventfd, and another file may
            # get its number.
            if woken and threading.current_thread() is not self._thread and not self._closed:
                os.eventfd_write(self._wake, 1)

    def _apply(self, message: netlink.Message) -> None:
        if not neighbour_lookup.is_of_the_table(message):
            if self._names is not None and self._numbers != neighbour_lookup.numbers(self._names):
                self._stale = True  # one of the interfaces appeared, went or changed its number
            return
        entry = neighbour_lookup.entry(message)
        if entry and self._counts(entry) and self._table.apply(entry):
            self._changes.append(entry.address)

    def _counts(self, entry: Neighbour) -> bool:
        return self._numbers is None or entry.interface in self._numbers

    def _dump(self) -> None:
        """Reads the whole table. Raises OSError: then no address has a MAC, which beats an old one.

        Notifications that are older than the dump must not be applied to it, so they come by a new
        socket.
        """
        self._stale = True
        found: list[Neighbour] = []
        try:
            # A smaller buffer only means more dumps.
            reports = netlink.listen(netlink.ROUTE, _GROUPS, buffer=RECEIVE_BUFFER)
            self._socket.close()
            self._socket = reports
            self._numbers = None if self._names is None else neighbour_lookup.numbers(self._names)
            found = [entry for entry in neighbour_lookup.entries() if self._counts(entry)]
            self._stale = False
            self.dumps += 1
        finally:
            self._changes.extend(self._table.replace(found))

    def _close_sockets(self) -> None:
        with self._lock:
            self._closed = True
            self._socket.close()
            os.close(self._wake)
