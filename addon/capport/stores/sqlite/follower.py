"""Reads the file into the replica: everything once, then each change by any process.

Revocations that are noted beside the file count too: they overrule what is in the file.
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
from capport.watchers import Watchers

_LONGEST = 255  # characters of an id: far more than a MAC and an address have

_ALL = f"SELECT {COLUMNS} FROM sessions"  # noqa: S608
_ONE = f"{_ALL} WHERE client = ?"
_CHANGED = f"""SELECT c.client, {COLUMNS.removeprefix("client, ")}
    FROM changes AS c LEFT JOIN sessions AS s ON s.client = c.client
    WHERE c.seq > ? ORDER BY c.seq
"""  # noqa: S608
# By the primary key: the id itself, and each id that binds this MAC to an address (`A` is the
# character after `@`).
_ABOUT = f"{_ALL} WHERE client = ?1 OR client > ?1 || '@' AND client < ?1 || 'A'"
# Without an index, because few sessions are bound: 80 ms with a million sessions.
_BOUND_TO = f"{_ALL} WHERE substr(client, 18) = '@' || ?"


class Follower:
    """Keeps `replica` up to date, and notifies `watchers` of each client whose session changed.

    With `about`, it reads only sessions whose id is or contains one of these addresses.
    """

    def __init__(
        self,
        replica: Replica,
        revocations: Revocations,
        store_time: StoreTime,
        watchers: Watchers[ClientId],
        about: Collection[Mac | Address] | None,
    ) -> None:
        self._replica, self._revocations, self._time = replica, revocations, store_time
        self._watchers, self._about = watchers, about
        self._seq = 0

    def sync(self, database: Database, also: ClientId | None = None) -> bool:
        """Updates the replica to what is committed and noted. Returns whether it read the file.

        The session of `also` is read even if it has not changed, because a new grant may have been
        ignored here while the client was being revoked.
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
                    database.report(describe(database.path, error))
                    readable = False
                finally:
                    roll_back(reader)
            # Read after the rows: a client that is still noted then was not granted since.
            noted = self._revocations.noted()
            for client, record in changed.items():
                revoked = self._revocations.cover(client, record, noted)
                self._set(client, None if revoked else record)
            for client in self._revocations.all(noted):
                if self._revocations.cover(client, self._replica.get(client), noted):
                    self._set(client, None)
            return readable

    def load(self, db: sqlite3.Connection) -> None:
        """Reads a file that was just opened. Its store time may differ from the last file's."""
        db.execute("BEGIN")
        try:
            shift = self._time.shift(db) - self._replica.state.shift
            self._revocations.shifted(shift)
            try:
                self._load(db)
            except BaseException:
                self._revocations.shifted(-shift)
                raise
        finally:
            roll_back(db)

    def _read(self, db: sqlite3.Connection) -> dict[ClientId, bytes | None]:
        """The records that have changed since the last call.

        If that was too long ago, it reads everything into the replica and returns nothing.
        """
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
        changed = {_id_of(row): None if row[1] is None else pack(row) for row in rows}
        self._seq = last
        return changed

    def _load(self, db: sqlite3.Connection) -> None:
        """Reads everything, in a transaction: 2.4 s for 1 000 000 sessions."""
        shift = self._time.shift(db)
        (seq,) = db.execute("SELECT max(seq) FROM changes").fetchone()
        records = {_id_of(row): pack(row) for row in self._rows(db)}
        noted = self._revocations.noted()
        for client in self._revocations.all(noted):
            if self._revocations.cover(client, records.get(client), noted):
                records.pop(client, None)
        changed = self._differing(records) if self._watchers else []
        self._replica.replace(records, shift)
        self._seq = seq or 0
        for client in changed:
            self._watchers.notify(client)

    def _rows(self, db: sqlite3.Connection) -> Iterator[Row]:
        if self._about is None:
            yield from db.execute(_ALL)
            return
        for part in self._about:
            yield from db.execute(_ABOUT, (str(part),))
            if not isinstance(part, str):
                yield from db.execute(_BOUND_TO, (str(part),))

    def _differing(self, records: dict[ClientId, bytes]) -> list[ClientId]:
        """The clients whose session differs in `records`, without removed ones that were over."""
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
            self._watchers.notify(client)


def _id_of(row: Row) -> ClientId:
    """The client of a row. The replica has no room for a longer id than `_LONGEST`."""
    if len(row[0]) > _LONGEST:
        error = sqlite3.DatabaseError(f"an id of {len(row[0])} characters")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    return ClientId(row[0])
