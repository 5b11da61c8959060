"""Every session of a store, packed, in this process's memory, so that `find` never waits.

A packed session takes 200 bytes with its dict entry (measured at 1 000 000), a `Session` object
700. The dict holds only bytes, so the garbage collector has nothing in it to walk.
"""

import math
import struct
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from capport.core.client import ClientId
from capport.core.session import Instant, Session, first_open

_TIMES = struct.Struct("<5d")  # granted, expires, idle (inf: none), last_seen, granted_at
FLUSH_SECONDS = 30.0
"""Seconds between two writes of `last_seen`, which a crash loses at most.

With a short idle timeout it is a quarter of that.
"""

type Row = tuple[str, float, float, float | None, float, float, str, str, str]
"""A row of the database: the fields of `Session` in their order, its instants in store time."""


def row_of(session: Session, shift: float) -> Row:
    """The row of `session`, in a time that is `shift` seconds ahead of the session's."""
    return (
        session.client,
        session.granted + shift,
        session.expires + shift,
        session.idle,
        max(session.last_seen, session.granted) + shift,
        session.granted_at,
        session.by,
        session.how,
        session.name,
    )


class ReplicaState(NamedTuple):
    """The sessions, and what to subtract from store time for an instant of this boot's clock.

    They are one value, so that both are replaced at once. `lengths[n]` is 1 if some id may have n
    characters. The gate looks a client up under three ids, of which most networks use one. An id of
    another length needs no look-up, which saves a wait for memory (three ids take 0.6 us instead of
    1.2, with 1 000 000 sessions: scripts/bench store). `bound` has the ids that bind a MAC to an
    address, under each of the two.
    """

    records: dict[ClientId, bytes]
    shift: float
    lengths: bytearray
    bound: dict[str, set[ClientId]]

    def note(self, client: ClientId) -> None:
        """Notes that there is an id, in `lengths` and `bound`."""
        self.lengths[len(client)] = 1
        if "@" in client:
            for part in client.split("@"):
                self.bound.setdefault(part, set()).add(client)

    def remove(self, client: ClientId) -> None:
        """Removes a record, if it is there."""
        self.records.pop(client, None)  # another thread may have been first
        for part in client.split("@") if "@" in client else ():
            mine = self.bound.get(part, set())
            mine.discard(client)
            if not mine:
                self.bound.pop(part, None)


def pack(row: Row) -> bytes:
    """Packs `row` without its client: 40 bytes of times, then its texts."""
    _, granted, expires, idle, last_seen, granted_at, by, how, name = row
    times = _TIMES.pack(granted, expires, math.inf if idle is None else idle, last_seen, granted_at)
    return times + f"{by}\0{how}\0{name}".encode()


def granted(record: bytes) -> float:
    """When the session in `record` was granted, in store time."""
    return float(_TIMES.unpack_from(record)[0])


class Replica:
    """The sessions: the event loop finds them, other threads change them, one at a time."""

    def __init__(self) -> None:
        self.state = ReplicaState({}, 0.0, bytearray(256), {})
        self._touches: dict[ClientId, Instant] = {}
        """When clients were active, as far as the database does not have it yet."""
        self._touching = threading.Lock()
        self.flush_due: Instant = math.inf
        self.lease: Instant = math.inf
        """The lease of every session here (`Session.lease`)."""

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one."""
        records, shift, lengths, _ = self.state
        for client in ids:
            if lengths[len(client)] and (record := records.get(client)) is not None:
                session = first_open((self._session(client, record, shift),), now)
                if session is not None:
                    return session
        return None

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields the sessions that there are when this begins, or those about some addresses."""
        records, shift, _, bound = self.state
        if about is None:
            ids = tuple(records)
        else:
            named = {ClientId(part) for part in about}
            ids = tuple(named.union(*(bound.get(part, ()) for part in about)))
        for client in ids:
            if (record := records.get(client)) is not None:
                yield self._session(client, record, shift)

    def get(self, client: ClientId) -> bytes | None:
        """The record of the client's session."""
        return self.state.records.get(client)

    def set(self, client: ClientId, record: bytes | None) -> bool:
        """Sets the client's record; None removes it. Returns whether that changed anything."""
        state = self.state
        if state.records.get(client) == record:
            return False
        if record is None:
            state.remove(client)
            with self._touching:
                self._touches.pop(client, None)
        else:
            state.note(client)
            state.records[client] = record
        return True

    def replace(self, records: dict[ClientId, bytes], shift: float) -> None:
        """Replaces everything."""
        state = ReplicaState(records, shift, bytearray(256), {})
        for client in records:
            state.note(client)
        self.state = state

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active, if its session is open and has an idle timeout."""
        records, shift, *_ = self.state
        if (record := records.get(client)) is None:
            return
        session = self._session(client, record, shift)
        if session.idle is None or first_open((session,), now) is None:
            return
        with self._touching:
            self._touches[client] = max(self._touches.get(client, now), now)
            self.flush_due = min(self.flush_due, now + min(FLUSH_SECONDS, session.idle / 4))

    def touches(self) -> dict[ClientId, Instant]:
        """When clients were active, to be written now; later touches are due another time."""
        with self._touching:
            self.flush_due = math.inf
            return dict(self._touches)

    def touches_written(self, touches: Iterable[tuple[ClientId, Instant]]) -> None:
        """Forgets `touches`: the records have them now."""
        with self._touching:
            for client, at in touches:
                if self._touches.get(client) == at:
                    del self._touches[client]

    def _session(self, client: ClientId, record: bytes, shift: float) -> Session:
        granted, expires, idle, last_seen, granted_at = _TIMES.unpack_from(record)
        by, how, name = record[_TIMES.size :].decode().split("\0", 2)
        seen, silence, lease = last_seen - shift, None, self.lease
        if idle != math.inf:
            silence = idle
            if (touched := self._touches.get(client)) is not None and touched > seen:
                seen = touched
        begins, ends = granted - shift, expires - shift
        return Session(client, begins, ends, silence, seen, granted_at, by, how, name, lease)
