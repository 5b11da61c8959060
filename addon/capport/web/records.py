"""What the login server keeps: its secret, vouchers, users, who accepted which terms, spent states.

One SQLite file beside the session store, `portal.db`, mode 0600, on the same base as the sessions:
what was acknowledged survives a power cut, and where another file is put in its place, what is in
that one holds. Every method may block for the disk, so on the event loop it is called through an
executor, and raises StoreError where the file cannot be read or written. Times are passed in: Unix
seconds, where a person reads them, and a Moment, where a voucher is judged by them, which must not
last longer for a clock that is set back.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.opening import store_path
from capport.stores.sqlite.boot_clock import CLOCK, BootClock
from capport.stores.sqlite.database import Contents, Database, MemoryDatabase
from capport.stores.sqlite.schema import Schema
from capport.web.date_reckoning import Moment, Reckoning, reckon

ACCEPTANCES = 200_000
"""Clients and terms of which it is kept that the one accepted the others: the newest, 20 MB.

A device that makes up MACs is a new client each time."""

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
# `began` counts the seconds that the machine runs, from the moment that version 2 was made on.
_VERSION_2 = (
    """CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL,
        running REAL NOT NULL, elapsed REAL NOT NULL, wall REAL NOT NULL, sure INTEGER NOT NULL)""",
    "ALTER TABLE voucher_use ADD COLUMN began REAL NOT NULL DEFAULT 0",
    "UPDATE voucher_use SET began = min(0.0, since - CAST(strftime('%s', 'now') AS REAL))",
)
# The clock that the sessions have, and the day apart from it.
_VERSION_3 = (
    "ALTER TABLE clock RENAME TO clock_2",
    *CLOCK,
    "INSERT OR REPLACE INTO clock SELECT 1, boot, elapsed - running, elapsed FROM clock_2",
    """CREATE TABLE day (one INTEGER PRIMARY KEY CHECK (one = 1), wall REAL NOT NULL,
        sure INTEGER NOT NULL) STRICT""",
    "INSERT INTO day SELECT 1, wall, sure FROM clock_2",
    "DROP TABLE clock_2",
)
SCHEMA = Schema(
    "the login server's records",
    0x63617072,  # "capr"
    (_VERSION_1, _VERSION_2, _VERSION_3),
    marked_since=3,
)


class ClockError(StoreError):
    """It is not known which day it is, and it matters."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher as it is kept: without its code. `used` is how many devices it has let on."""

    number: int
    lifetime: float
    devices: int
    expires: float | None
    created: float
    revoked: float | None
    note: str
    used: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which terms a client accepted, when first, and when last."""

    client: ClientId
    version: str
    language: str
    first: float
    last: float


class Records(Contents):
    """The file. Safe to call from several threads, and from several processes."""

    schema = SCHEMA

    def __init__(self, path: Path | None, *, like: Path | None = None) -> None:
        """Opens `path`, made with its folder if need be; None keeps all in memory.

        It must be ours, or belong to whom its folder does, or the file at `like`.
        """
        self.secret = b""
        self._database: Database | MemoryDatabase
        if path is None:
            self._database = MemoryDatabase(self)
            return
        lock = path.with_name(f"{path.name}-lock")
        self._database = Database(
            path, self, lock=lock, make_folder=True, like=like or path.absolute().parent
        )
        try:
            self.look()
        except StoreError:
            self._database.close()
            raise

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Writes a secret into a new file."""
        if not reader.execute("SELECT 1 FROM secret").fetchone():
            new = secrets.token_bytes(32)
            writer.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (new,))

    def load(self, reader: sqlite3.Connection) -> None:
        """Reads the secret. What is sealed and signed by it is void in another file."""
        row = reader.execute("SELECT bytes FROM secret").fetchone()
        if row is None:
            raise StoreError(f"{self._database.path}: has no secret, and takes none")
        self.secret = row[0]

    def look(self) -> None:
        """Opens the file that is at the path now, where another was put there."""
        with self._database.current():
            pass

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()

    # -- states --------------------------------------------------------------------------------

    def spend(self, state: bytes, client: ClientId, boot: str, expires: float) -> ClientId | None:
        """Notes that a state was used. None the first time; afterwards, who used it.

        `expires` is an instant of this boot's clock; other boots' states are void by themselves.
        """
        with self._database.transaction() as db:
            row = db.execute("SELECT client FROM spent WHERE state = ?", (state,)).fetchone()
            if row is not None:
                return ClientId(row[0])
            db.execute("INSERT INTO spent VALUES (?, ?, ?, ?)", (state, client, boot, expires))
            return None

    def unspend(self, state: bytes) -> None:
        """Gives a state back, where what it was spent on did not come about."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM spent WHERE state = ?", (state,))

    def spent_by(self, state: bytes) -> ClientId | None:
        """Who used a state, None where nobody has."""
        rows = self._rows("SELECT client FROM spent WHERE state = ?", (state,))
        return ClientId(rows[0][0]) if rows else None

    def clear_spent(self, boot: str, now: float) -> None:
        """Forgets states that are over."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM spent WHERE boot != ? OR expires <= ?", (boot, now))

    # -- terms ---------------------------------------------------------------------------------

    def accept(self, client: ClientId, version: str, language: str, text: str, at: float) -> None:
        """Notes that `client` accepted these terms, and keeps each version's text once."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO terms VALUES (?, ?, ?, ?)", (version, language, text, at)
            )
            db.execute(  # one row, however often it is sent
                "INSERT INTO accepted VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET last = excluded.last",
                (client, version, language, at, at),
            )

    def withdraw(self, client: ClientId, version: str, language: str, at: float) -> None:
        """Takes back what `client` accepted first at `at`: no session came of it."""
        with self._database.transaction() as db:
            db.execute(
                "DELETE FROM accepted"
                " WHERE client = ? AND version = ? AND language = ? AND first = ?",
                (client, version, language, at),
            )

    def clear_accepted(self, most: int = ACCEPTANCES) -> None:
        """Forgets all acceptances but the newest `most`. To be called now and then."""
        over = self._rows("SELECT count(*) FROM accepted")[0][0] - most
        if over > 0:
            with self._database.transaction() as db:
                db.execute(
                    "DELETE FROM accepted WHERE (client, version, language) IN"
                    " (SELECT client, version, language FROM accepted ORDER BY last LIMIT ?)",
                    (over,),
                )

    def acceptances(self) -> list[Acceptance]:
        """Who accepted which terms, the oldest first."""
        rows = self._rows("SELECT * FROM accepted ORDER BY first, client")
        return [Acceptance(*row) for row in rows]

    def terms(self, version: str, language: str) -> str | None:
        """The text that was accepted as `version` in `language`."""
        rows = self._rows(
            "SELECT text FROM terms WHERE version = ? AND language = ?", (version, language)
        )
        return rows[0][0] if rows else None

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
        """Files new vouchers, good for `valid` seconds from now; their numbers, as `hashes` go.

        All or none. Raises ClockError where they are to expire and the day is not known.
        """
        with self._database.transaction() as db:
            now = _moved_on(db, at)
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
        """Uses the voucher with this hash for `client`: its number, and the seconds it is good for.

        One that is good for no more than `beyond` seconds is left as it is. A client that has used
        it before gets what is left of its time, in which the machine was running, as with sessions.
        None where the voucher is wrong, revoked, expired before its first use, used up, or over for
        this client: the caller is not told which. Raises ClockError for one that expires where the
        day is not known.
        """
        with self._database.transaction() as db:
            voucher = db.execute(
                "SELECT number, lifetime, devices, expires FROM voucher"
                " WHERE hash = ? AND revoked IS NULL",
                (code,),
            ).fetchone()
            if voucher is None:
                return None
            number, lifetime, devices, expires = voucher
            now = _moved_on(db, at)
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
        """Has what `client` used the voucher for at the moment `at` not count: it came to nothing.

        Where it had been used before then, it stays so.
        """
        with self._database.transaction() as db:
            db.execute(
                "DELETE FROM voucher_use WHERE number = ? AND client = ? AND since = ?",
                (number, client, at.wall),
            )

    def keep_time(self, at: Moment) -> None:
        """Notes how late it is, where a voucher lives by it. To be called now and then."""
        if self._rows("SELECT EXISTS (SELECT 1 FROM voucher)")[0][0]:
            with self._database.transaction() as db:
                _moved_on(db, at)

    def reckoning(self, at: Moment) -> Reckoning:
        """What vouchers are judged by now."""
        with self._database.current() as db:
            return reckon(_known(db), at)

    def trust_clock(self, at: Moment) -> None:
        """Has the wall clock be right, on somebody's word: for one that was ahead before."""
        with self._database.transaction() as db:
            _keep(db, replace(_moved_on(db, at), wall=at.wall, sure=True))

    def vouchers(self) -> list[Voucher]:
        """Each voucher, by number."""
        rows = self._rows(
            "SELECT v.number, lifetime, devices, expires, created, revoked, note, count(u.client)"
            " FROM voucher v LEFT JOIN voucher_use u USING (number) GROUP BY v.number ORDER BY 1"
        )
        return [Voucher(*row) for row in rows]

    def revoke_voucher(self, number: int, at: float) -> list[ClientId] | None:
        """Ends a voucher; the clients it has let on, for whoever ends their sessions too.

        None where there is no such voucher.
        """
        with self._database.transaction() as db:
            found = db.execute(
                "UPDATE voucher SET revoked = coalesce(revoked, ?) WHERE number = ?", (at, number)
            )
            if not found.rowcount:
                return None
            uses = db.execute("SELECT client FROM voucher_use WHERE number = ?", (number,))
            return [ClientId(row[0]) for row in uses]

    def is_revoked(self, number: int) -> bool:
        """Whether a voucher was ended."""
        rows = self._rows("SELECT revoked IS NOT NULL FROM voucher WHERE number = ?", (number,))
        return bool(rows and rows[0][0])

    # -- users, tokens -------------------------------------------------------------------------

    def put_user(self, name: str, password: str, at: float) -> None:
        """Adds a user, or gives one a new password. `password` is hashed already."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO user VALUES (?, ?, ?)", (name, password, at))

    def drop_user(self, name: str) -> bool:
        """Removes a user; whether there was one."""
        with self._database.transaction() as db:
            return bool(db.execute("DELETE FROM user WHERE name = ?", (name,)).rowcount)

    def password_of(self, name: str) -> str | None:
        """The hash of a user's password."""
        rows = self._rows("SELECT password FROM user WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def users(self) -> list[str]:
        """Each user's name."""
        return [row[0] for row in self._rows("SELECT name FROM user ORDER BY name")]

    def put_token(self, name: str, digest: bytes, at: float) -> None:
        """Files a bearer token for the API under its hash, in place of an earlier one so named."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO token VALUES (?, ?, ?)", (digest, name, at))

    def drop_token(self, name: str) -> bool:
        """Ends a token; whether there was one. The next call with it is refused."""
        with self._database.transaction() as db:
            return bool(db.execute("DELETE FROM token WHERE name = ?", (name,)).rowcount)

    def tokens(self) -> list[str]:
        """Each token's name."""
        return [row[0] for row in self._rows("SELECT name FROM token ORDER BY name")]

    def token_name(self, digest: bytes) -> str | None:
        """Whose token has this hash."""
        rows = self._rows("SELECT name FROM token WHERE hash = ?", (digest,))
        return rows[0][0] if rows else None

    def _rows(self, question: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._database.current() as db:
            return db.execute(question, values).fetchall()


def records_beside(store: str) -> Path | None:
    """Where the login server keeps its records, for a session store: `portal.db` in its folder.

    None (in memory) for `:memory:`. Raises StoreError for a store that is in no folder.
    """
    path = store_path(store)
    return None if path is None else path.with_name("portal.db")


def _known(db: sqlite3.Connection) -> Reckoning | None:
    """What was known at the last moment that was noted."""
    day = db.execute("SELECT wall, sure FROM day").fetchone()
    return Reckoning(BootClock.read(db), day[0], bool(day[1])) if day else None


def _moved_on(db: sqlite3.Connection, at: Moment) -> Reckoning:
    """What is known now, and noted."""
    now = reckon(_known(db), at)
    _keep(db, now)
    return now


def _keep(db: sqlite3.Connection, now: Reckoning) -> None:
    now.clock.write(db)
    db.execute("INSERT OR REPLACE INTO day VALUES (1, ?, ?)", (now.wall, now.sure))


def _must_be_sure(now: Reckoning, at: Moment) -> None:
    if not now.sure:
        said, says = (f"{datetime.fromtimestamp(t, UTC):%F %R} UTC" for t in (now.wall, at.wall))
        raise ClockError(
            f"the clock says {says}, and has said {said} before: no voucher that expires is judged"
            " until it is set (or until capport voucher clock --is-right)"
        )
