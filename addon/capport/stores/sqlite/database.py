"""Makes, opens and writes the file of a database, and notices that it is missing or replaced.

There are two connections to it: a writer, and a reader that does not wait for our own writes.
SQLite knows the file by its descriptor but the write-ahead log by its name, so it does not notice
what happens to the file's name. This module does:

- The file is missing: each write fails until it is put back.
- Another file is at its path: that one is used from then on. First the old log is removed, because
  SQLite would replay it into the wrong database. Its contents are moved into the file that it
  belongs to, wherever that file is now. No process opens a database while another process uses the
  log beside it for a different file (`locks.py`).
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from capport.linux import safe_files
from capport.stores import StoreError
from capport.stores.sqlite import locks
from capport.stores.sqlite.schema import (
    Schema,
    connect,
    describe,
    is_busy,
    migrate,
    no_room,
    prepare,
    roll_back,
)

logger = logging.getLogger(__name__)

PUT_SECONDS = 2.0
"""How long a grant, or another change with a waiting caller, waits for other writes."""
REVOKE_SECONDS = 0.1
"""How long a revocation waits for them, before it goes to the journal beside the database."""
COMMITS_PER_CHECKPOINT = 200
_LOGS = ("-wal", "-shm")
_LEAVE_LOG = sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE

type _File = tuple[int, int]
"""What identifies a file: its device and inode."""


def _nothing(*_: object) -> None:
    """What `Contents` does by default."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is kept in a database, and the functions that `Database` calls."""

    schema: Schema
    load: Callable[[sqlite3.Connection], None]
    """Reads a file that was just opened. If this raises, the file before it stays in use."""
    begin: Callable[[sqlite3.Connection, sqlite3.Connection], None] = _nothing
    """Writes what a file must have before it is loaded, by a reader and a writer. Raises OSError.

    Raises sqlite3.Error if that cannot be written: then the file is loaded as it is.
    """
    opened: Callable[[], None] = _nothing
    """Called when a file was opened and loaded."""
    settle: Callable[[sqlite3.Connection], None] = _nothing
    """Called at the start of each write transaction."""
    committed: Callable[[], None] = _nothing
    """Called after each write transaction."""
    free_room: Callable[[], None] = _nothing
    """Called when the disk is full: frees the space that was reserved on it."""


class Database:
    """The database at `path`. With `make`, a missing file is made before the first opening.

    Whenever a file is opened, `contents.load` is called with the reader, with the lock `reading`
    held. Code that needs both locks takes `writing` first. The file at `lock` is made when an old
    log has to be removed. With `like`, the path must not end in a link, and the file must belong to
    this process's user, to the owner of its folder or to the owner of the file at `like`.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        *,
        lock: Path,
        make: bool = True,
        make_folder: bool = False,
        like: Path | None = None,
    ) -> None:
        self._named, self._like, self._lock = path.absolute(), like, lock
        self.path = self._followed()
        self.writing, self.reading = threading.RLock(), threading.RLock()
        self.reader: sqlite3.Connection | None = None
        self.fault: str | None = None
        self.commits = 0
        self._contents = contents
        self._make, self._make_folder = make, make_folder
        self._writer: sqlite3.Connection | None = None
        self._file: _File | None = None
        self._logs: dict[str, _File] = {}
        self._opened = self._closed = self._lost = False

    @property
    def has_file(self) -> bool:
        """Whether a file is open and was read."""
        return self._file is not None

    def open(self, *, start_closed: bool = False) -> None:
        """Opens the file now. If it cannot be used, closes everything and raises StoreError.

        With `start_closed`, it reports that instead, and the next call that needs the file tries
        again.
        """
        try:
            with self.current():
                pass
        except StoreError as error:
            if not start_closed:
                self.close()
                raise
            self.report(str(error))

    def connection(self) -> sqlite3.Connection:
        """The connection for writing to the file that is at the path now. Raises StoreError.

        It opens that file if it is another one than before. The caller holds `writing`.
        """
        if self._closed:
            raise StoreError(f"{self.path}: closed")
        lost, self._lost = self._lost, True
        try:
            made = self._make and self._create()
            file, size = self._identity()
            if self._file is not None and file != self._file:
                self._leave_replaced_file()
            if size == 0 and not made and self._writer is None and (self.fault or self._opened):
                raise StoreError(f"{self.path}: empty; is a backup being copied there?")
            if self._writer is None:
                self._open(file)
        except FileNotFoundError as error:
            what = "make its folder first" if self._make else "put it back, or restart capport"
            raise StoreError(f"{error.filename}: {error.strerror}; {what}") from error
        except StoreError:
            raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(describe(self.path, error)) from error
        self._lost = False
        if lost:
            self.report(None)
        assert self._writer is not None
        return self._writer

    @contextlib.contextmanager
    def current(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading the file that is at the path now. Raises StoreError.

        It waits for the writes of other threads.
        """
        with self.writing:
            db = self.connection()
            with _described(self.path):
                yield db

    @contextlib.contextmanager
    def transaction(self, seconds: float | None = None) -> Iterator[sqlite3.Connection]:
        """A write transaction; it is on the disk when the context ends.

        It waits at most `seconds` (`PUT_SECONDS`) for other writers, of this process and of others.
        Raises StoreError, and then the file at the path is not changed.
        """
        seconds = PUT_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        if not self.writing.acquire(timeout=seconds):
            raise StoreError(f"{self.path}: busy with other writes; try again")
        try:
            db = self.connection()
            left = max(REVOKE_SECONDS, deadline - time.monotonic())
            with _transaction(db, self.path, left):
                self._contents.settle(db)
                yield db
            self._check_still_there()
            self.report(None)
            self._contents.committed()
            self.commits += 1
            if self.commits >= COMMITS_PER_CHECKPOINT:
                self.checkpoint(db)
        finally:
            self.writing.release()

    def checkpoint(self, db: sqlite3.Connection) -> bool:
        """Moves the log into the database, so that it stays small. Returns whether all was moved.

        FULL keeps other writers out meanwhile (`schema.connect` says why). What stays in the log,
        because of a reader or a full disk, is not lost: the next checkpoint moves it.
        """
        self.commits = 0
        with contextlib.suppress(sqlite3.Error):
            db.execute(f"PRAGMA busy_timeout = {int(REVOKE_SECONDS * 1000)}")
            busy, logged, moved = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            return not busy and logged == moved
        return False

    def free_room(self) -> bool:
        """Frees the reserved space on the disk for one more write. False if it takes too long."""
        self._contents.free_room()
        if not self.writing.acquire(timeout=REVOKE_SECONDS):
            return False
        try:
            self.checkpoint(self.connection())
        finally:
            self.writing.release()
        return True

    def report(self, fault: str | None) -> None:
        """Sets `fault`, and logs when it begins or changes and when it ends (None)."""
        before, self.fault = self.fault, fault
        if fault is not None and fault != before:
            logger.error(fault)
        elif fault is None and before is not None:
            logger.info(f"{self.path}: works again")

    def close(self) -> None:
        """Closes the file for good."""
        with self.writing:
            self._closed = True
            self._disconnect()

    # --- the file ---

    def _identity(self) -> tuple[_File, int]:
        """Which file is at the path now, and its size. Raises OSError."""
        if self._followed() != self.path:
            raise StoreError(f"{self._named}: now leads to another file; restart capport")
        status = self.path.lstat()
        return (status.st_dev, status.st_ino), status.st_size

    def _followed(self) -> Path:
        """The path with links resolved; with `like`, only in its folders. Raises StoreError."""
        if self._like is None:
            return followed(self._named)
        return followed(self._named.parent) / self._named.name

    def _create(self) -> bool:
        """Makes an empty file, unless there is one. Returns whether it did. Raises OSError."""
        missing = [parent for parent in self.path.parents if not parent.exists()]
        if self._make_folder:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not safe_files.make_database(self.path):
            return False
        for parent in missing:
            safe_files.sync_folder(parent.parent)
        return True

    def _open(self, file: _File) -> None:
        """Opens the file and loads it. If that fails, it leaves everything as it was."""
        if self._like is not None:
            safe_files.check_database(self.path, self._like)
        with contextlib.ExitStack() as unless_used:
            writer = unless_used.enter_context(contextlib.closing(self._prepared()))
            reader = unless_used.enter_context(contextlib.closing(self._connect()))
            reader.execute(f"PRAGMA busy_timeout = {int(REVOKE_SECONDS * 1000)}")
            can_be_written = self._begin(reader, writer)
            with self.reading:
                logs = {name: _inode(Path(f"{self.path}{name}")) for name in _LOGS}
                if self._identity()[0] != file:
                    raise StoreError(f"{self.path}: replaced while it was opened; try again")
                self._contents.load(reader)
                self.reader, self._writer, self._file, self._logs = reader, writer, file, logs
            for db in (reader, writer):
                db.setconfig(_LEAVE_LOG, False)
            unless_used.pop_all()
        if self._opened:
            logger.warning(
                f"{self.path}: another file was put in its place and is used from now on"
            )
        if can_be_written:
            self.report(None)
        self._opened, self._make = True, False
        self._contents.opened()

    def _prepared(self) -> sqlite3.Connection:
        """Opens the writer, and makes sure that the file has this schema.

        Raises StoreError, OSError and sqlite3.Error.
        """
        deadline = time.monotonic() + PUT_SECONDS
        while True:
            writer = None
            try:
                self._check_log()
                writer = self._connect()
                writer.execute("SELECT 1 FROM sqlite_schema").fetchone()  # this opens the log
                self._check_log()
                prepare(writer, self.path, self._contents.schema)
                return writer
            except BaseException as error:
                if writer is not None:
                    writer.close()
                if time.monotonic() > deadline:
                    raise
                if no_room(error):
                    self._contents.free_room()  # even reading needs some for the log and its index
                    deadline = 0
                elif not isinstance(error, _ForeignLogError) and not is_busy(error):
                    raise  # otherwise another process is closing the log or making the file: retry
                time.sleep(0.02)

    def _connect(self) -> sqlite3.Connection:
        """A connection that leaves the log alone when closed: the log may be another file's."""
        db = connect(self.path)
        db.setconfig(_LEAVE_LOG, True)
        return db

    def _begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> bool:
        """Writes what the file must have before it is loaded; False if it cannot be written."""
        try:
            self._contents.begin(reader, writer)
        except sqlite3.Error as error:
            roll_back(writer)
            self.report(describe(self.path, error))
            return False
        return True

    def _check_log(self) -> None:
        """Raises _ForeignLogError if a process still uses the log for another file."""
        if (pid := locks.user_of_another(self.path)) is not None:
            raise _ForeignLogError(
                f"{self.path}: put there while process {pid} used another file of that name, and"
                " the log of that one is still beside it; try again, or end that process first"
            )

    def _check_still_there(self) -> None:
        """After a commit: raises StoreError if the file written to is not at the path any more."""
        with contextlib.suppress(OSError):
            if self._identity()[0] == self._file:
                return
        raise StoreError(f"{self.path}: gone or replaced while it was written to; try again")

    def _leave_replaced_file(self) -> None:
        """Closes a file that is not at the path any more, and removes its log from there.

        Raises OSError if the log cannot be removed. Then the next `connection` tries again, and
        until it succeeds no file is opened.
        """
        assert self._writer is not None
        moved = self.checkpoint(self._writer)
        os.close(safe_files.open_or_make(self._lock, self.path))
        # Other processes that had the file open do the same at the same time.
        with locks.locked(self._lock, self.path):
            for name in _LOGS:
                log = Path(f"{self.path}{name}")
                with contextlib.suppress(FileNotFoundError):
                    if _inode(log) != self._logs[name]:
                        continue  # the log of the file that is there now
                    if moved or name != "-wal":
                        log.unlink()
                    else:
                        kept = log.rename(f"{log}-{self._logs[name][1]}")
                        logger.warning(f"{kept} holds changes that the replaced file lacks")
            safe_files.sync_folder(self.path.parent)
        self._disconnect()

    def _disconnect(self) -> None:
        """Closes both connections. SQLite leaves the log alone if the file has moved."""
        with self.writing, self.reading:
            for db in (self.reader, self._writer):
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):  # all is committed: nothing is lost
                        db.close()
            self.reader = self._writer = self._file = None


class MemoryDatabase:
    """A database in memory, gone when the process ends. It has the methods that callers need."""

    path = Path(":memory:")

    def __init__(self, contents: Contents) -> None:
        self._contents, self._lock = contents, threading.RLock()
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        migrate(self._db, contents.schema)
        contents.begin(self._db, self._db)
        contents.load(self._db)

    @contextlib.contextmanager
    def current(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading. Raises StoreError."""
        with self._lock, _described(self.path):
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it or nothing. Raises StoreError."""
        with self._lock, _transaction(self._db, self.path, 0):
            self._contents.settle(self._db)
            yield self._db

    def close(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._db.close()


class _ForeignLogError(StoreError):
    """The log beside the file is another file's."""


def followed(path: Path) -> Path:
    """Calls `safe_files.follow`, and raises StoreError instead of PermissionError."""
    try:
        return safe_files.follow(path)
    except PermissionError as error:
        raise StoreError(*error.args) from error


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection, path: Path, seconds: float) -> Iterator[None]:
    """Begins, then commits, or rolls back on an error; waits `seconds` for other processes."""
    with _described(path):
        try:
            db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except BaseException:
            roll_back(db)
            raise


@contextlib.contextmanager
def _described(path: Path) -> Iterator[None]:
    """Raises StoreError with one sentence instead of an error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(describe(path, error)) from error


def _inode(path: Path) -> _File:
    status = path.stat()
    return status.st_dev, status.st_ino
