"""Every session of a store in this process's memory, packed, so that `find` never waits.

200 bytes each with its dict entry (measured at 1 000 000), where `Session` objects take 700; and
nothing in the dict that the garbage collector would have to walk.
"""

import math
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from capport.core.client import ClientId
from capport.core.session import Instant, Session, first_open

_TIMES = struct.Struct("<5d")  # granted, expires, idle (inf: none), last_seen, granted_at
FLUSH_SECONDS = 30.0
"""What a crash may cost `last_seen`, at most; a quarter of the idle timeout where that is less."""

type Row = tuple[str, float, float, float | None, float, float, str, str, str]
"""A session as the database has it: in the order of `Session`, its instants in store time."""


class State(NamedTuple):
    """The sessions, and what to take off store time to have this boot's: swapped as one.

    `lengths` says how long the ids are that there may be: an unknown client is asked for under
    three, of which most networks use one, and each that is not looked up saves a wait for memory
    (0.6 us instead of 1.2 for the three, with 1 000 000 sessions: scripts/bench store).
    """

    records: dict[ClientId, bytes]
    shift: float
    lengths: bytearray


def pack(row: Row) -> bytes:
    """`row` less its client, in 40 bytes and its texts."""
    _, granted, expires, idle, last_seen, granted_at, by, how, name = row
    times = _TIMES.pack(granted, expires, math.inf if idle is None else idle, last_seen, granted_at)
    return times + f"{by}\0{how}\0{name}".encode()


def granted_at(record: bytes) -> float:
    """When its session was granted, in store time."""
    return float(_TIMES.unpack_from(record)[0])


class Replica:
    """Found by the event loop, changed by other threads, one of them at a time."""

    def __init__(self) -> None:
        self.state = State({}, 0.0, bytearray(256))
        self._heard: dict[ClientId, Instant] = {}
        self._hearing = threading.Lock()
        self.flush_due: Instant = math.inf

    def __len__(self) -> int:
        return len(self.state.records)

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """The open session under the first of `ids` that has one."""
        records, shift, lengths = self.state
        for client in ids:
            if lengths[len(client)] and (record := records.get(client)) is not None:
                session = first_open((self._session(client, record, shift),), now)
                if session is not None:
                    return session
        return None

    def sessions(self) -> Iterator[Session]:
        """Each session, as of the first step."""
        records, shift, _ = self.state
        for client, record in list(records.items()):
            yield self._session(client, record, shift)

    def get(self, client: ClientId) -> bytes | None:
        """Its session's record."""
        return self.state.records.get(client)

    def set(self, client: ClientId, record: bytes | None) -> bool:
        """Files `record`, or removes it if that is None; whether this changed anything."""
        records, _, lengths = self.state
        if records.get(client) == record:
            return False
        if record is None:
            records.pop(client, None)  # another thread may have been first
            with self._hearing:
                self._heard.pop(client, None)
        else:
            lengths[len(client)] = 1
            records[client] = record
        return True

    def replace(self, records: dict[ClientId, bytes], shift: float) -> State:
        """Swaps everything; returns what was there."""
        lengths = bytearray(256)
        for length in set(map(len, records)):
            lengths[length] = 1
        before, self.state = self.state, State(records, shift, lengths)
        return before

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was heard of, where its session is open and has an idle timeout."""
        records, shift, _ = self.state
        if (record := records.get(client)) is None:
            return
        session = self._session(client, record, shift)
        if session.idle is None or first_open((session,), now) is None:
            return
        with self._hearing:
            self._heard[client] = max(self._heard.get(client, now), now)
            self.flush_due = min(self.flush_due, now + min(FLUSH_SECONDS, session.idle / 4))

    def heard(self) -> dict[ClientId, Instant]:
        """When clients were heard of that is not written back yet; the next batch starts here."""
        with self._hearing:
            self.flush_due = math.inf
            return dict(self._heard)

    def written_back(self, heard: Iterable[tuple[ClientId, Instant]]) -> None:
        """The records now say so themselves."""
        with self._hearing:
            for client, at in heard:
                if self._heard.get(client) == at:
                    del self._heard[client]

    def _session(self, client: ClientId, record: bytes, shift: float) -> Session:
        granted, expires, idle, last_seen, granted_at = _TIMES.unpack_from(record)
        by, how, name = record[_TIMES.size :].decode().split("\0", 2)
        seen = last_seen - shift
        if idle == math.inf:
            return Session(
                client, granted - shift, expires - shift, None, seen, granted_at, by, how, name
            )
        if (heard := self._heard.get(client)) is not None and heard > seen:
            seen = heard
        return Session(
            client, granted - shift, expires - shift, idle, seen, granted_at, by, how, name
        )
