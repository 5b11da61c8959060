"""The version of a SQLite file, the checks before it is used, and its errors as sentences."""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from capport.stores import StoreError

SYNCHRONOUS = "FULL"
"""The lowest level at which a write-ahead log survives a power cut: NORMAL lost 8 grants of 8."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file must contain to be used, and the statements that make it so.

    `kind` names the contents in error messages. `migrations` lead from each version to the next;
    the first one starts from an empty file. file(1) and this module recognize the file by its
    `application_id`, which files of a version before `marked_since` do not have.
    """

    kind: str
    application_id: int
    migrations: tuple[tuple[str, ...], ...]
    marked_since: int = 1


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file at `path`, which must exist: SQLite never creates it."""
    url = f"file:{quote(os.fsencode(path))}?mode=rw"
    db = sqlite3.connect(url, uri=True, isolation_level=None, timeout=2, check_same_thread=False)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        # `Database.checkpoint` makes the checkpoints: SQLite's automatic ones run beside another
        # process's writes, which before 3.51.3 could lose pages (sqlite.org/wal.html#walresetbug).
        db.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Makes sure that `db` has this schema. Raises StoreError and sqlite3.Error.

    If it has the schema already, nothing is written, so the file can be read on a full disk.
    """
    db.execute("BEGIN")  # so that no other process migrates it between our queries
    try:
        version = _version(db, path, schema)
    finally:
        roll_back(db)
    _set_wal(db, path)
    if version < len(schema.migrations):
        db.execute("BEGIN IMMEDIATE")
        try:
            version = _version(db, path, schema)  # another process may have been first
            migrate(db, schema, version)
            db.execute("COMMIT")
        finally:
            roll_back(db)


def migrate(db: sqlite3.Connection, schema: Schema, version: int = 0) -> None:
    """Brings `db` from `version` to the newest one. Raises sqlite3.Error."""
    for statement in (s for step in schema.migrations[version:] for s in step):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {schema.application_id}")
    db.execute(f"PRAGMA user_version = {len(schema.migrations)}")


def _version(db: sqlite3.Connection, path: Path, schema: Schema) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    is_early = not application and 0 < version < schema.marked_since
    is_empty = not (version or tables or application)
    if application != schema.application_id and not is_early and not is_empty:
        raise StoreError(f"{path}: a SQLite database, but not of {schema.kind}; name another file")
    if version > (ours := len(schema.migrations)):
        raise StoreError(
            f"{path}: written by a newer capport (schema {version}, this one knows {ours});"
            " run that version, or name another file"
        )
    return int(version)


def _set_wal(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"{path}: this file system allows no write-ahead log; keep the file on a local disk"
        )


def roll_back(db: sqlite3.Connection) -> None:
    """Ends a transaction, if SQLite has not done so itself (it does on a full or failing disk)."""
    with contextlib.suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def no_room(error: BaseException | None) -> bool:
    """Whether a full disk may be the cause: SQLite may report it as an I/O error too."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def is_busy(error: BaseException | None) -> bool:
    """Whether the only cause was that another process was writing."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def describe(path: Path, error: Exception) -> str:
    """One sentence: the file, what is wrong with it, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return f"{path}: the disk is full; free some space on it"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path}: another process keeps it locked; find it with fuser {path}"
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
            return f"{path}: the disk failed ({error}); see dmesg, check the disk and free space"
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or path
        return f"{where}: {error.strerror}; check its folder's mount, owner and mode"
    return f"{path}: {error}"
