"""Keeps the kernel's sets of known clients as the sessions and the policy's client rules say.

The sets have a pair (address, MAC) for each known client. If its session is filed under a MAC, they
also have that MAC, so that a new address of the client passes from its first packet on. A client
behind another router has that router's MAC in its pair; on a link without MACs there is the address
alone.

An address that a sleeping client no longer uses keeps its pair: that is safe, because the kernel
compares both the address and the MAC of each packet. The pair is removed at once when another MAC
uses the address, or when the session ends. The timeout of each element is the time that its session
has left, so it ends on time even if this process dies.

Clients whose session another router granted are in sets of their own, which count only while the
set `lease` has an element. Its timeout is the time that the lease has left.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import batched, chain, islice

from capport import clock
from capport.core.client import (
    Address,
    Client,
    ClientId,
    parse_address,
    parse_mac,
    parts_of,
)
from capport.core.policy import Policy
from capport.core.session import Instant
from capport.linux import Neighbours
from capport.linux.libnftables import Nftables, RulesError
from capport.router import membership, nftables
from capport.router.disconnections import REST, Disconnections
from capport.router.elements import Element, Elements, Key
from capport.router.fence import Fence
from capport.router.ruleset import CLIENT_SETS, LEASE, LEASED, PREFIXES, SET_SIZE, router_of
from capport.router.wanted_elements import WantedElements
from capport.stores import FullError, SessionStore

logger = logging.getLogger(__name__)

TRAFFIC = 10.0  # seconds between readings of the elements' counters, at most
RESYNC = 300.0  # seconds between comparisons with what the kernel has
SLACK = 5.0  # seconds that an end in the kernel may differ from ours, because listing takes time
RETRY = 1.0  # seconds until the next attempt after a failure
SOME = 200  # clients handled in one turn (10 ms), so that a change need not wait for thousands
LEASE_CHECK = 1.0  # seconds between two looks whether the lease was renewed
LEASE_STEP = 5.0  # seconds by which the lease must be longer than in the kernel to go there
MOST = SET_SIZE * 3 // 4  # elements of a set; the rest is room for timed-out ones not yet cleared
ADDRESSES = 64  # of one MAC at a time; a device with privacy addresses has about ten


class KnownClients:
    """Keeps the sets as the sessions of one store say, on its own threads.

    It does not watch the store: the caller calls `changed` with each client whose session has
    changed, or `update` to wait until the change is in force; both may be called on any thread.
    `policy` returns the policy in force. While our table is not loaded (`capport router down`),
    nothing is written and nothing fails; `up` adds all known clients again. If a set is full, its
    clients stay, `report` gets one sentence, and the clients that found no place are tried again at
    the next comparison.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: SessionStore,
        neighbours: Neighbours,
        *,
        now: Callable[[], Instant] = clock.now,
        report: Callable[[str], None] = logger.error,
    ) -> None:
        self._policy = policy
        self._store = store
        self._neighbours = neighbours
        self._rules = Nftables()
        self._fence = Fence()
        self._now = now
        self._report = report
        self._full: set[str] = set()  # the sets that were full for a client since the comparison
        self._reported: set[str] = set()  # the full sets that `report` was called for
        self._elements = Elements()
        self._adding: set[Key] = set()  # the keys of elements that the kernel may not have yet
        self._counted: dict[str, int] = {}  # the packets of each element when last read
        self._wanted = WantedElements(policy, store, neighbours)
        self._disconnections = Disconnections()
        self._lock = threading.Lock()  # always taken by `_in_turn`
        self._turn = threading.Lock()  # held by the next thread that gets the lock
        self._news = threading.Condition()
        self._changed: set[ClientId | Address] = set()
        self._lost: set[ClientId] = set()
        self._closed = False
        self._resync_at = now() + RESYNC
        self._rested_at = now()  # no comparison before this
        self._failing = False
        self._lease_at = now()
        self._leased_until = -math.inf  # the lease in the kernel
        self._traffic_at = now() + TRAFFIC
        self._stop_watching: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Corrects the sets, and keeps them correct until `close`."""
        self._stop_watching = self._neighbours.watch(self.changed)
        try:
            self.resync()
        except OSError as error:  # the clients in the sets stay, and the thread tries again
            logger.error(f"The kernel's set of known clients cannot be updated: {error}")
            self._failing = True
            self._schedule_resync(after=RETRY)
        self._disconnections.start()
        self._thread = threading.Thread(target=self._follow, name="known clients", daemon=True)
        self._thread.start()

    def update(self, ids: Iterable[ClientId]) -> None:
        """Puts the changes of these clients into force before it returns.

        Raises FullError if a set has no place for one of them, and RulesError if the kernel refuses
        it; the thread then tries again at once. Takes 0.3 ms for each client. Before `start` (in a
        command that runs once) it takes as long as `resync`, because only the kernel knows which
        clients are in the sets.
        """
        try:
            if self._thread is None:
                self.resync()
                return
            with self._in_turn():
                keys = [[*self._keys(client)] for client in ids]
                left_out = self._settle(key for mine in keys for key in mine)
                if any(mine[0] in left_out for mine in keys):
                    raise FullError(_full(sorted(self._full)[0]))
        except RulesError:
            self._schedule_resync(after=0.0)  # only the kernel knows now what is in the sets
            raise
        finally:
            with self._news:
                self._news.notify()  # the next end may be earlier now

    @property
    def works(self) -> bool:
        """Whether the kernel takes what we add, and has room for it."""
        return not (self._failing or self._full)

    def has(self, client: Client) -> bool:
        """Whether we have added the client to the kernel's sets, and have not removed it since."""
        return any(
            key in self._elements and key not in self._adding
            for key in (client.address, client.mac)
        )

    def changed(self, what: ClientId | Address) -> None:
        """Notes that a client's session, or the MAC of an address, has changed; does not wait."""
        with self._news:
            self._changed.add(what)
            self._news.notify()

    def add_again(self, client: ClientId) -> None:
        """Adds the client's elements again, because the kernel has lost them; does not wait."""
        with self._news:
            self._lost.add(client)
        self.changed(client)

    def resync(self) -> None:
        """Compares the sets with the sessions, element by element, and corrects them."""
        began = time.thread_time()
        try:
            self._correct()
        finally:
            if self._thread is None:
                self._disconnections.flush()
            self._rested_at = self._now() + REST * (time.thread_time() - began)
        self._failing = False

    def _correct(self) -> None:
        found = self._in_kernel()  # without the lock: what changes from now on is corrected below
        with self._in_turn():
            self._full.clear()
            self._wanted.forget_behind()
            self._leased_until = -math.inf
            self._renew_lease()
            mine = [element.key for element in self._elements]
        for keys in batched(mine, SOME):
            with self._in_turn():
                for element in filter(None, map(self._elements.get, keys)):
                    there = found.pop(element.place, None)
                    if there is None or abs(there.lapses - element.lapses) > SLACK:
                        self._elements.file(replace(element, lapses=0.0))  # added, if it stays
                self._settle(keys)
        for places in batched(found.items(), SOME):
            with self._in_turn():
                self._settle_strays(places)
        for keys in batched(self._everybody(), SOME):
            with self._in_turn():
                self._settle(keys)
        with self._in_turn():
            self._reported &= self._full

    def _settle_strays(self, found: Iterable[tuple[tuple[str, str], Element]]) -> None:
        """Files what the kernel has and we have not; removes what should not be there."""
        strays: list[tuple[str, str]] = []
        filed: list[Key] = []
        for place, element in found:
            mine = self._elements.get(element.key)
            if mine is None:
                self._elements.file(replace(element, lapses=0.0))  # renewed, if it stays
                filed.append(element.key)
            elif mine.place != place:
                strays.append(place)
        self._remove(strays)
        self._settle(filed)

    def reapply(self) -> None:
        """Loads the rules of a new policy, if our table is loaded, with the same proxy ports.

        Known clients lose no packet. Raises the errors of `nftables.up`.
        """
        if (now := nftables.in_force()) is not None:
            self.apply(now.proxy_ports, only_replace=True)

    def apply(self, proxy_ports: Sequence[int], *, only_replace: bool) -> None:
        """Loads the rules with all known clients, and then puts the fence around the interface.

        With `only_replace`, does nothing if our table is no longer loaded. Raises the errors of
        `nftables.up`.
        """
        self.resync()
        with self._in_turn():
            policy, elements = self._policy(), self._commands()
            try:
                nftables.up(
                    policy,
                    proxy_ports=proxy_ports,
                    elements=elements,
                    only_replace=only_replace,
                    rules=self._rules,
                )
            except RulesError as error:
                if only_replace and error.missing:
                    return
                raise
            self._fence.put(router_of(policy).client_interface)

    def drop(self, client: Client, seconds: float, *, known: bool) -> None:
        """Makes the kernel drop the client's new connections to the portal for `seconds`.

        Raises RulesError if there is no place for it. A client that only uses the address of
        another is left to the portal, because the kernel would drop that other client.
        """
        to = "dropped_known" if known else "dropped"
        if client.mac is None:
            to += str(client.address.version)
        if client.ids:
            with self._in_turn():
                self._run(nftables.renew_all([(to, client.id, seconds)]))

    def put_fence(self) -> bool:
        """Puts the fence around the client interface; returns whether a rule was missing."""
        with self._in_turn():
            return self._fence.put(router_of(self._policy()).client_interface)

    def take_fence_away(self) -> None:
        """Removes the fence, after the rules were taken down on purpose."""
        with self._in_turn():
            self._fence.take_away()

    def close(self) -> None:
        """Stops the threads. The sets stay in the kernel, and their elements time out."""
        self._stop_watching()
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
        self._disconnections.close()
        self._rules.close()
        self._fence.close()

    # Called on our own threads.

    def _follow(self) -> None:
        while True:
            with self._news:
                if not self._changed and not self._closed:
                    ends = self._elements.next_look
                    due = min(self._resync_at, self._traffic_at, self._lease_at, ends)
                    self._news.wait(max(0.0, due - self._now()))
                if self._closed:
                    return
                changed = [*islice(self._changed, SOME)]
                self._changed.difference_update(changed)
                lost, self._lost = self._lost, set()
            try:
                self._forget(lost)
                self._do_due(changed, self._now())
            except Exception:  # the edge: if the thread ended, revoked clients would stay known
                if not self._failing:
                    logger.exception("Cannot update the kernel's set of known clients")
                self._failing = True
                self._schedule_resync(after=RETRY)

    def _do_due(self, changed: Iterable[ClientId | Address], now: Instant) -> None:
        """Does what is due: changes, the lease, ends, reading traffic, the comparison."""
        with self._in_turn():
            if now >= self._lease_at:
                self._renew_lease()
            ended = [*islice(self._elements.ended(now), SOME)]
            over = (element.key for element in ended if element.until <= now)
            idle = [element.key for element in ended if element.until > now]
            self._settle([*self._keys_of(changed), *over])
        if now >= self._traffic_at or idle:
            silence = self._policy().sessions.idle or math.inf
            self._traffic_at = now + min(TRAFFIC, max(1.0, silence / 4))
            self._read_traffic(now, idle)
        if now >= self._resync_at:
            self._resync_at = now + RESYNC
            self.resync()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Holds the lock.

        A thread that takes the lock again and again would keep all others from it. So it first
        waits until the next thread, which has `_turn`, has got the lock.
        """
        with self._turn:
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _schedule_resync(self, after: float) -> None:
        """Sets the next comparison to `after` seconds from now, but not before the rest is over."""
        self._resync_at = max(self._now() + after, self._rested_at)

    def _keys_of(self, changed: Iterable[ClientId | Address]) -> Iterator[Key]:
        for one in changed:
            if isinstance(one, str):
                yield from self._keys(one)
            else:
                yield one
                yield from self._wanted.behind(one)

    def _forget(self, lost: Iterable[ClientId]) -> None:
        """Forgets the elements of clients that the kernel lost, so that they are added again."""
        with self._in_turn():
            for key in [key for client in lost for key in self._keys(client)]:
                if (element := self._elements.get(key)) is not None:
                    self._elements.forget(element)

    def _read_traffic(self, now: Instant, ended: Iterable[Key] = ()) -> None:
        """Puts off the end of each session with an idle time whose packets the kernel forwarded.

        Then it updates the elements of the sessions that have `ended` if that did not help.
        """
        if not (idle := self._elements.idle):
            return
        counted: dict[str, int] = {}
        for name in CLIENT_SETS:
            counted |= {one.text: one.packets for one in membership.elements(self._rules, name)}
        before, self._counted = self._counted, counted.copy()
        for keys in batched(idle, SOME):
            with self._in_turn():
                heard = []
                for element in filter(None, map(self._elements.get, keys)):
                    text = element.place[1]
                    if element.session and counted.get(text, 0) > before.get(text, 0):
                        self._store.touch(element.session, now)
                        heard.append(element.key)
                self._settle(heard)
        with self._in_turn():
            self._settle(ended)

    # Called with the lock held.

    def _keys(self, client: ClientId) -> Iterator[Key]:
        """The keys that an id stands for: its MAC, its addresses now, and those in the sets."""
        mac, address = parts_of(client)
        if address is not None:
            yield address
        elif mac is not None:
            yield mac
            yield from {*self._neighbours.addresses(mac), *self._elements.addresses(mac)}

    def _everybody(self) -> Iterator[Key]:
        """Each key that is not in the sets. It takes the lock for a moment each time."""
        everybody = (ClientId(str(address)) for address, _ in self._neighbours.items())
        sessions = (session.client for session in self._store.sessions())
        for clients in batched(chain(everybody, sessions), SOME):
            with self._in_turn():
                keys = [key for client in clients for key in self._keys(client)]
                missing = [key for key in keys if key not in self._elements]
            yield from missing

    def _settle(self, keys: Iterable[Key]) -> set[Key]:
        """Updates the elements of `keys` in the sets: removes first, then adds.

        Returns the keys that should be in the sets but found no place.
        """
        now = self._now()
        out: list[Element] = []
        into: list[Element] = []
        moved: list[Element] = []  # removed last, because packets of the client pass all the time
        left_out: set[Key] = set()
        for key in dict.fromkeys(keys):
            before = self._elements.get(key)
            after = self._wanted.of(key, before, now)
            if before and (after is None or after.place != before.place):
                self._elements.forget(before)
                is_moved = after and replace(before, leased=after.leased).place == after.place
                (moved if is_moved else out).append(before)
                before = None
            if after is None or after == before:
                continue
            if before is None and not self._has_place(after):
                left_out.add(key)
                continue
            if before is None and not self._may_have_address(after, out):
                continue
            if before is None or after.until > before.lapses or after.until < before.until:
                into.append(after)
                self._adding.add(key)
            else:
                after = replace(after, lapses=before.lapses)
            self._elements.file(after)
        self._remove(place for element in out for place in element.places)
        if gone := [element.address for element in out if element.address is not None]:
            self._disconnections.add(gone)
        for some in batched(into, nftables.TOGETHER):
            self._run(nftables.renew_all(each for element in some for each in self._added(element)))
        self._adding.clear()
        self._remove(place for element in moved for place in element.places)
        return left_out

    def _has_place(self, element: Element) -> bool:
        """Whether the sets have a place for one more element; reports a full set once."""
        for name, _ in element.places:
            if self._elements.count(name) >= MOST:
                self._full.add(name)
                if name not in self._reported:
                    self._reported.add(name)
                    self._report(_full(name))
                return False
        return True

    def _may_have_address(self, element: Element, out: list[Element]) -> bool:
        """Whether the MAC of `element` may have one more address.

        If it has ADDRESSES already, one that it no longer uses makes room: that one goes to `out`.
        """
        mine = self._elements.addresses(element.mac) if element.mac and element.address else ()
        if len(mine) < ADDRESSES:
            return True
        left = next((a for a in mine if self._neighbours.find_mac(a) != element.mac), None)
        unused = None if left is None else self._elements.get(left)
        if unused is None:
            return False
        out.append(unused)
        self._elements.forget(unused)
        return True

    def _in_kernel(self) -> dict[tuple[str, str], Element]:
        """The elements that the kernel's sets have, by place."""
        found: dict[tuple[str, str], Element] = {}
        for name in (*CLIENT_SETS, *(f"{prefix}macs" for prefix in PREFIXES)):
            now, leased = self._now(), name.startswith(LEASED)
            for text, left, _ in membership.elements(self._rules, name):
                address, _, pair = text.partition(" . ")
                mac = parse_mac(pair or text) if pair or name.endswith("macs") else None
                key = mac if mac and not pair else parse_address(address)
                found[name, text] = Element(key, mac, lapses=now + left, leased=leased)
        return found

    def _renew_lease(self) -> None:
        """Puts the lease into the kernel, if it was renewed."""
        now, lease = self._now(), self._store.lease
        self._lease_at = math.inf if lease == math.inf else now + LEASE_CHECK
        step = LEASE_STEP if self._leased_until > now else 0.0
        if max(now, self._leased_until + step) < lease < math.inf:
            self._run(nftables.renew_all(self._lease()))
            self._leased_until = lease

    def _lease(self) -> list[tuple[str, str, float]]:
        """What `nftables.renew_all` takes to renew the lease."""
        left = self._store.lease - self._now()
        return [(LEASE, ip, left) for ip in ("ipv4", "ipv6")] if 0 < left < math.inf else []

    def _commands(self) -> str:
        """The nft(8) commands that add all known clients to empty sets, for `nftables.up`."""
        everybody = (each for element in self._elements for each in self._added(element))
        return "".join(f"{add}\n" for add in nftables.add_all(chain(self._lease(), everybody)))

    def _added(self, element: Element) -> Iterator[tuple[str, str, float]]:
        """What `nftables.renew_all` takes to add `element`."""
        left = element.lapses - self._now()
        if left > 0:
            self._counted.pop(element.place[1], None)  # its counter starts again at 0
            for name, text in element.places:
                yield name, text, left

    def _remove(self, places: Iterable[tuple[str, str]]) -> None:
        for some in batched(places, nftables.TOGETHER):  # bounds the memory of one transaction
            lines = [*nftables.remove_all(some)]
            if any(name.endswith("macs") for name, _ in some):
                lines += nftables.FORGET_LEARNED  # known clients are learned by the next packet
            self._run(lines)

    def _run(self, lines: Iterable[str]) -> None:
        try:
            self._rules.run("".join(f"{line}\n" for line in lines))
        except RulesError as error:
            if not error.missing:
                raise
            logger.debug("The router's rules are not loaded: there are no sets to update")


def _full(name: str) -> str:
    return f"set {name} of table {nftables.TABLE} is full: it has {MOST} clients, the maximum"


def up(
    policy: Policy,
    store: SessionStore,
    neighbours: Neighbours,
    *,
    proxy_ports: Sequence[int] = nftables.PROXY_PORTS,
) -> None:
    """`capport router up`: loads the rules with all known clients, then puts the fence up.

    Raises the errors of `nftables.up`.
    """
    with closing(KnownClients(lambda: policy, store, neighbours)) as known:
        known.apply(proxy_ports, only_replace=False)


def down() -> None:
    """`capport router down`: removes the rules, then the fence.

    In this order, because a running portal puts the fence back while the rules are loaded.
    """
    with closing(Nftables()) as rules, closing(Fence()) as fence:
        nftables.down(rules=rules)
        fence.take_away()
