"""The kernel's sets of known clients, kept as the sessions and the policy's client rules have them.

A pair (address, MAC) for each client, and the MAC of each session that is filed under one, so that
a new address of its passes from the first packet on. The frames of a client behind another router
have that router's MAC; on a link without MACs there is the address alone. An address that a
sleeping client has left keeps its pair, for the check is by packet and by both; it loses it at once
when another MAC turns up there, or when the session ends. Every element has its session's time left
as its timeout: should this process die, it ends all the same.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import batched, chain
from typing import Protocol

from capport import clock
from capport.core.client import Address, Client, ClientId, Mac, Way, parse_address, parse_mac
from capport.core.policy import Policy
from capport.core.session import Instant
from capport.core.standing import Standing, standing, standing_of_id
from capport.linux import conntrack
from capport.linux.libnftables import Nftables, RulesError
from capport.router import nftables
from capport.router.elements import Element, Elements, Key
from capport.router.fence import Fence
from capport.router.ruleset import SET_SIZE, router_of
from capport.stores import FullError, SessionStore

logger = logging.getLogger(__name__)

RULE_LEASE = 86_400.0  # seconds an element lasts that is there by a client rule of the policy
IDLE_GRACE = 5.0  # seconds longer in the kernel, where the end is put off later than here
TRAFFIC = 10.0  # seconds between readings of the elements' counters, at most
RESYNC = 300.0  # seconds between comparisons with what the kernel has
SLACK = 5.0  # seconds by which the kernel may have another end than we: a listing takes its time
RETRY = 1.0  # seconds after something failed
REST = 9  # times the processor time that reading the kernel's tables took, until they are again
MOST = SET_SIZE * 3 // 4  # elements of a set; what has timed out is in it until the kernel clears
ADDRESSES = 64  # of one MAC at a time; a device with privacy addresses has some ten

SETS = ("known4", "known6", "routed4", "routed6")
ALL_SETS = (*SETS, "macs")


class Neighbourhood(Protocol):
    """The neighbour table of the client interface (`NetlinkNeighbours` keeps it)."""

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now."""

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has."""

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""

    def way(self, address: Address) -> Way | None:
        """How frames go to `address` and come from it; None where by no link of the clients'."""

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Has `watcher` called with each address whose MAC changed; returns what ends that."""


class KnownSet:
    """Follows the sessions of one store. `update` is for any thread; the rest is on one of its own.

    It does not watch the store: `changed` is called with each client whose session has changed.
    `policy` gives the policy in force, which is replaced whole. Without the table (`capport router
    down`) nothing is done and nothing fails; `up` puts everybody in again. Where a set is full,
    those who are in it stay, `told` gets one sentence, and whoever is left out is looked at again
    with the next comparison.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: SessionStore,
        neighbours: Neighbourhood,
        *,
        rules: Nftables | None = None,
        now: Callable[[], Instant] = clock.now,
        told: Callable[[str], None] = logger.error,
    ) -> None:
        self._policy = policy
        self._store = store
        self._neighbours = neighbours
        self._rules = rules or Nftables()
        self._listing = Nftables(elements_only=True)  # listing 100 000 takes 2 s
        self._fence = Fence()
        self._now = now
        self._told = told
        self._full: set[str] = set()  # the sets that somebody was left out of, since we compared
        self._said: set[str] = set()  # of those, whose being full is known
        self._elements = Elements()
        self._counted: dict[str, int] = {}
        self._behind: dict[Address, set[Address]] = {}  # a router of the clients' side: who is
        self._cut: queue.SimpleQueue[Collection[Address] | None] = queue.SimpleQueue()
        self._hang_up: Callable[[Collection[Address]], None] = _forget  # until there is a thread
        self._lock = threading.RLock()
        self._news = threading.Condition()
        self._changed: set[ClientId | Address] = set()
        self._lost: set[ClientId] = set()
        self._closed = False
        self._over = threading.Event()  # the same, for who waits for something else
        self._resync_at = now() + RESYNC
        self._rested_at = now()  # not before this
        self._failing = False
        self._traffic_at = now() + TRAFFIC
        self._stops: list[Callable[[], None]] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Puts the sets right, and keeps them so until `close`."""
        self._stops = [self._neighbours.watch(self.changed)]
        try:
            self.resync()
        except RulesError as error:  # who is in is in, and the thread tries again
            logger.error("The kernel's set of known clients is not up to date: %s", error)
            self._failing = True
            self._compare(after=RETRY)
        self._hang_up = self._cut.put
        for work in (self._follow, self._disconnect):
            thread = threading.Thread(target=work, name=f"known-set{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def update(self, ids: Iterable[ClientId]) -> None:
        """Carries out what has changed for these clients; in force on return.

        Raises FullError where there is no place for one, and RulesError where the kernel would
        not have it; it is tried again at once. Takes 0.3 ms a client; before `start` (a command
        that runs once), as long as `resync`, for then only the kernel knows who is in.
        """
        try:
            with self._lock:
                if not self._threads:
                    self.resync()
                    return
                keys = [[*self._keys(client)] for client in ids]
                left_out = self._settle(key for mine in keys for key in mine)
                if any(mine[0] in left_out for mine in keys):
                    raise FullError(_full(sorted(self._full)[0]))
        except RulesError:
            self._compare(after=0.0)  # what is in the sets, the kernel alone knows now
            raise
        finally:
            with self._news:
                self._news.notify()  # there may be an earlier end to wait for

    def has(self, client: Client) -> bool:
        """Whether it has been put into the kernel's sets, and nobody here has taken it out."""
        return client.address in self._elements or (
            client.mac is not None and client.mac in self._elements
        )

    def changed(self, what: ClientId | Address) -> None:
        """A client's session, or the MAC of an address, has changed: followed shortly."""
        with self._news:
            self._changed.add(what)
            self._news.notify()

    def again(self, client: ClientId) -> None:
        """The kernel lacks what it should have of this client's: it is put in again, shortly."""
        with self._news:
            self._lost.add(client)
        self.changed(client)

    def resync(self) -> None:
        """Compares the sets with the sessions, element by element, and puts them right."""
        began = time.thread_time()
        try:
            self._put_right()
        finally:
            self._rested_at = self._now() + REST * (time.thread_time() - began)
        self._failing = False

    def _put_right(self) -> None:
        found = self._in_kernel()  # without the lock: what has changed since is put right below
        with self._lock:
            self._full.clear()
            mine = {element.place for element in self._elements}
            for element in self._elements:
                there = found.get(element.place)
                if there is None or abs(there.lapses - element.lapses) > SLACK:
                    self._elements.forget(element)
                    mine.discard(element.place)
            strays = []
            for place, element in found.items():
                if place in mine:
                    continue
                if element.key in self._elements:
                    strays.append(place)
                else:
                    self._elements.file(replace(element, lapses=0.0))  # renewed, if it stays
            self._remove(strays)
            self._behind.clear()
            self._settle(self._everybody())
            self._said &= self._full

    def commands(self) -> str:
        """Commands that put everybody known into empty sets, for `nftables.up`."""
        with self._lock:
            self.resync()
            everybody = nftables.renew_all(each for e in self._elements for each in self._added(e))
            return "".join(f"{add}\n" for add, _, _ in everybody)

    def reapply(self) -> None:
        """Puts the rules of a policy that is new into force, where there are rules in force.

        With the same proxy ports, and nobody known loses a packet. Raises what `nftables.up` does.
        """
        if (now := nftables.in_force(self._rules)) is not None:
            self.apply(now.proxy_ports, again=True)

    def apply(self, proxy_ports: Sequence[int], *, again: bool) -> None:
        """Puts the rules into force with everybody known, and then the fence around them.

        `again`, unless they are gone by now. Raises what `nftables.up` does.
        """
        with self._lock:
            policy, elements = self._policy(), self.commands()
            try:
                nftables.up(
                    policy,
                    proxy_ports=proxy_ports,
                    elements=elements,
                    again=again,
                    rules=self._rules,
                )
            except RulesError as error:
                if again and error.missing:
                    return
                raise
            self.put_fence()

    def put_fence(self) -> bool:
        """Has nothing forwarded from the clients without the rules; whether that was amiss."""
        with self._lock:
            return self._fence.put(router_of(self._policy()).client_interface)

    def take_fence_away(self) -> None:
        """Once the rules are down, and meant to be."""
        with self._lock:
            self._fence.take_away()

    def close(self) -> None:
        """Ends following; the sets stay as they are, and run out by their timeouts."""
        for stop in self._stops:
            stop()
        self._stops = []
        with self._news:
            self._closed = True
            self._news.notify()
        self._cut.put(None)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listing.close()
        self._rules.close()
        self._fence.close()

    # The thread.

    def _follow(self) -> None:
        while True:
            with self._news:
                if not self._changed and not self._closed:
                    due = min(self._resync_at, self._traffic_at, self._elements.next_look)
                    self._news.wait(max(0.0, due - self._now()))
                if self._closed:
                    return
                changed, self._changed = self._changed, set()
                lost, self._lost = self._lost, set()
            try:
                self._forget(lost)
                self._turn(changed, self._now())
            except Exception:  # the edge: a thread that ended would leave revoked clients in
                if not self._failing:
                    logger.exception("The kernel's set of known clients is not up to date")
                self._failing = True
                self._compare(after=RETRY)

    def _turn(self, changed: Iterable[ClientId | Address], now: Instant) -> None:
        with self._lock:
            ended = [*self._elements.ended(now)]
            self._settle([*self._meant(changed), *(k for k in ended if not self._is_idle(k, now))])
        if now >= self._traffic_at or any(self._is_idle(key, now) for key in ended):
            self._traffic_at = now + self._traffic_interval()
            self._hear(now)
        if now >= self._resync_at:
            self._resync_at = now + RESYNC
            self.resync()

    def _compare(self, after: float) -> None:
        """Has the sets compared in `after` seconds: later, where that would be all that is done."""
        self._resync_at = max(self._now() + after, self._rested_at)

    def _traffic_interval(self) -> float:
        idle = self._policy().sessions.idle
        return TRAFFIC if idle is None else min(TRAFFIC, max(1.0, idle / 4))

    def _meant(self, changed: Iterable[ClientId | Address]) -> Iterator[Key]:
        for one in changed:
            if isinstance(one, str):
                yield from self._keys(one)
            else:
                yield one
                yield from self._behind.pop(one, ())

    def _forget(self, lost: Iterable[ClientId]) -> None:
        with self._lock:
            for key in [key for client in lost for key in self._keys(client)]:
                if (element := self._elements.get(key)) is not None:
                    self._elements.forget(element)

    def _hear(self, now: Instant) -> None:
        """Has what the kernel forwards keep sessions with an idle time alive."""
        if not any(element.idle for element in self._elements):
            return
        counted: dict[str, int] = {}
        for name in SETS:
            counted |= nftables.counters(self._listing, name)
        with self._lock:
            idle = [e for e in self._elements if e.idle]
            for element in idle:
                packets = counted.get(element.place[1], 0)
                if element.session and packets > self._counted.get(element.place[1], 0):
                    self._store.touch(element.session, now)
            self._counted = counted
            self._settle([element.key for element in idle])

    def _is_idle(self, key: Key, now: Instant) -> bool:
        """Whether its session would soon be over for want of traffic."""
        element = self._elements.get(key)
        return element is not None and element.idle and now < element.until

    def _disconnect(self) -> None:
        """Forgets the connections of those who are out: on a thread, for it may be thousands.

        Of all together who have come to be out while it was done for others.
        """
        some: list[Collection[Address] | None] = []
        while None not in some:
            some = [self._cut.get()]
            while not self._cut.empty():
                some.append(self._cut.get())
            began = time.thread_time()
            _forget({address for addresses in some for address in addresses or ()})
            self._over.wait(REST * (time.thread_time() - began))

    # With the lock.

    def _keys(self, client: ClientId) -> Iterator[Key]:
        """What in the sets an id stands for: where it is, where it was last, and its MAC."""
        text, at, address = client.partition("@")
        if at:
            yield parse_address(address)
            return
        try:
            mac = parse_mac(text)
        except ValueError:
            yield parse_address(text)
            return
        yield mac
        yield from {*self._neighbours.addresses(mac), *self._elements.addresses(mac)}

    def _everybody(self) -> Iterator[Key]:
        """Who is in first: where there is no place for all, they stay."""
        yield from [element.key for element in self._elements]
        yield from (address for address, _ in self._neighbours.items())
        for session in self._store.sessions():
            yield from self._keys(session.client)

    def _settle(self, keys: Iterable[Key]) -> set[Key]:
        """Brings the sets up to date at `keys`: first who is out, then who is in.

        Returns who should be in, and finds no place.
        """
        now = self._now()
        out: list[Element] = []
        into: list[Element] = []
        left_out: set[Key] = set()
        for key in dict.fromkeys(keys):
            before = self._elements.get(key)
            after = self._wanted(key, before, now)
            if before and (after is None or after.place != before.place):
                self._elements.forget(before)
                out.append(before)
                before = None
            if after is None or after == before:
                continue
            if before is None and not self._has_place(after):
                left_out.add(key)
                continue
            if before is None and (after := self._bounded(after, out)) is None:
                continue
            if before is None or after.until > before.lapses or after.until < before.until:
                into.append(after)
            else:
                after = replace(after, lapses=before.lapses)
            self._elements.file(after)
        self._remove(place for element in out for place in element.places)
        if gone := [element.address for element in out if element.address is not None]:
            self._hang_up(gone)
        for some in batched(into, nftables.TOGETHER):
            added = chain.from_iterable(map(self._added, some))
            self._run(chain.from_iterable(nftables.renew_all(added)))
        return left_out

    def _wanted(self, key: Key, before: Element | None, now: Instant) -> Element | None:
        """What `key` should have in the sets now."""
        if isinstance(key, str):
            session = self._store.find([ClientId(key)], now)
            found = standing_of_id(ClientId(key), self._policy(), session, now)
            return self._of_session(key, key, found)  # of a rule's own, the rules have it already
        if key.is_link_local or key.is_multicast or key.is_unspecified:
            return None  # never forwarded
        way: Way | None = Way(key)
        mac = self._neighbours.find_mac(key)
        if mac is None or self._store.find((ClientId(str(key)),), now):
            way = self._neighbours.way(key)
            if way != Way(key):
                mac = None  # on the link, any device can put its own there
            elif mac is None and before:
                mac = before.mac
        client = Client(key, mac)
        found = standing(client, self._policy(), self._store.find(client.ids, now), now)
        if element := self._of_session(key, mac, found):
            return self._bound(element, key, way, before)
        if not found.is_known or mac is None:
            return None  # off the link, the rules have it already
        until = now + RULE_LEASE
        if before and before.session is None and before.until > now + RULE_LEASE / 2:
            until = before.until
        return Element(key, mac, until, None, until)

    def _of_session(self, key: Key, mac: Mac | None, found: Standing) -> Element | None:
        session = found.open_session
        if session is None:
            return None
        idle = session.idle is not None
        lapses = session.ends + IDLE_GRACE * idle
        return Element(key, mac, session.ends, session.client, lapses, idle)

    def _has_place(self, element: Element) -> bool:
        """Whether the kernel has a place for one more; says so once where it has not."""
        for name, _ in element.places:
            if self._elements.count(name) >= MOST:
                self._full.add(name)
                if name not in self._said:
                    self._said.add(name)
                    self._told(_full(name))
                return False
        return True

    def _bound(
        self, element: Element, address: Address, way: Way | None, before: Element | None
    ) -> Element | None:
        """`element` with the MAC that its frames come from; None where that is not known.

        Without a MAC it would be anybody's on the link.
        """
        if element.mac is not None or way == Way(None):
            return element
        if way is None or way.hop is None or way.hop == address:
            return None
        self._behind.setdefault(way.hop, set()).add(address)
        hop = self._neighbours.find_mac(way.hop) or (before.sender if before else None)
        return replace(element, hop=hop) if hop else None

    def _bounded(self, element: Element, out: list[Element]) -> Element | None:
        """`element`, if its MAC may have one more address: `out` gets one that it has left."""
        mine = self._elements.addresses(element.mac) if element.mac and element.address else ()
        if len(mine) < ADDRESSES:
            return element
        left = next((a for a in mine if self._neighbours.find_mac(a) != element.mac), None)
        leaves = None if left is None else self._elements.get(left)
        if leaves is None:
            return None
        out.append(leaves)
        self._elements.forget(leaves)
        return element

    def _in_kernel(self) -> dict[tuple[str, str], Element]:
        found: dict[tuple[str, str], Element] = {}
        for name in ALL_SETS:
            now = self._now()
            for text, left in nftables.listed(self._listing, name):
                if name == "macs":
                    mac = parse_mac(text)
                    found[name, text] = Element(mac, mac, lapses=now + left)
                    continue
                address, _, pair = text.partition(" . ")
                bound = parse_mac(pair) if pair else None
                found[name, text] = Element(parse_address(address), bound, lapses=now + left)
        return found

    def _added(self, element: Element) -> Iterator[tuple[str, str, float]]:
        left = element.lapses - self._now()
        if left > 0:
            self._counted.pop(element.place[1], None)  # its counter begins anew
            for name, text in element.places:
                yield name, text, left

    def _remove(self, places: Iterable[tuple[str, str]]) -> None:
        for some in batched(places, nftables.TOGETHER):  # what a transaction takes fits into memory
            lines: list[str] = []
            for place in some:
                lines += nftables.remove(*place)
                if place[0] == "macs":  # whoever is known still is learned anew by its next packet
                    lines += nftables.FORGET_LEARNED
            self._run(dict.fromkeys(lines))

    def _run(self, lines: Iterable[str]) -> None:
        try:
            self._rules.run("".join(f"{line}\n" for line in lines))
        except RulesError as error:
            if not error.missing:
                raise
            logger.debug("The router's rules are not up: nothing to tell the kernel")


def _full(name: str) -> str:
    return f"set {name} of table {nftables.TABLE} is full: it has the {MOST} clients that it takes"


def _forget(addresses: Collection[Address]) -> None:
    try:
        conntrack.forget(addresses)
    except OSError as error:
        # Their packets are refused all the same, one by one.
        count = len(addresses)
        logger.warning("What %d addresses had open is still in conntrack: %s", count, error)


def up(
    policy: Policy,
    store: SessionStore,
    neighbours: Neighbourhood,
    *,
    proxy_ports: Sequence[int] = nftables.PROXY_PORTS,
    rules: Nftables | None = None,
) -> None:
    """`capport router up`: the rules and everybody who is known, in one transaction; the fence.

    Raises what `nftables.up` does.
    """
    with closing(KnownSet(lambda: policy, store, neighbours, rules=rules)) as known:
        known.apply(proxy_ports, again=False)


def down() -> None:
    """`capport router down`: the rules first, for whoever keeps them puts a fence back."""
    nftables.down()
    with closing(Fence()) as fence:
        fence.take_away()
