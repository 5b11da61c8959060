"""The login server's database: secret, vouchers, users, API tokens, accepted terms, spent states.

It is one SQLite file, `portal.db`, mode 0600, beside the session store and built like it: what was
acknowledged survives a power cut, and if another file is put in its place, that file counts from
then on. Every method may wait for the disk, so the event loop calls them through an executor; they
raise StoreError if the file cannot be read or written. The caller passes the times: Unix seconds
for times that people read; a Moment for judging vouchers, because a voucher must not last longer
when the clock is set back.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capport.core.client import ClientId
from capport.stores import Book, StoreError
from capport.stores.opening import store_path
from capport.stores.sqlite.boot_clock import CLOCK, BootClock
from capport.stores.sqlite.database import Contents, Database, MemoryDatabase
from capport.stores.sqlite.schema import Schema
from capport.web.date_reckoning import Moment, Reckoning, reckon

ACCEPTANCES = 200_000
"""How many acceptances of terms to keep: the newest, about 20 MB.

There has to be a limit, because a device that makes up MACs is a new client each time."""

_VERSION_1 = (
    "CREATE TABLE secret (only INTEGER PRIMARY KEY CHECK (only = 1), bytes BLOB NOT NULL)",
    """CREATE TABLE spent (state BLOB PRIMARY KEY, client TEXT NOT NULL, boot TEXT NOT NULL,
        expires REAL NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE terms (version TEXT, language TEXT, text TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (version, language)) WITHOUT ROWID""",
    """CREATE TABLE accepted (client TEXT, version TEXT, language TEXT, first REAL NOT NULL,
        last REAL NOT NULL, PRIMARY KEY (client, version, language)) WITHOUT ROWID""",
    """CREATE TABLE voucher (number INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB NOT NULL UNIQUE,
        lifetime REAL NOT NULL, devices INTEGER NOT NULL, expires REAL, created REAL NOT NULL,
        revoked REAL, note TEXT NOT NULL)""",
    """CREATE TABLE voucher_use (number INTEGER NOT NULL REFERENCES voucher, client TEXT NOT NULL,
        since REAL NOT NULL, PRIMARY KEY (number, client)) WITHOUT ROWID""",
    """CREATE TABLE user (name TEXT PRIMARY KEY, password TEXT NOT NULL, created REAL NOT NULL)
        WITHOUT ROWID""",
    """CREATE TABLE token (hash BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL)
        WITHOUT ROWID""",
)
# `began`: in the seconds that the machine has run since the file got version 2.
_VERSION_2 = (
    """CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL,
        running REAL NOT NULL, elapsed REAL NOT NULL, wall REAL NOT NULL, sure INTEGER NOT NULL)""",
    "ALTER TABLE voucher_use ADD COLUMN began REAL NOT NULL DEFAULT 0",
    "UPDATE voucher_use SET began = min(0.0, since - CAST(strftime('%s', 'now') AS REAL))",
)
# The same clock table as the session store has; the date moves to a table of its own.
_VERSION_3 = (
    "ALTER TABLE clock RENAME TO clock_2",
    *CLOCK,
    "INSERT OR REPLACE INTO clock SELECT 1, boot, elapsed - running, elapsed FROM clock_2",
    """CREATE TABLE day (one INTEGER PRIMARY KEY CHECK (one = 1), wall REAL NOT NULL,
        sure INTEGER NOT NULL) STRICT""",
    "INSERT INTO day SELECT 1, wall, sure FROM clock_2",
    "DROP TABLE clock_2",
)
# What the routers of a fleet share. `unsent`: it says more than the others are known to have.
_VERSION_4 = (
    """CREATE TABLE shared (key TEXT PRIMARY KEY, record TEXT NOT NULL, number INTEGER NOT NULL,
        until INTEGER NOT NULL, unsent INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
    "CREATE INDEX shared_number ON shared (number) WHERE number > 0",
    "CREATE INDEX shared_unsent ON shared (unsent) WHERE unsent = 1",
    "CREATE INDEX shared_until ON shared (until) WHERE until > 0",
    "CREATE TABLE roster (router TEXT PRIMARY KEY, sign TEXT NOT NULL) STRICT, WITHOUT ROWID",
)
SCHEMA = Schema(
    "the login server's records",
    0x63617072,  # "capr"
    (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4),
    marked_since=3,
)


class ClockError(StoreError):
    """The date is not known, and it matters."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher as stored: without its code. `used`: how many devices it has admitted."""

    number: int
    lifetime: float
    devices: int
    expires: float | None
    created: float
    revoked: float | None
    note: str
    used: int


class Records:
    """The database. Several threads and several processes may use it at the same time."""

    def __init__(self, path: Path | None, *, like: Path | None = None) -> None:
        """Opens `path`, and creates the file and its folder if needed; None keeps all in memory.

        The file must belong to us, or to the owner of its folder, or of the file at `like`.
        """
        self.secret = b""
        self.book: Book | None = None  # what the routers of a fleet share
        self.database: Database | MemoryDatabase
        contents = Contents(SCHEMA, begin=_begin, load=self._load)
        if path is None:
            self.database = MemoryDatabase(contents)
            return
        lock = path.with_name(f"{path.name}-lock")
        self.database = Database(
            path, contents, lock=lock, make_folder=True, like=like or path.absolute().parent
        )
        self.database.open()

    def _load(self, reader: sqlite3.Connection) -> None:
        """Reads the secret. Each file has its own, so another file voids states and signatures."""
        row = reader.execute("SELECT bytes FROM secret").fetchone()
        if row is None:
            raise StoreError(f"{self.database.path}: has no secret, and none can be written")
        self.secret = row[0]

    def look(self) -> None:
        """Opens the file that is at the path now, if another one was put there."""
        with self.database.current():
            pass

    def close(self) -> None:
        """Closes the file."""
        self.database.close()

    # -- states --------------------------------------------------------------------------------

    def spend(self, state: bytes, client: ClientId, boot: str, expires: float) -> ClientId | None:
        """Notes that `client` used a state. Returns None the first time, then who used it first.

        `expires` is an instant of this boot's clock; a state is never valid in another boot.
        """
        with self.database.transaction() as db:
            row = db.execute("SELECT client FROM spent WHERE state = ?", (state,)).fetchone()
            if row is not None:
                return ClientId(row[0])
            db.execute("INSERT INTO spent VALUES (?, ?, ?, ?)", (state, client, boot, expires))
            return None

    def unspend(self, state: bytes) -> None:
        """Makes a state usable again, after the grant for which it was spent has failed."""
        self._change("DELETE FROM spent WHERE state = ?", state)

    def spent_by(self, state: bytes) -> ClientId | None:
        """The client that used a state; None if no client has."""
        rows = self._rows("SELECT client FROM spent WHERE state = ?", (state,))
        return ClientId(rows[0][0]) if rows else None

    def clear_spent(self, boot: str, now: float) -> None:
        """Deletes states that have expired."""
        self._change("DELETE FROM spent WHERE boot != ? OR expires <= ?", boot, now)

    # -- terms ---------------------------------------------------------------------------------

    def accept(self, client: ClientId, version: str, language: str, text: str, at: float) -> None:
        """Notes that `client` accepted these terms, and stores the text of each version once."""
        with self.database.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?)", (version, language, text, at)
            )
            db.execute(  # one row, however often the client accepts them
                "INSERT INTO accepted VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET last = excluded.last",
                (client, version, language, at, at),
            )

    def withdraw(self, client: ClientId, version: str, language: str, at: float) -> None:
        """Deletes what `client` accepted first at `at`, because no session was granted for it."""
        self._change(
            "DELETE FROM accepted WHERE client = ? AND version = ? AND language = ? AND first = ?",
            *(client, version, language, at),
        )

    def clear_accepted(self, most: int = ACCEPTANCES) -> None:
        """Deletes all acceptances but the newest `most`. Call it from time to time."""
        over = self._rows("SELECT count(*) FROM accepted")[0][0] - most
        if over > 0:
            self._change(
                "DELETE FROM accepted WHERE (client, version, language) IN"
                " (SELECT client, version, language FROM accepted ORDER BY last LIMIT ?)",
                over,
            )

    # -- vouchers ------------------------------------------------------------------------------

    def add_vouchers(
        self,
        hashes: Sequence[bytes],
        *,
        lifetime: float,
        devices: int,
        valid: float | None,
        note: str,
        at: Moment,
    ) -> list[int]:
        """Stores new vouchers, all or none; returns their numbers, in the order of `hashes`.

        Their first use has to be within `valid` seconds from now; None: at any time. Raises
        ClockError if `valid` is given and the date is not known.
        """
        with self.database.transaction() as db:
            now = _note(db, at)
            if valid is not None:
                _must_be_sure(now, at)
            expires = None if valid is None else now.wall + valid
            row = (lifetime, devices, expires, at.wall, None, note)
            return [
                db.execute(
                    "INSERT INTO voucher (hash, lifetime, devices, expires, created, revoked, note)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING number",
                    (each, *row),
                ).fetchone()[0]
                for each in hashes
            ]

    def use_voucher(
        self, code: bytes, client: ClientId, at: Moment, *, beyond: float = 0.0
    ) -> tuple[int, float] | None:
        """Uses the voucher with this hash for `client`; returns its number and how long it admits.

        That is in seconds. A voucher that admits for `beyond` seconds or less is left unused. A
        client that has used it before gets the rest of its time; as with sessions, only the time
        that the machine runs counts. Returns None, without saying why, if there is no such voucher,
        if it is revoked or used up, if it expired before its first use, or if this client's time is
        over. Raises ClockError if the voucher expires and the date is not known.
        """
        with self.database.transaction() as db:
            voucher = db.execute(
                "SELECT number, lifetime, devices, expires FROM voucher"
                " WHERE hash = ? AND revoked IS NULL",
                (code,),
            ).fetchone()
            if voucher is None:
                return None
            number, lifetime, devices, expires = voucher
            now = _note(db, at)
            uses: dict[str, float] = dict(
                db.execute("SELECT client, began FROM voucher_use WHERE number = ?", (number,))
            )
            if client in uses:
                left = min(lifetime, uses[client] + lifetime - now.elapsed)
                return (number, left) if left > 0 else None
            if expires is not None:
                if expires <= now.wall:
                    return None
                _must_be_sure(now, at)
            if len(uses) >= devices:
                return None
            if lifetime <= beyond:
                return number, lifetime
            db.execute(
                "INSERT INTO voucher_use (number, client, since, began) VALUES (?, ?, ?, ?)",
                (number, client, at.wall, now.elapsed),
            )
            return number, lifetime

    def give_back(self, number: int, client: ClientId, at: Moment) -> None:
        """Takes back the use of a voucher by `client` that began at `at`: the grant has failed.

        A use that began earlier stays.
        """
        self._change(
            "DELETE FROM voucher_use WHERE number = ? AND client = ? AND since = ?",
            *(number, client, at.wall),
        )

    def keep_time(self, at: Moment) -> None:
        """Notes the time, if there are vouchers. Call it from time to time."""
        if self._rows("SELECT EXISTS (SELECT 1 FROM voucher)")[0][0]:
            with self.database.transaction() as db:
                _note(db, at)

    def reckoning(self, at: Moment) -> Reckoning:
        """The time by which vouchers are judged now."""
        with self.database.current() as db:
            return reckon(_last_noted(db), at)

    def trust_clock(self, at: Moment) -> None:
        """Takes the wall clock as right, because the operator says so, even if it was ahead."""
        with self.database.transaction() as db:
            _write(db, replace(_note(db, at), wall=at.wall, sure=True))

    def vouchers(self) -> list[Voucher]:
        """All vouchers, by number."""
        rows = self._rows(
            "SELECT v.number, lifetime, devices, expires, created, revoked, note, count(u.client)"
            " FROM voucher v LEFT JOIN voucher_use u USING (number) GROUP BY v.number ORDER BY 1"
        )
        return [Voucher(*row) for row in rows]

    def revoke_voucher(self, number: int, at: float) -> list[ClientId] | None:
        """Ends a voucher; returns the clients that used it, so the caller can end their sessions.

        Returns None if there is no such voucher.
        """
        with self.database.transaction() as db:
            found = db.execute(
                "UPDATE voucher SET revoked = coalesce(revoked, ?) WHERE number = ?", (at, number)
            )
            if not found.rowcount:
                return None
            uses = db.execute("SELECT client FROM voucher_use WHERE number = ?", (number,))
            return [ClientId(row[0]) for row in uses]

    def is_revoked(self, number: int) -> bool:
        """Whether a voucher was revoked."""
        rows = self._rows("SELECT revoked IS NOT NULL FROM voucher WHERE number = ?", (number,))
        return bool(rows and rows[0][0])

    # -- users, tokens -------------------------------------------------------------------------

    def put_user(self, name: str, password: str, at: float) -> None:
        """Adds a user, or changes a user's password. `password` is its hash."""
        self._change("INSERT OR REPLACE INTO user VALUES (?, ?, ?)", name, password, at)

    def drop_user(self, name: str) -> bool:
        """Removes a user; returns whether there was one."""
        return self._change("DELETE FROM user WHERE name = ?", name) > 0

    def password_of(self, name: str) -> str | None:
        """The hash of a user's password."""
        rows = self._rows("SELECT password FROM user WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def users(self) -> list[str]:
        """The names of all users."""
        return [row[0] for row in self._rows("SELECT name FROM user ORDER BY name")]

    def put_token(self, name: str, digest: bytes, at: float) -> None:
        """Stores the hash of a bearer token for the API; replaces an earlier token of that name."""
        self._change("INSERT OR REPLACE INTO token VALUES (?, ?, ?)", digest, name, at)

    def drop_token(self, name: str) -> bool:
        """Removes a token; returns whether there was one. The next call with it is refused."""
        return self._change("DELETE FROM token WHERE name = ?", name) > 0

    def tokens(self) -> list[str]:
        """The names of all tokens."""
        return [row[0] for row in self._rows("SELECT name FROM token ORDER BY name")]

    def token_name(self, digest: bytes) -> str | None:
        """The name of the token with this hash; None if there is none."""
        rows = self._rows("SELECT name FROM token WHERE hash = ?", (digest,))
        return rows[0][0] if rows else None

    def _rows(self, question: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self.database.current() as db:
            return db.execute(question, values).fetchall()

    def _change(self, order: str, *values: object) -> int:
        """Carries out one statement; returns how many rows it has changed."""
        with self.database.transaction() as db:
            return db.execute(order, values).rowcount


def records_beside(store: str) -> Path | None:
    """The path of the records for a session store: `portal.db` in the same folder.

    None (in memory) for `:memory:`. Raises StoreError if the store is not in a folder.
    """
    path = store_path(store)
    return None if path is None else path.with_name("portal.db")


def _begin(reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
    """Writes a secret into a new file."""
    if not reader.execute("SELECT 1 FROM secret").fetchone():
        new = secrets.token_bytes(32)
        writer.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (new,))


def _last_noted(db: sqlite3.Connection) -> Reckoning | None:
    day = db.execute("SELECT wall, sure FROM day").fetchone()
    return Reckoning(BootClock.read(db), day[0], bool(day[1])) if day else None


def _note(db: sqlite3.Connection, at: Moment) -> Reckoning:
    """Works out the time at `at`, and stores it."""
    now = reckon(_last_noted(db), at)
    _write(db, now)
    return now


def _write(db: sqlite3.Connection, now: Reckoning) -> None:
    now.clock.write(db)
    db.execute("INSERT OR REPLACE INTO day VALUES (1, ?, ?)", (now.wall, now.sure))


def _must_be_sure(now: Reckoning, at: Moment) -> None:
    if not now.sure:
        said, says = (f"{datetime.fromtimestamp(t, UTC):%F %R} UTC" for t in (now.wall, at.wall))
        raise ClockError(
            f"the clock shows {says}, but has shown {said} before: vouchers that expire cannot be"
            " used or made until you set the clock, or run `capport voucher clock --is-right`"
        )
