"""What this router must remember about grants and revocations, in a file of its own.

Sessions that this router granted are in its session store. The file `fleet.db` beside it has the
router's id; the revocations that were known when each of those sessions was granted; and each
revocation that this router made or heard of, until every session that it ends would have ended. So
grants and revocations are not forgotten if Redis comes back empty, or older than it was.
"""

import contextlib
import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.record_json import RecordError, client_of
from capport.stores.redis.fleet_record import FleetRecord, dump, join, parse
from capport.stores.sqlite.database import Contents, Database
from capport.stores.sqlite.schema import Schema

logger = logging.getLogger(__name__)

SCHEMA = Schema(
    "a router's part in a fleet",
    0x63617066,  # "capf"
    (
        (
            "CREATE TABLE router (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)"
            " STRICT",
            # `seq` grows with each change, so that another process reads only what is new.
            """CREATE TABLE marks (seq INTEGER PRIMARY KEY AUTOINCREMENT,
                client TEXT NOT NULL UNIQUE, record TEXT NOT NULL, until REAL NOT NULL) STRICT""",
        ),
    ),
)

_WRITE = "INSERT OR REPLACE INTO marks (client, record, until) VALUES (?, ?, ?)"
# As bytes, so that one row that is no UTF-8 does not hide all others.
_OF_CLIENT = "SELECT client, CAST(record AS BLOB) FROM marks WHERE client = ?"
_CHANGED = """SELECT CAST(client AS BLOB), CAST(record AS BLOB), seq FROM marks
    WHERE seq > ? ORDER BY seq"""


class RouterMarks:
    """The file at `path`; processes of one router share it. Every method may wait for the disk.

    A row that cannot be read is reported, and left out. `unreadable` has its client until the row
    is written again, with what this router and Redis know. `changed` is called after each write.
    """

    def __init__(
        self, path: Path, *, like: Path, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.router = ""
        self._seen = 0
        self.unreadable: set[ClientId] = set()
        contents = Contents(SCHEMA, begin=self._begin, load=self._load, committed=changed)
        lock = path.with_name(f"{path.name}-lock")
        self._database = Database(path, contents, lock=lock, like=like)
        self._database.open()

    def _begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Gives a new file an id: the router's name in the fleet."""
        if not reader.execute("SELECT 1 FROM router").fetchone():
            writer.execute("INSERT OR IGNORE INTO router VALUES (1, ?)", (secrets.token_hex(8),))

    def _load(self, reader: sqlite3.Connection) -> None:
        """Reads the id. All marks count as changed."""
        row = reader.execute("SELECT id FROM router").fetchone()
        if row is None:
            raise StoreError(f"{self._database.path}: has no id, and none can be written")
        self.router, self._seen = row[0], 0

    def write(self, client: ClientId, mark: FleetRecord) -> None:
        """Makes this durable, whatever was written of this client. Raises StoreError."""
        with self._database.transaction() as db:
            db.execute(_WRITE, (client, dump(client, mark), mark.until()))
        self.unreadable.discard(client)

    def add(self, marks: Mapping[ClientId, FleetRecord], now: float) -> None:
        """Makes these durable, joined with what any process has written of these clients."""
        with self._database.transaction() as db:
            for client, mark in marks.items():
                for written in self._parsed(db.execute(_OF_CLIENT, (client,)).fetchall()).values():
                    mark = join(mark, written, now)
                db.execute(_WRITE, (client, dump(client, mark), mark.until()))
        self.unreadable -= marks.keys()

    def changed(self) -> dict[ClientId, FleetRecord]:
        """What any process has written since the last call. Raises StoreError."""
        with self._database.current() as db:
            rows = db.execute(_CHANGED, (self._seen,)).fetchall()
        self._seen = rows[-1][2] if rows else self._seen
        return self._parsed((named.decode(errors="replace"), text) for named, text, _ in rows)

    def read(self, client: ClientId) -> list[FleetRecord]:
        """What is written about one client: one record, or none. Raises StoreError."""
        with self._database.current() as db:
            rows = db.execute(_OF_CLIENT, (client,)).fetchall()
        return [*self._parsed(rows).values()]

    def _parsed(self, rows: Iterable[tuple[str, bytes]]) -> dict[ClientId, FleetRecord]:
        found = {}
        for named, text in rows:
            try:
                client, record = parse(text)
                if client != named:
                    raise RecordError(f"it is about {client}")
                found[client] = record
            except RecordError as error:
                if named not in self.unreadable:
                    logger.error(
                        f"{self._database.path}: the row of {named!r:.60} is damaged ({error}) and"
                        " left out; if it had a revocation that no other router knows, revoke that"
                        " client again"
                    )
                with contextlib.suppress(RecordError):  # a row of nobody is left as it is
                    self.unreadable.add(client_of(named))
        return found

    def forget(self, before: float) -> None:
        """Deletes the marks that were over `before`. Raises StoreError."""
        with self._database.current() as db:
            over = db.execute("SELECT 1 FROM marks WHERE until < ?", (before,)).fetchone()
        if over:
            with self._database.transaction() as db:
                db.execute("DELETE FROM marks WHERE until < ?", (before,))

    def report(self, error: StoreError) -> None:
        """Logs why the file cannot be used, once until it was written again."""
        self._database.report(str(error))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
