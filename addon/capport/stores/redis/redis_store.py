"""Sessions that the routers of a fleet share: a SessionStore over Redis, and a file of this router.

What this router grants is in its own SQLite file, so it needs Redis neither to keep it nor to find
it. What other routers grant is in memory, and in force while Redis answers, and for a lease of 60
seconds after that. `find` reads memory only. README.md in this folder has the whole design.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import batched, chain, islice
from pathlib import Path
from typing import NamedTuple

from capport import clock as clocks
from capport.core.client import Address, ClientId, Mac, parts_of
from capport.core.session import Instant, Session, check_times
from capport.stores import FullError, StoreError, Watcher
from capport.stores.redis.fleet_record import (
    MANY,
    NOTHING,
    ROUTERS,
    SKEW,
    FleetRecord,
    Grant,
    Revocation,
    bounded,
    dump,
    join,
    parse,
)
from capport.stores.redis.fleet_time import FleetTime
from capport.stores.redis.redis_link import ROUTER, TOGETHER, WORKER, RedisLink
from capport.stores.redis.router_marks import RouterMarks
from capport.stores.redis_url import RedisUrl
from capport.stores.replica import Replica, pack, row_of
from capport.stores.sqlite.housekeeping import GRACE_SECONDS, UPKEEP_SECONDS
from capport.stores.sqlite.store import SqliteStore
from capport.watchers import Watchers

logger = logging.getLogger(__name__)

TAKEN_SECONDS = 1.0
"""How long a grant or a revocation waits for Redis, before it holds on this router alone."""
OPEN_SECONDS = 5.0  # how long opening waits for the sessions in Redis
REMEMBERED = 86_400.0
"""Seconds that a revocation is remembered at least.

It may end a grant by a router that is cut off, which nobody here knows yet."""
SOME = 2000  # clients that are checked each second, to forget what is over
_NEVER: Instant = float("-inf")  # `find` at this instant also finds sessions that are over


class _Mark(NamedTuple):
    """What is known of a client beside its session.

    `router` granted the session; "" if there is none. `order` is that of its grant, or of one that
    is not in this router's file (yet). `sent`: Redis has all this. `of`: when the session in the
    file of this router was granted, and when it expires, if the order is its own.
    """

    revoked: Mapping[str, Revocation]
    order: int = 0
    router: str = ""
    sent: bool = False
    of: tuple[Instant, Instant] | None = None


_UNKNOWN = _Mark(NOTHING.revoked)


class RedisStore:
    """The SessionStore of one router: its own sessions are in `own`, all others in Redis.

    `own` is the store in the file at `path`. It is closed with this one, also if this one cannot be
    opened. With `about` (for commands), both have only the sessions whose id is or contains one of
    these addresses. With `follows` (for workers), another process of this router, which has the
    store open too, sends what this router knows.
    """

    def __init__(
        self,
        url: RedisUrl,
        path: Path,
        own: SqliteStore,
        *,
        about: Collection[Mac | Address] | None = None,
        follows: bool = False,
        clock: Callable[[], Instant] = clocks.now,
        fleet_time: FleetTime | None = None,
    ) -> None:
        self._time = fleet_time or FleetTime(clock)
        self._own, self._clock, self._about, self._follows = own, clock, about, follows
        self._writes = about is None and not follows
        self._foreign = Replica()
        self._foreign.lease = 0.0
        self._known: dict[ClientId, _Mark] = {}
        self._grants = 0
        self._unwritten: set[ClientId] = set()  # whose revocations are not on the disk yet
        self._changing = threading.RLock()
        self._watchers = Watchers[ClientId]("the session store")
        self._upkeep_due = clock() + UPKEEP_SECONDS
        self._to_forget: Iterator[ClientId] = iter(())
        self._closed = False
        with contextlib.ExitStack() as opened:
            opened.callback(self._own.close)
            self._marks = RouterMarks(path.with_name("fleet.db"), like=path, changed=own.ring)
            opened.callback(self._marks.close)
            self.router = self._marks.router
            self._load()
            opened.pop_all()
        self._link = RedisLink(
            url,
            self,
            self._time,
            clock,
            wants=None if about is None else self._wants,
            sign=WORKER if follows else ROUTER,
        )
        self._own.watch(self._own_changed)
        self._own.look_too(self._look)
        self._link.start(OPEN_SECONDS)

    def _load(self) -> None:
        """Reads what this router granted and revoked."""
        marks = {} if self._about is not None else self._marks.changed()
        for session in self._own.sessions():
            grant = marks.get(session.client, NOTHING).grant
            order = grant.order if grant else self._ms(session.granted)
            self._mark(session.client, _Mark({}, order, self.router, of=_times(session)))
        for client, record in marks.items():
            mark = self._known.get(client, _UNKNOWN)
            self._mark(client, mark._replace(revoked=record.revoked))

    @property
    def fault(self) -> str | None:
        """Why changes are not durable now, or hold on this router alone."""
        return self._own.fault or self._link.fault

    # --- the protocol SessionStore ---

    @property
    def lease(self) -> Instant:
        """Until when sessions of other routers are in force."""
        return self._foreign.lease

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one."""
        for client in ids:
            one = (client,)
            session = self._own.find(one, now) or self._foreign.find(one, now)
            if session is not None:
                return session
        return None

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`."""
        self._own.touch(client, now)
        self._foreign.touch(client, now)

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields each session, or those whose id is or has one of the addresses `about`."""
        return chain(self._own.sessions(about), self._foreign.sessions(about))

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change, whichever router made it."""
        return self._watchers.add(watcher)

    def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
        """Opens or replaces a session. On return it is on the disk of this router.

        Redis has it too, unless `fault` says why not. Then it holds on this router alone for now.
        """
        check_times(session)
        client = session.client
        self._fetch(client)
        with self._changing:
            mark, before = self._known.get(client, _UNKNOWN), self._session(client)
            if before is None:
                if renews:
                    return False
                if most is not None and self._grants >= most and self._about is None:
                    raise FullError.by_policy(most)
            else:
                session = replace(session, last_seen=max(session.last_seen, before.last_seen))
            now = self._time.now()
            if MANY in FleetRecord(mark.revoked).live(now):
                raise StoreError(
                    f"{client}: more than {ROUTERS} routers have revoked it; it can be granted"
                    " again when the last of these revocations is over"
                )
            mark = _Mark(
                FleetRecord(mark.revoked).without_past(now).revoked,
                max(mark.order + 1, round(now * 1000)),
                self.router,
                of=_times(session),
            )
            record = FleetRecord(mark.revoked, self._grant(session, mark))
            parse(dump(client, record))  # raises ValueError if others could not read it
            self._marks.write(client, record)
            self._own.put(session, most=None if self._about is None else most)
            self._mark(client, mark)
            self._foreign.set(client, None)
        self._link.publish([client], TAKEN_SECONDS)
        return True

    def revoke(self, client: ClientId) -> bool:
        """Ends a session. Returns whether there was one, at whichever router.

        It also ends grants by other routers that this one has not heard of yet.
        """
        failures: list[StoreError] = []
        found = None
        if self._about is not None:
            try:
                self._read_written(client)  # so that the revocation is newer than these
            except StoreError as error:
                failures.append(error)
            # Once it is written, the portal sends it, and Redis has no session any more.
            found = self._link.fetch(client, TAKEN_SECONDS)
        with self._changing:
            before = self._record(client)
            known = self._end(client, failures)
            number = self._number(client)
        if self._about is None:  # not before: the revocation is in force here first
            found = self._link.fetch(client, TAKEN_SECONDS)
        if found is not None:
            known = known or join(before, found[1], self._time.now()).grant is not None
            with self._changing:
                self.merge([found])
                if self._known[client].router or self._number(client) > number:
                    self._end(client, failures)  # above the newer number of this router in Redis
        taken = self._link.publish([client], TAKEN_SECONDS)
        if failures and not taken:
            raise StoreError(f"{failures[0]}; no other router knows of it yet") from failures[0]
        for failure in failures:
            logger.warning(f"{failure}; {client} is revoked, and Redis knows it")
        return known

    def _end(self, client: ClientId, failures: list[StoreError]) -> bool:
        """Revokes a client at this router, whatever fails. Returns whether it had a session."""
        before = self._session(client)
        record = self._revoked(client, before)
        self._mark(client, _Mark(record.revoked))
        was_open = self._foreign.find((client,), self._clock()) is not None
        if self._foreign.set(client, None) and was_open:
            self._watchers.notify(client)
        known = before is not None
        try:
            known = self._own.revoke(client) or known
        except StoreError as error:
            failures.append(error)
        try:
            self._marks.add({client: record}, self._time.now())
        except StoreError as error:
            self._unwritten.add(client)
            failures.append(error)
        return known

    def close(self) -> None:
        """Sends and writes what is pending, and closes everything."""
        if self._closed:
            return
        self._closed = True
        if touched := self._take_touches():
            self._link.publish(touched, TAKEN_SECONDS)
        self._link.stop()
        self._write_down()
        self._own.close()
        self._marks.close()
        self._foreign.replace({}, 0.0)
        self._watchers.close()

    # --- what the link asks ---

    def records(self, clients: Iterable[ClientId]) -> dict[ClientId, FleetRecord]:
        """What this router knows about these clients."""
        with self._changing:  # a mark and its session must be of the same grant
            return {client: self._record(client) for client in clients}

    def clients(self) -> list[ClientId]:
        """Every client about which Redis should know something from this process."""
        if self._follows:
            return []
        now, found = self._time.now(), list[ClientId]()
        for some in batched(tuple(self._known), SOME):
            with self._changing:
                found += [client for client in some if self._record(client).until() > now]
            time.sleep(0.001)  # grants wait for the lock: they get it now
        return found

    def merge(self, found: Sequence[tuple[ClientId, FleetRecord]]) -> list[bool]:
        """Takes over what is in Redis. Returns for each record whether this router knows more."""
        now = self._time.now()
        with self._changing:
            better = [self._merge(client, theirs, now, in_redis=True) for client, theirs in found]
        return [is_better and not self._follows for is_better in better]

    def taken(self, records: dict[ClientId, FleetRecord]) -> None:
        """Redis has these records now."""
        with self._changing:
            for client, record in records.items():
                mark = self._known.get(client)
                order = mark.order if mark and mark.router else 0
                if mark and (mark.revoked, order) == (record.revoked, _order(record)):
                    self._known[client] = mark._replace(sent=True)

    def renewed(self, lease: Instant) -> None:
        """Sessions of other routers are in force until `lease`."""
        self._foreign.lease = lease

    def tick(self) -> None:
        """Sends touches, writes what is pending, and forgets the past."""
        if self._clock() >= self._foreign.flush_due:
            self._link.publish(self._take_touches())
        self._write_down()
        self._forget_past()

    def summary(self) -> dict[str, object]:
        """How many sessions this router has granted, and how many it knows."""
        foreign = len(self._foreign.state.records)
        return {"own": self._grants - foreign, "known": self._grants}

    # --- merging ---

    def _merge(self, client: ClientId, theirs: FleetRecord, now: float, *, in_redis: bool) -> bool:
        """Takes over a record. Returns whether what is known now says more than the record."""
        before = self._known.get(client, _UNKNOWN)
        mine = self._record(client) if before is not _UNKNOWN else NOTHING
        joined = join(mine, theirs, now)
        own = self._own.find((client,), _NEVER)
        if own is not None and not self._is_ours(joined.grant):
            # Our session ends, unless another process of this router granted it and knew all this.
            # That process wrote what it knew before it granted.
            try:
                for written in self._marks.read(client):
                    joined = join(joined, written, now)
            except StoreError as error:
                self._marks.report(error)
        grant, is_better = joined.grant, not joined.says_the_same(theirs, now)
        sent = not is_better if in_redis else before.sent and joined.says_the_same(mine, now)
        # Of our own grants only those count that are in our file: that is where they are made.
        order, router = (grant.order, grant.router) if grant else (0, "")
        if own is None and router == self.router:
            router = ""
        of = before.of if (order, router) == (before.order, before.router) else _times(own)
        self._mark(client, _Mark(joined.revoked, order, router, sent, of))
        if in_redis and self._writes and joined.revoked != before.revoked:
            self._unwritten.add(client)
        self._carry_out(client, mine.grant, grant, own)
        return is_better

    def _carry_out(
        self, client: ClientId, before: Grant | None, after: Grant | None, own: Session | None
    ) -> None:
        """Makes the sessions here agree with the grant `after`. Watchers hear of it once."""
        changed = False
        if after is None or self._is_ours(after):
            changed = self._foreign.set(client, None)
            if after is not None:
                self._own.touch(client, after.last_seen - self._time.shift)
        elif before != after or after.last_seen > before.last_seen:
            changed = self._foreign.set(client, self._packed(client, after))
        if own is not None and not self._is_ours(after):
            try:
                self._own.revoke(client, granted_by=own.granted)  # its watcher calls ours
                return
            except StoreError as error:
                logger.warning(f"{client} is no longer known, but stays in the file: {error}")
        if changed:
            self._watchers.notify(client)

    def _look(self) -> None:
        """Takes over what another process of this router has granted or revoked.

        The own store calls this on its thread, so a command's revocation does not wait for Redis.
        """
        if self._about is not None:
            return
        with self._changing:
            try:
                changed = self._marks.changed()
            except StoreError as error:
                self._marks.report(error)
                return
            now = self._time.now()
            for client, record in changed.items():
                self._merge(client, record, now, in_redis=False)
            unsent = [one for one in changed if not self._known.get(one, _UNKNOWN).sent]
        self._send(unsent)

    def _own_changed(self, client: ClientId) -> None:
        """A session in this router's file has changed. This or another process did it."""
        self._watchers.notify(client)
        with self._changing:
            mark, session = self._known.get(client, _UNKNOWN), self._own.find((client,), _NEVER)
            if session is None:
                if mark.router == self.router:  # it was over, or another process revoked it
                    self._mark(client, mark._replace(router="", order=0))
            elif mark.router != self.router or mark.of != _times(session):
                if self._about is None:
                    self._take_own(client, session)
            elif session.idle is not None or not mark.sent:
                self._send([client])

    def _take_own(self, client: ClientId, session: Session) -> None:
        """Takes over a grant by another process. It is written to fleet.db before the file has it.

        So `_look` may have read it when there was no session, or the one before. Others may have
        the order with the times of that one, so the session gets the next order.
        """
        try:
            self._read_written(client)
        except StoreError as error:
            self._marks.report(error)
        mark = self._known.get(client, _UNKNOWN)
        if mark.router == self.router and mark.of != (of := _times(session)):
            self._mark(client, mark._replace(order=mark.order + 1, of=of, sent=False))
        if not self._known.get(client, _UNKNOWN).sent:
            self._send([client])

    # --- helpers ---

    def _send(self, clients: Iterable[ClientId]) -> None:
        """Sends what is known about them, unless another process does so (`follows`)."""
        if not self._follows:
            self._link.publish(clients)

    def _is_ours(self, grant: Grant | None) -> bool:
        return grant is not None and grant.router == self.router

    def _record(self, client: ClientId) -> FleetRecord:
        mark = self._known.get(client, _UNKNOWN)
        session = self._session(client) if mark.router else None
        return FleetRecord(mark.revoked, None if session is None else self._grant(session, mark))

    def _wants(self, client: ClientId) -> bool:
        try:
            return not set(self._about or ()).isdisjoint(parts_of(client))
        except ValueError:  # no client id: somebody else's key
            return False

    def _fetch(self, client: ClientId) -> None:
        """Reads what Redis has now, so that a grant here builds on the last change anywhere."""
        if self._about is not None:
            self._read_written(client)
        if (found := self._link.fetch(client, TAKEN_SECONDS)) is not None:
            self.merge([found])

    def _read_written(self, client: ClientId) -> None:
        """Takes over what the processes of this router wrote about a client. Raises StoreError."""
        with self._changing:
            for record in self._marks.read(client):
                self._merge(client, record, self._time.now(), in_redis=False)

    def _session(self, client: ClientId) -> Session | None:
        """The client's session, also if it is over."""
        found = self.find((client,), _NEVER)
        return found and found.without_lease()

    def _mark(self, client: ClientId, mark: _Mark) -> None:
        before = self._known.get(client, _UNKNOWN)
        self._grants += bool(mark.router) - bool(before.router)
        if mark.router or mark.revoked or mark.order:
            self._known[client] = mark
        else:
            self._known.pop(client, None)

    def _revoked(self, client: ClientId, session: Session | None) -> FleetRecord:
        """What is known of a client, after this router has revoked it."""
        now, revoked = self._time.now(), dict(self._known.get(client, _UNKNOWN).revoked)
        expires = 0.0 if session is None else session.expires + self._time.shift
        revoked[self.router] = Revocation(
            max(self._number(client) + 1, round(now * 1000)), max(now + REMEMBERED, expires)
        )
        return FleetRecord(bounded(FleetRecord(revoked).without_past(now).revoked, now))

    def _number(self, client: ClientId) -> int:
        """The number of this router's newest revocation of a client; 0 if there is none."""
        mine = self._known.get(client, _UNKNOWN).revoked.get(self.router)
        return mine.number if mine else 0

    def _grant(self, session: Session, mark: _Mark) -> Grant:
        return Grant(mark.order, mark.router, *row_of(session, self._time.shift)[1:])

    def _packed(self, client: ClientId, grant: Grant) -> bytes:
        _, _, *fields = astuple(grant)
        return pack(row_of(Session(client, *fields), -self._time.shift))

    def _take_touches(self) -> list[ClientId]:
        """Puts the touches of other routers' sessions into their records; returns the clients."""
        touches = self._foreign.touches()
        with self._changing:
            for client in touches:
                if (session := self._foreign.find((client,), _NEVER)) is not None:
                    self._foreign.set(client, pack(row_of(session, 0.0)))
        self._foreign.touches_written(touches.items())
        return [*touches]

    def _write_down(self) -> None:
        """Writes what is not on the disk: others' revocations, failed writes, unreadable rows."""
        if self._writes:
            with self._changing:
                self._unwritten |= self._marks.unreadable
        try:
            while self._unwritten:
                with self._changing:  # not for long: grants wait for it
                    some = {*islice(self._unwritten, TOGETHER)}
                    self._marks.add(self.records(some), self._time.now())
                    self._unwritten -= some
        except StoreError as error:
            self._marks.report(error)

    def _forget_past(self) -> None:
        """Removes sessions that are over, and revocations that have ended, of some clients.

        It takes only some at a time, because changes wait for it: 100 000 clients take 0.8 s.
        """
        over = self._clock() - GRACE_SECONDS
        past = self._time.now() - GRACE_SECONDS
        some = [*islice(self._to_forget, SOME)]
        with self._changing:
            for client in some:
                mark = self._known.get(client, _UNKNOWN)
                kept = mark._replace(
                    revoked=FleetRecord(mark.revoked).without_past(past).revoked,
                    order=mark.order if mark.router else 0,
                )
                foreign = self._foreign.find((client,), _NEVER)
                if foreign is not None and foreign.ends_by_itself < over:
                    self._foreign.set(client, None)
                    kept = kept._replace(router="", order=0)
                if kept != mark:
                    self._mark(client, kept)
        if not some and self._clock() >= self._upkeep_due:
            self._upkeep_due = self._clock() + UPKEEP_SECONDS
            self._to_forget = iter(tuple(self._known))
            try:
                self._marks.forget(past - SKEW)
            except StoreError as error:
                logger.warning(str(error))

    def _ms(self, at: Instant) -> int:
        return max(0, round((at + self._time.shift) * 1000))


def _times(session: Session | None) -> tuple[Instant, Instant] | None:
    """When a session was granted, and expires, to the millisecond."""
    return None if session is None else (round(session.granted, 3), round(session.expires, 3))


def _order(record: FleetRecord) -> int:
    return record.grant.order if record.grant else 0
