"""Reading the file into the replica: all of it once, then what has changed, by whichever process.

What is noted as revoked beside the file counts too, and more than what is in it.
"""

import sqlite3
from collections.abc import Collection, Iterator

from capport.core.client import Address, ClientId, Mac
from capport.stores.replica import Replica, Row, pack
from capport.stores.sqlite.boot_clock import StoreTime
from capport.stores.sqlite.database import Database
from capport.stores.sqlite.revocations import Revocations
from capport.stores.sqlite.schema import describe, roll_back
from capport.stores.sqlite.session_schema import COLUMNS
from capport.stores.subscribers import Watchers

_ALL = f"SELECT {COLUMNS} FROM sessions"  # noqa: S608
_ONE = f"{_ALL} WHERE client = ?"
_CHANGED = f"""SELECT c.client, {COLUMNS.removeprefix("client, ")}
    FROM changes AS c LEFT JOIN sessions AS s ON s.client = c.client
    WHERE c.seq > ? ORDER BY c.seq
"""  # noqa: S608
# By the primary key: the id itself, and each that binds a MAC to an address (`A` follows `@`).
_ABOUT = f"{_ALL} WHERE client = ?1 OR client > ?1 || '@' AND client < ?1 || 'A'"
# By none, for few sessions are bound: 80 ms with a million.
_BOUND_TO = f"{_ALL} WHERE substr(client, 18) = '@' || ?"


class Follower:
    """Keeps `replica`, and tells `watchers` whom something changed for.

    With `about`, it reads no sessions but those filed under one of these, alone or in a pair.
    """

    def __init__(
        self,
        replica: Replica,
        revocations: Revocations,
        store_time: StoreTime,
        watchers: Watchers,
        about: Collection[Mac | Address] | None,
    ) -> None:
        self._replica, self._revocations, self._time = replica, revocations, store_time
        self._watchers, self._about = watchers, about
        self._seq = 0

    def sync(self, database: Database, also: ClientId | None = None) -> bool:
        """Brings the replica up to what is committed and noted; whether the file could be read.

        `also` is read even if it has not changed: a grant of it may have been held back while it
        was being revoked.
        """
        with database.reading:
            reader = database.reader
            readable = reader is not None
            changed: dict[ClientId, bytes | None] = {}
            if reader is not None:
                try:
                    reader.execute("BEGIN")
                    changed = self._read(reader)
                    if also is not None:
                        row = reader.execute(_ONE, (also,)).fetchone()
                        changed[also] = row and pack(row)
                except sqlite3.Error as error:
                    database.say(describe(database.path, error))
                    readable = False
                finally:
                    roll_back(reader)
            # After the rows: what is still noted then was not granted since.
            noted = self._revocations.noted()
            for client, record in changed.items():
                revoked = self._revocations.hold(client, record, noted)
                self._set(client, None if revoked else record)
            for client in self._revocations.all(noted):
                if self._revocations.hold(client, self._replica.get(client), noted):
                    self._set(client, None)
            return readable

    def load(self, db: sqlite3.Connection) -> None:
        """Reads a file that was opened: its store time need not be that of the one before it."""
        shift = self._time.shift(db) - self._replica.state.shift
        self._revocations.shifted(shift)
        try:
            self._load(db)
        except BaseException:
            self._revocations.shifted(-shift)
            raise

    def _read(self, db: sqlite3.Connection) -> dict[ClientId, bytes | None]:
        """The records of what has changed since the last time; everything, if that is too long."""
        first, last = db.execute(
            "SELECT (SELECT min(seq) FROM changes), (SELECT max(seq) FROM changes)"
        ).fetchone()
        first, last = first or 0, last or 0
        shifted = self._time.shift(db) != self._replica.state.shift
        if shifted or last < self._seq or first > self._seq + 1:
            self._load(db)
            return {}
        if last == self._seq:
            return {}
        rows = db.execute(_CHANGED, (self._seq,))
        changed = {ClientId(row[0]): None if row[1] is None else pack(row) for row in rows}
        self._seq = last
        return changed

    def _load(self, db: sqlite3.Connection) -> None:
        """Reads everything: 2.4 s for 1 000 000 sessions."""
        own = not db.in_transaction
        if own:
            db.execute("BEGIN")
        try:
            shift = self._time.shift(db)
            (seq,) = db.execute("SELECT max(seq) FROM changes").fetchone()
            records = {ClientId(row[0]): pack(row) for row in self._rows(db)}
        finally:
            if own:
                roll_back(db)
        noted = self._revocations.noted()
        for client in self._revocations.all(noted):
            if self._revocations.hold(client, records.get(client), noted):
                records.pop(client, None)
        changed = self._differing(records) if self._watchers else []
        self._replica.replace(records, shift)
        self._seq = seq or 0
        for client in changed:
            self._watchers.tell(client)

    def _rows(self, db: sqlite3.Connection) -> Iterator[Row]:
        if self._about is None:
            yield from db.execute(_ALL)
            return
        for part in self._about:
            yield from db.execute(_ABOUT, (str(part),))
            if not isinstance(part, str):
                yield from db.execute(_BOUND_TO, (str(part),))

    def _differing(self, records: dict[ClientId, bytes]) -> list[ClientId]:
        """Whom a replica of `records` would change something for."""
        before = self._replica.state.records
        return [
            client
            for client in before.keys() | records.keys()
            if before.get(client) != records.get(client)
            and (client in records or self._is_open(client))
        ]

    def _is_open(self, client: ClientId) -> bool:
        return self._replica.find((client,), self._time.now()) is not None

    def _set(self, client: ClientId, record: bytes | None) -> None:
        was_open = self._is_open(client)
        if self._replica.set(client, record) and (was_open or record is not None):
            self._watchers.tell(client)
