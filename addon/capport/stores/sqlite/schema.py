"""The SQLite file: its tables, its version, and what must be true before it is used.

Times in it are in store time: a clock that runs while the machine does, over all its boots. `clock`
says what to take off for an instant of the boot it names, and how far store time had come at the
last write. So after a reboot each session goes on with what it had left, no row need be rewritten,
and no wall clock is asked. Time that passed unwritten before a power cut is given twice, which is a
minute at most; time in which the machine was off does not count.
"""

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from capport.stores import StoreError

APPLICATION_ID = 0x63617070  # "capp", so that file(1) and we know our own
SYNCHRONOUS = "FULL"
"""With a write-ahead log the least that survives a power cut: NORMAL lost 8 grants of 8."""

_VERSION_1 = (
    """CREATE TABLE sessions (
        client TEXT NOT NULL PRIMARY KEY,
        granted REAL NOT NULL,
        expires REAL NOT NULL,
        idle REAL,
        last_seen REAL NOT NULL,
        granted_at REAL NOT NULL,
        granted_by TEXT NOT NULL,
        how TEXT NOT NULL,
        name TEXT NOT NULL,
        ends REAL GENERATED ALWAYS AS
            (CASE WHEN idle IS NULL THEN expires
             ELSE min(expires, max(granted, last_seen) + idle) END) VIRTUAL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX sessions_by_end ON sessions (ends)",
    # What changed, in order, so that another process reads no more than that. Only the last
    # thousands are kept: who lags behind reads everything.
    "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT NOT NULL) STRICT",
    """CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        boot TEXT NOT NULL,
        shift REAL NOT NULL,
        checkpoint REAL NOT NULL
    ) STRICT""",
    "INSERT INTO clock VALUES (1, '', 0, 0)",
)
MIGRATIONS = (_VERSION_1,)
"""From each version to the next; the first makes an empty file a store."""

COLUMNS = "client, granted, expires, idle, last_seen, granted_at, granted_by, how, name"
CHANGE = "INSERT INTO changes (client) VALUES (?)"
"""Has other processes hear of a change to this client's session."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file at `path`, which must exist: SQLite shall never make it anew."""
    url = f"file:{quote(os.fsencode(path))}?mode=rw"
    db = sqlite3.connect(url, uri=True, isolation_level=None, timeout=2, check_same_thread=False)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        # Checkpoints are ours (`Database.checkpoint`): SQLite's automatic ones run beside another
        # process's writes, which before 3.51.3 could lose pages (sqlite.org/wal.html#walresetbug).
        db.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection, path: Path, migrations: tuple[tuple[str, ...], ...]) -> None:
    """Makes sure that `db` is a store of this version. Raises StoreError and sqlite3.Error."""
    db.execute("BEGIN")  # or another process could make it a store between our questions
    try:
        version = _version(db, path, len(migrations))
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    if version < len(migrations):
        _set_wal(db, path)
        db.execute("BEGIN IMMEDIATE")
        try:
            version = _version(db, path, len(migrations))  # another process may have been first
            for statement in (s for step in migrations[version:] for s in step):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(migrations)}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    else:
        _set_wal(db, path)


def _version(db: sqlite3.Connection, path: Path, ours: int) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (version or tables or application):
        raise StoreError(f"{path}: a SQLite database, but not of sessions; name another file")
    if version > ours:
        raise StoreError(
            f"{path}: written by a newer capport (schema {version}, this one knows {ours});"
            " run that version, or name another file"
        )
    return int(version)


def _set_wal(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"{path}: this file system allows no write-ahead log; keep it on a local disk"
        )


def no_room(error: BaseException | None) -> bool:
    """Whether a full disk may be what is the matter: it shows as an I/O error too."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def is_busy(error: BaseException | None) -> bool:
    """Whether another process was writing, and that is all."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def describe(path: Path, error: Exception) -> str:
    """One sentence: the file, what is the matter with it, and what would do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return f"{path}: the disk is full; free some room on it"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path}: another process keeps it locked; find that with fuser {path}"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return f"{path}: cannot be written ({error}); check its mount, owner and mode"
        case sqlite3.SQLITE_CANTOPEN:
            return f"{path}: cannot be opened ({error}); check its folder's mount, owner and mode"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return (
                f"{path}: damaged ({error}); put a backup in its place, or move it away with its"
                " -wal and -shm files to start empty (then everyone signs in again)"
            )
        case sqlite3.SQLITE_IOERR:
            return f"{path}: the disk failed ({error}); see dmesg, check room and disk"
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or path
        return f"{where}: {error.strerror}; check its folder's mount, owner and mode"
    return f"{path}: {error}"
