"""The file that a database is in: made, opened, written to, and found gone or replaced.

Two connections to it: a writer, and a reader that no write of ours makes wait. SQLite knows the
file by its descriptor and the log by its name, so what happens to the name is for us to see:

- The file is gone: whatever is to be written fails, until it is put back.
- Another file is at its path: that one holds from then on. First the log goes, which would else be
  replayed into a database that it is not of; what it holds is moved into the file it belongs to,
  wherever that is by now. No process uses a database beside whose log somebody still uses for
  another one (`locks.py`).
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
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
"""How long a grant, or another change that somebody waits for, waits for other writes."""
DROP_SECONDS = 0.1
"""How long a revocation does, before it goes to the journal beside the database instead."""
COMMITS_PER_CHECKPOINT = 200
_LOGS = ("-wal", "-shm")
_LEAVE_LOG = sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE

type _File = tuple[int, int]
"""Which file it is: its device and inode."""


class Contents:
    """What is kept in a database, as far as the database must know. Nothing is done by default."""

    schema: Schema

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Writes what a file must say before it is loaded. Raises OSError.

        sqlite3.Error where that cannot be written: then it is loaded as it is.
        """

    def load(self, reader: sqlite3.Connection) -> None:
        """Reads a file that was opened; what this raises leaves everything as it was."""

    def opened(self) -> None:
        """A file was opened."""

    def settle(self, writer: sqlite3.Connection) -> None:
        """Begins each write transaction."""

    def committed(self) -> None:
        """Something was written."""

    def free_room(self) -> None:
        """The disk is full: gives back what was set aside on it."""


class Database:
    """The file at `path`, made where it is missing unless `make` is False (and not twice).

    `contents.load` is called with the reader whenever a file is opened, with `reading` held.
    Whoever needs both locks takes `writing` first. The file at `lock` is made when an old log has
    to go. With `like`, the path may not end in a link, and the file must be ours, or belong to whom
    its folder or the file at `like` does.
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
        """Whether there is a file that was read."""
        return self._file is not None

    def connection(self) -> sqlite3.Connection:
        """With `writing`: the connection to write by, to the file that is at the path now.

        Raises StoreError. Opens that file, where there is another than there was.
        """
        if self._closed:
            raise StoreError(f"{self.path}: closed")
        lost, self._lost = self._lost, True
        try:
            made = self._make and self._create()
            file, size = self._identity()
            if self._file is not None and file != self._file:
                self._let_go()
            if size == 0 and not made and self._writer is None and (self.fault or self._opened):
                raise StoreError(f"{self.path}: empty; is a backup being copied there?")
            if self._writer is None:
                self._open(file)
        except FileNotFoundError as error:
            what = "make its folder first" if self._make else "put it back, or start again"
            raise StoreError(f"{error.filename}: {error.strerror}; {what}") from error
        except StoreError:
            raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(describe(self.path, error)) from error
        self._lost = False
        if lost:
            self.say(None)
        assert self._writer is not None
        return self._writer

    @contextlib.contextmanager
    def current(self) -> Iterator[sqlite3.Connection]:
        """A connection to read by, what is in the file that is at the path now.

        Raises StoreError. Waits for what other threads write.
        """
        with self.writing:
            db = self.connection()
            try:
                yield db
            except sqlite3.Error as error:
                raise StoreError(describe(self.path, error)) from error

    @contextlib.contextmanager
    def transaction(self, seconds: float | None = None) -> Iterator[sqlite3.Connection]:
        """A write that is on the disk when this ends.

        Waits at most `seconds` (`PUT_SECONDS`) for other writers, of this process and of others.
        Raises StoreError, and nothing has changed then, in the file that is there.
        """
        seconds = PUT_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        if not self.writing.acquire(timeout=seconds):
            raise StoreError(f"{self.path}: busy with other writes; try again")
        try:
            db = self.connection()
            left = max(DROP_SECONDS, deadline - time.monotonic())
            with _transaction(db, self.path, left):
                self._contents.settle(db)
                yield db
            self._see_that_it_is_there()
            self.say(None)
            self._contents.committed()
            self.commits += 1
            if self.commits >= COMMITS_PER_CHECKPOINT:
                self.checkpoint(db)
        finally:
            self.writing.release()

    def checkpoint(self, db: sqlite3.Connection) -> bool:
        """Moves the log into the database, so that it does not grow for ever; whether all of it.

        FULL keeps writers out meanwhile (`schema.connect` says why). What it cannot do now, because
        of a reader or a full disk, the next one does: nothing is lost by it.
        """
        self.commits = 0
        with contextlib.suppress(sqlite3.Error):
            db.execute(f"PRAGMA busy_timeout = {int(DROP_SECONDS * 1000)}")
            busy, logged, moved = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            return not busy and logged == moved
        return False

    def free_room(self) -> bool:
        """Gives back what was set aside on the disk, for one more write; whether in time."""
        self._contents.free_room()
        if not self.writing.acquire(timeout=DROP_SECONDS):
            return False
        try:
            self.checkpoint(self.connection())
        finally:
            self.writing.release()
        return True

    def say(self, fault: str | None) -> None:
        """Logs a fault once, and its end."""
        before, self.fault = self.fault, fault
        if fault is not None and fault != before:
            logger.error("%s", fault)
        elif fault is None and before is not None:
            logger.info("%s: works again", self.path)

    def close(self) -> None:
        """Lets go of the file."""
        with self.writing:
            self._closed = True
            self._disconnect()

    # --- the file ---

    def _identity(self) -> tuple[_File, int]:
        """Which file is at the path now, and its size. Raises OSError."""
        if self._followed() != self.path:
            raise StoreError(f"{self._named}: leads to another file since; start again")
        status = self.path.lstat()
        return (status.st_dev, status.st_ino), status.st_size

    def _followed(self) -> Path:
        """The path without links. Raises StoreError."""
        if self._like is None:
            return followed(self._named)
        return followed(self._named.parent) / self._named.name

    def _create(self) -> bool:
        """Makes the file, empty, unless there is one; whether it did. Raises OSError."""
        folder = self.path.parent
        missing = [parent for parent in self.path.parents if not parent.exists()]
        if self._make_folder:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not safe_files.make_database(self.path):
            return False
        for named_in in (folder, *(parent.parent for parent in missing)):
            safe_files.sync_folder(named_in)
        return True

    def _open(self, file: _File) -> None:
        """Opens the file and has all of it read; leaves everything as it was where that fails."""
        if self._like is not None:
            safe_files.check_database(self.path, self._like)
        writer = self._prepared()
        try:
            reader = self._connect()
            try:
                reader.execute(f"PRAGMA busy_timeout = {int(DROP_SECONDS * 1000)}")
                can_be_written = self._begin(reader, writer)
                with self.reading:
                    logs = {name: _inode(Path(f"{self.path}{name}")) for name in _LOGS}
                    if self._identity()[0] != file:
                        raise StoreError(f"{self.path}: replaced while it was opened; try again")
                    self._contents.load(reader)
                    self.reader, self._writer, self._file, self._logs = reader, writer, file, logs
                for db in (reader, writer):
                    db.setconfig(_LEAVE_LOG, False)
            except BaseException:
                reader.close()
                raise
        except BaseException:
            writer.close()
            raise
        if self._opened:
            logger.warning(
                "%s: another file was put in its place; what is in that one holds", self.path
            )
        if can_be_written:
            self.say(None)
        self._opened, self._make = True, False
        self._contents.opened()

    def _prepared(self) -> sqlite3.Connection:
        """A connection to a store of this version. Raises StoreError, OSError, sqlite3.Error."""
        deadline = time.monotonic() + PUT_SECONDS
        while True:
            writer = None
            try:
                self._see_whose_log_it_is()
                writer = self._connect()
                writer.execute("SELECT 1 FROM sqlite_schema").fetchone()  # which opens the log
                self._see_whose_log_it_is()
                prepare(writer, self.path, self._contents.schema)
                return writer
            except BaseException as error:
                if writer is not None:
                    writer.close()
                if time.monotonic() > deadline:
                    raise
                if no_room(error):
                    self._contents.free_room()  # the log and its index need some even to be read
                    deadline = 0
                elif not isinstance(error, _ForeignLogError) and not is_busy(error):
                    raise  # else another process has yet to let go of the log, or makes the file
                time.sleep(0.02)

    def _connect(self) -> sqlite3.Connection:
        """A connection that moves no log as it is closed: it may be another file's."""
        db = connect(self.path)
        db.setconfig(_LEAVE_LOG, True)
        return db

    def _begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> bool:
        """Writes what the file must say before it is loaded; False where it cannot be written."""
        try:
            self._contents.begin(reader, writer)
        except sqlite3.Error as error:
            roll_back(writer)
            self.say(describe(self.path, error))
            return False
        return True

    def _see_whose_log_it_is(self) -> None:
        """Raises _ForeignLogError where somebody still uses the log for another file."""
        if (pid := locks.user_of_another(self.path)) is not None:
            raise _ForeignLogError(
                f"{self.path}: put there while process {pid} used another file of that name, whose"
                " log is still beside it; try again, or end that process first"
            )

    def _see_that_it_is_there(self) -> None:
        """After a commit: raises StoreError where it went to another file than is at the path."""
        with contextlib.suppress(OSError):
            if self._identity()[0] == self._file:
                return
        raise StoreError(f"{self.path}: gone or replaced while it was written to; try again")

    def _let_go(self) -> None:
        """Lets go of a file that is not at the path any more, and takes its log away from there.

        Raises OSError where that cannot be taken away: then it is tried again, and nothing is
        opened meanwhile.
        """
        assert self._writer is not None
        moved = self.checkpoint(self._writer)
        locks.make(self._lock, self.path)
        with locks.locked(self._lock, self.path):  # others that had the file open do the same
            for name in _LOGS:
                log = Path(f"{self.path}{name}")
                with contextlib.suppress(FileNotFoundError):
                    if _inode(log) != self._logs[name]:
                        continue  # the log of the file that is there now
                    if moved or name != "-wal":
                        log.unlink()
                    else:
                        kept = log.rename(f"{log}-{self._logs[name][1]}")
                        logger.warning("%s has what the replaced file does not have yet", kept)
            safe_files.sync_folder(self.path.parent)
        self._disconnect()

    def _disconnect(self) -> None:
        """Closes both connections; SQLite leaves the log alone where the file has moved."""
        with self.writing, self.reading:
            for db in (self.reader, self._writer):
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):  # nothing is open, nothing is lost
                        db.close()
            self.reader = self._writer = self._file = None


class MemoryDatabase:
    """A database in memory, until the process ends: what of `Database` is used for one."""

    path = Path(":memory:")

    def __init__(self, contents: Contents) -> None:
        self._contents, self._lock = contents, threading.RLock()
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        migrate(self._db, contents.schema)
        contents.begin(self._db, self._db)
        contents.load(self._db)

    @contextlib.contextmanager
    def current(self) -> Iterator[sqlite3.Connection]:
        """A connection to read by. Raises StoreError."""
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise StoreError(describe(self.path, error)) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write, all of it or nothing. Raises StoreError."""
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
    """`safe_files.follow`, which raises StoreError here."""
    try:
        return safe_files.follow(path)
    except PermissionError as error:
        raise StoreError(*error.args) from error


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection, path: Path, seconds: float) -> Iterator[None]:
    """Commits at the end, or rolls back; waits `seconds` for other processes."""
    try:
        db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.Error as error:
        roll_back(db)
        raise StoreError(describe(path, error)) from error
    except BaseException:
        roll_back(db)
        raise


def _inode(path: Path) -> _File:
    status = path.stat()
    return status.st_dev, status.st_ino
