"""Sessions in one SQLite file that the proxy, the login server and the commands share.

Each process keeps a replica of it in memory, which is all that `find` asks. A change is committed
(write-ahead log, synced), then read back into the replica through the table `changes`, by which the
other processes hear of it too: one way for one's own and for theirs, in the order of the commits.
One thread per store does what is to be done in the background. Measured on two busy cores
(scripts/bench store, medians): a grant 0.5 ms, another process acts on it 0.5 to 0.9 ms after its
start (17 ms at worst of 1200), idle 0.03 % of a core.

What holds when the file cannot be written (disk full, read-only, damaged, locked, gone): `put`
raises StoreError and changes nothing; who is known stays known until its session ends; `drop` is in
force in this process before anything else happens, and then goes to the first of these that works:

1. the database, on a full disk after a MiB set aside for this has been freed;
2. `FILE-revoked` beside it (`revoked.py`): in force everywhere, as durable as a commit;
3. the same in /run/capport or XDG_RUNTIME_DIR: in force everywhere until the next reboot;
4. nowhere: in force in this process alone.

3 and 4 raise StoreError, though the client is revoked, and say what is still to be done.
"""

import contextlib
import hashlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from capport import clock as clocks
from capport.core.client import ClientId
from capport.core.session import Instant, Session, check_times
from capport.stores import StoreError, Watcher
from capport.stores.bell import Bell
from capport.stores.replica import FLUSH_SECONDS, Replica, Row, granted_at, pack
from capport.stores.revoked import (
    Revoked,
    free_ballast,
    set_ballast,
    spare_folders,
    sync_folder,
)
from capport.stores.schema import COLUMNS, MIGRATIONS, connect, describe, is_busy, no_room, prepare
from capport.stores.watchers import Watchers

logger = logging.getLogger(__name__)

PUT_SECONDS = 2.0
"""How long a grant waits for another process's write."""
DROP_SECONDS = 0.1
"""How long a revocation does, before it goes to the journal beside the database instead."""
TURN_SECONDS = 1.0
"""How often the background looks at the file if nobody rings."""
UPKEEP_SECONDS = 60.0
"""How often what is over is cleared away, and how much time a power cut may give twice."""
GRACE_SECONDS = 3 * FLUSH_SECONDS
"""How long something must be over before it is cleared away: longer than touches lag behind."""
KEPT_CHANGES = 10_000
_BATCH = 500  # rows a write transaction, so that a revocation never waits long behind upkeep
_COMMITS_PER_CHECKPOINT = 200

_UPSERT = f"""INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (client) DO UPDATE SET
        granted = excluded.granted, expires = excluded.expires, idle = excluded.idle,
        last_seen = max(last_seen, excluded.last_seen), granted_at = excluded.granted_at,
        granted_by = excluded.granted_by, how = excluded.how, name = excluded.name
"""  # noqa: S608
_CHANGED = f"""SELECT c.client, {COLUMNS.removeprefix("client, ")}
    FROM changes AS c LEFT JOIN sessions AS s ON s.client = c.client
    WHERE c.seq > ? ORDER BY c.seq
"""  # noqa: S608
_ONE = f"SELECT {COLUMNS} FROM sessions WHERE client = ?"  # noqa: S608
_HEARD = "UPDATE sessions SET last_seen = ? WHERE client = ? AND last_seen < ?"
_CHANGE = "INSERT INTO changes (client) VALUES (?)"


class SqliteStore:
    """A SessionStore in the file at `path`. `spares` are `revoked.spare_folders` unless given.

    `make_folder` makes the file's folder too, for nobody but the user. Raises StoreError; with
    `start_closed` it logs instead, knows nobody, and tries again each second.
    """

    def __init__(
        self,
        path: Path,
        *,
        make_folder: bool = False,
        start_closed: bool = False,
        clock: Callable[[], Instant] = clocks.now,
        boot_id: Callable[[], str] = clocks.boot_id,
        spares: Sequence[Path] | None = None,
    ) -> None:
        self.path = path.resolve()
        self._make_folder, self._clock, self._boot_id = make_folder, clock, boot_id
        folders = spare_folders() if spares is None else spares
        spare = f"{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}-revoked"
        self._revoked = (
            Revoked(Path(f"{self.path}-revoked"), self.path),
            *(Revoked(folder / spare, self.path) for folder in folders),
        )
        self._ballast = Path(f"{self.path}-ballast")
        # Being revoked just now, or revoked and noted nowhere; since when, in store time.
        self._dropped: dict[ClientId, float] = {}
        self._unnoted: set[ClientId] = set()
        self._replica = Replica()
        self._watchers = Watchers()
        # Whoever needs both takes `_writing` first.
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._boot = ""
        self._shift: tuple[tuple[str, float], float] | None = None
        self._seq = 0
        self._commits = 0
        self._upkeep_due: Instant = self._clock() + UPKEEP_SECONDS
        self._closed = False
        self._has_room = True
        self.fault: str | None = None
        try:
            with self._writing:
                self._connection()
        except StoreError as error:
            if not start_closed:
                self._disconnect()
                raise
            self._say(str(error))
        self._bell = Bell(place.path for place in self._revoked)
        self._thread = threading.Thread(target=self._keep, name=f"{self.path.name}", daemon=True)
        self._thread.start()

    # --- what the protocol promises ---

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """The open session under the first of `ids` that has one."""
        return self._replica.find(ids, now)

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was heard of."""
        self._replica.touch(client, now)

    def sessions(self) -> Iterator[Session]:
        """Each session."""
        return self._replica.sessions()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Has `watcher` called on each change, also where written-back touches moved an end."""
        return self._watchers.add(watcher)

    def put(self, session: Session) -> None:
        """Opens or replaces a session: on the disk, and in force here, on return."""
        check_times(session)
        self._fold(PUT_SECONDS)  # or a revocation noted earlier would end this session
        with self._transaction(PUT_SECONDS) as (db, shift):
            db.execute(_UPSERT, _row(session, shift))
            db.execute(_CHANGE, (session.client,))
        self._read_back()

    def drop(self, client: ClientId) -> bool:
        """Ends a session; whether there was one."""
        now = self._clock() + self._replica.state.shift
        self._dropped[client] = now if self._file else math.inf
        known = self._replica.set(client, None)
        if known:
            self._watchers.tell(client)
        try:
            noted = client in self._noted()
            known = self._delete_making_room(client) and not noted  # it knows better than we did
            self._read_back()
        except StoreError as error:
            self._note(client, error)
        finally:
            if client not in self._unnoted:
                self._dropped.pop(client, None)
            self._sync(client)
        return known

    def close(self) -> None:
        """Writes back what is due and lets go of the file."""
        if self._closed:
            return
        self._bell.stop()
        self._thread.join()
        try:
            self._flush()
            self._checkpoint_clock(TURN_SECONDS)
        except StoreError as error:
            self._say(str(error))
        except sqlite3.Error as error:
            self._say(describe(self.path, error))
        self._closed = True
        self._bell.close()
        self._disconnect()
        self._replica.replace({}, 0.0)
        self._watchers.close()

    # --- the file ---

    def _connection(self) -> sqlite3.Connection:
        """The connection to write by, if the file is still the one at the path. StoreError."""
        if self._closed:
            raise StoreError(f"{self.path}: closed")
        try:
            made = self._file is None and self._create()
            file, size = self._identity()
            if self.fault and self._file is None and not made and size == 0:
                raise StoreError(f"{self.path}: empty; is a backup being copied there?")
            if self._writer is None:
                self._open(file)
            elif self._file != file:
                # Not to be opened here: SQLite would replay the old file's log into the new one.
                raise StoreError(
                    f"{self.path}: another file was put in its place while it was in use; stop"
                    f" whatever uses it, remove {self.path.name}-wal and -shm, and start again"
                )
        except FileNotFoundError as error:
            what = "put it back" if self._file else "make its folder first"
            raise StoreError(f"{error.filename}: {error.strerror}; {what}") from error
        except StoreError:
            raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(describe(self.path, error)) from error
        assert self._writer is not None
        return self._writer

    def _identity(self) -> tuple[tuple[int, int], int]:
        """Which file is at the path now, and its size."""
        status = self.path.stat()
        return (status.st_dev, status.st_ino), status.st_size

    def _create(self) -> bool:
        """Makes the file, empty, unless there is one; whether it did."""
        missing = [folder for folder in self.path.parents if not folder.exists()]
        if self._make_folder:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(self.path, flags, 0o600))
        except FileExistsError:
            return False
        for folder in (self.path.parent, *(made.parent for made in missing)):
            sync_folder(folder)
        return True

    def _open(self, file: tuple[int, int]) -> None:
        """Opens the file and reads all of it; leaves everything as it was where that fails."""
        self._boot = self._boot_id()
        deadline = time.monotonic() + PUT_SECONDS
        writer = connect(self.path)
        try:
            while True:
                try:
                    prepare(writer, self.path, MIGRATIONS)
                    break
                except sqlite3.OperationalError as error:
                    if time.monotonic() > deadline:
                        raise
                    if no_room(error):  # the log and its index need some even to be read
                        free_ballast(self._ballast)
                        deadline = 0
                    elif error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        raise  # BUSY: another process is making the same file
                    time.sleep(0.02)
            reader = connect(self.path)
            try:
                reader.execute(f"PRAGMA busy_timeout = {int(DROP_SECONDS * 1000)}")
                self._begin_boot(reader, writer)
                with self._reading:
                    if self._identity()[0] != file:
                        raise StoreError(f"{self.path}: replaced while it was opened; try again")
                    self._load(reader)
                    self._reader, self._writer, self._file = reader, writer, file
            except BaseException:
                reader.close()
                raise
        except BaseException:
            writer.close()
            raise
        self._make_room()

    def _disconnect(self) -> None:
        with self._writing, self._reading:
            for db in (self._reader, self._writer):
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):  # nothing is open, nothing is lost
                        db.close()
            self._reader = self._writer = None

    def _make_room(self) -> None:
        """Sees to it that a full disk still takes revocations; says so once where it cannot."""
        try:
            self._revoked[0].make()
            set_ballast(self._ballast, self.path)
        except OSError as error:
            if self._has_room:
                logger.warning("%s: %s; revocations may fail", self._ballast, error.strerror)
            self._has_room = False
        else:
            self._has_room = True

    # --- the clock ---

    def _begin_boot(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Has the file know of this boot, where it can: else each process reckons by itself."""
        if self._clock_of(reader)[0] == self._boot:
            return
        try:
            writer.execute("BEGIN IMMEDIATE")
            self._settle(writer)
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(writer)
            self._say(describe(self.path, error))

    def _clock_of(self, db: sqlite3.Connection) -> tuple[str, float, float]:
        boot, shift, checkpoint = db.execute("SELECT boot, shift, checkpoint FROM clock").fetchone()
        return str(boot), float(shift), float(checkpoint)

    def _shift_of(self, db: sqlite3.Connection) -> float:
        """What store time is ahead of this boot's clock."""
        boot, shift, checkpoint = self._clock_of(db)
        if boot == self._boot:
            return shift
        if self._shift is None or self._shift[0] != (boot, checkpoint):
            self._shift = (boot, checkpoint), checkpoint - self._clock()
        return self._shift[1]

    def _settle(self, db: sqlite3.Connection) -> float:
        """In a write transaction: moves the clock on, into this boot if need be; the shift."""
        _, _, checkpoint = self._clock_of(db)
        shift = self._shift_of(db)
        now = self._clock()
        if now + shift < checkpoint:  # a snapshot of the machine was restored: as after a reboot
            shift = checkpoint - now
        db.execute(
            "UPDATE clock SET boot = ?, shift = ?, checkpoint = ?",
            (self._boot, shift, max(checkpoint, now + shift)),
        )
        return shift

    # --- writing ---

    @contextlib.contextmanager
    def _transaction(self, seconds: float) -> Iterator[tuple[sqlite3.Connection, float]]:
        """A write that is on the disk when this ends: the connection and the shift.

        Waits at most `seconds` for other writers, of this process and of others. Raises
        StoreError, and nothing has changed then.
        """
        deadline = time.monotonic() + seconds
        if not self._writing.acquire(timeout=seconds):
            raise StoreError(f"{self.path}: busy with other writes; try again")
        try:
            db = self._connection()
            try:
                left = max(DROP_SECONDS, deadline - time.monotonic())
                db.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
                db.execute("BEGIN IMMEDIATE")
                yield db, self._settle(db)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                _roll_back(db)
                raise StoreError(describe(self.path, error)) from error
            except BaseException:
                _roll_back(db)
                raise
            self._say(None)
            self._revoked[0].ring()
            self._commits += 1
            if self._commits >= _COMMITS_PER_CHECKPOINT:
                self._checkpoint(db)
        finally:
            self._writing.release()

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        """Moves the log into the database, so that it does not grow for ever.

        FULL keeps writers out meanwhile (`schema.connect` says why). What it cannot do now, because
        of a reader or a full disk, the next one does: nothing is lost by it.
        """
        self._commits = 0
        with contextlib.suppress(sqlite3.Error):
            db.execute(f"PRAGMA busy_timeout = {int(DROP_SECONDS * 1000)}")
            db.execute("PRAGMA wal_checkpoint(FULL)").fetchall()

    def _delete(self, client: ClientId) -> bool:
        with self._transaction(DROP_SECONDS) as (db, _):
            known = db.execute("DELETE FROM sessions WHERE client = ?", (client,)).rowcount > 0
            if known:
                db.execute(_CHANGE, (client,))
            return known

    def _delete_making_room(self, client: ClientId) -> bool:
        try:
            return self._delete(client)
        except StoreError as error:
            if not no_room(error.__cause__):
                raise
            free_ballast(self._ballast)
            if not self._writing.acquire(timeout=DROP_SECONDS):
                raise
            try:
                self._checkpoint(self._connection())
            finally:
                self._writing.release()
            return self._delete(client)

    def _note(self, client: ClientId, error: StoreError) -> None:
        """Puts a revocation that the database did not take where it will be found."""
        for place in self._revoked:
            try:
                if place is not self._revoked[0]:
                    place.path.parent.mkdir(mode=0o755, exist_ok=True)
                place.add(client)
            except OSError:
                continue
            if place is self._revoked[0]:
                logger.warning("%s; so %s, which is revoked, is noted beside it", error, client)
                return
            raise StoreError(
                f"{error}; {client} is revoked, but only until the next reboot (noted in"
                f" {place.path}): revoke it again when that is mended"
            ) from error
        self._unnoted.add(client)
        raise StoreError(
            f"{error}; {client} is revoked in this process only: no other can be told and a restart"
            " forgets it; revoke it again when that is mended"
        ) from error

    def _fold(self, seconds: float) -> None:
        """Deletes for good what was noted elsewhere as revoked. Raises StoreError."""
        for place in self._revoked:
            if place.read():
                try:
                    self._fold_journal(place, seconds)
                except StoreError:
                    raise
                except OSError as error:
                    raise StoreError(
                        f"{place.path}: cannot be emptied ({error.strerror}); check its owner"
                    ) from error
        for client in tuple(self._unnoted):
            with self._transaction(seconds) as (db, _):
                db.execute(
                    "DELETE FROM sessions WHERE client = ? AND granted <= ?",
                    (client, self._dropped.get(client, -math.inf)),
                )
                db.execute(_CHANGE, (client,))
            self._unnoted.discard(client)
            self._dropped.pop(client, None)
            self._read_back()

    def _fold_journal(self, place: Revoked, seconds: float) -> None:
        """Holds the journal from within the transaction until it is empty, and no longer.

        Every grant folds first, so no line outlives a grant that came after it.
        """
        with contextlib.ExitStack() as stack:
            with self._transaction(seconds) as (db, _):
                clients, empty = stack.enter_context(place.held())
                for client in clients:
                    db.execute("DELETE FROM sessions WHERE client = ?", (client,))
                    db.execute(_CHANGE, (client,))
            self._read_back()
            empty()

    # --- reading ---

    def _read_back(self) -> None:
        """Has a commit in force here. Raises StoreError where it cannot be read again.

        Into a damaged file one can still write for a while, by what SQLite remembers of it.
        """
        if not self._sync():
            raise StoreError(self.fault or f"{self.path}: cannot be read back")

    def _sync(self, also: ClientId | None = None) -> bool:
        """Brings the replica up to what is committed and noted; whether the file could be read.

        `also` is read even if it has not changed: a grant of it may have been held back while it
        was being revoked.
        """
        with self._reading:
            readable = self._reader is not None
            changed: dict[ClientId, bytes | None] = {}
            if self._reader is not None:
                try:
                    self._reader.execute("BEGIN")
                    changed = self._read(self._reader)
                    if also is not None:
                        row = self._reader.execute(_ONE, (also,)).fetchone()
                        changed[also] = row and pack(row)
                except sqlite3.Error as error:
                    self._say(describe(self.path, error))
                    readable = False
                finally:
                    _roll_back(self._reader)
            noted = self._noted()  # after the rows: what is still noted then was not granted since
            for client, record in changed.items():
                self._set(client, None if self._is_revoked(client, record, noted) else record)
            for client in noted | self._dropped.keys():
                if self._is_revoked(client, self._replica.get(client), noted):
                    self._set(client, None)
            return readable

    def _read(self, db: sqlite3.Connection) -> dict[ClientId, bytes | None]:
        """The records of what has changed since the last time; everything, if that is too long."""
        first, last = db.execute(
            "SELECT (SELECT min(seq) FROM changes), (SELECT max(seq) FROM changes)"
        ).fetchone()
        first, last = first or 0, last or 0
        shifted = self._shift_of(db) != self._replica.state.shift
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
            shift = self._shift_of(db)
            (seq,) = db.execute("SELECT max(seq) FROM changes").fetchone()
            rows = db.execute(f"SELECT {COLUMNS} FROM sessions")  # noqa: S608
            records = {ClientId(row[0]): pack(row) for row in rows}
        finally:
            if own:
                _roll_back(db)
        noted = self._noted()
        for client in noted | self._dropped.keys():
            if self._is_revoked(client, records.get(client), noted):
                records.pop(client, None)
        before = self._replica.replace(records, shift).records
        self._seq = seq or 0
        if self._watchers:
            for client in before.keys() | records.keys():
                if before.get(client) != records.get(client):
                    self._watchers.tell(client)

    def _noted(self) -> set[ClientId]:
        """Who is revoked whatever the database says."""
        return {client for place in self._revoked for client in place.read()}

    def _is_revoked(self, client: ClientId, record: bytes | None, noted: set[ClientId]) -> bool:
        since = self._dropped.get(client)
        return client in noted or (
            since is not None and record is not None and granted_at(record) <= since
        )

    def _set(self, client: ClientId, record: bytes | None) -> None:
        was_open = self._replica.find((client,), self._clock()) is not None
        if self._replica.set(client, record) and (was_open or record is not None):
            self._watchers.tell(client)

    # --- in the background ---

    def _keep(self) -> None:
        while self._bell.wait(TURN_SECONDS):
            try:
                self._turn()
            except StoreError as error:
                self._say(str(error))
            except sqlite3.Error as error:
                self._say(describe(self.path, error))
            except Exception:
                # The edge: without this thread no revocation of another process would be seen.
                logger.exception("The session store's upkeep failed; it goes on")

    def _turn(self) -> None:
        """What is due now: changes of others, the file itself, touches, upkeep."""
        self._sync()
        if self._writing.acquire(blocking=False):
            try:
                self._connection()
            finally:
                self._writing.release()
        if self._unnoted or any(place.read() for place in self._revoked):
            try:
                self._fold(DROP_SECONDS)
            except StoreError as error:
                if error.__cause__ is not None and not is_busy(error.__cause__):
                    raise  # else the next turn does it: they are in force meanwhile
        now = self._clock()
        if now >= self._replica.flush_due:
            self._flush()
        if now >= self._upkeep_due:
            self._upkeep_due = now + UPKEEP_SECONDS
            self._upkeep()

    def _flush(self) -> None:
        """Writes back when clients were heard of; what raises StoreError is kept for later."""
        heard = list(self._replica.heard().items())
        for batch in (heard[i : i + _BATCH] for i in range(0, len(heard), _BATCH)):
            try:
                with self._transaction(PUT_SECONDS) as (db, shift):
                    for client, at in batch:
                        if db.execute(_HEARD, (at + shift, client, at + shift)).rowcount:
                            db.execute(_CHANGE, (client,))
            except StoreError:
                self._replica.flush_due = self._clock() + FLUSH_SECONDS
                raise
            self._sync()
            self._replica.written_back(batch)

    def _upkeep(self) -> None:
        """Clears away what is over, and old changes; keeps the clock, the log and the ballast."""
        while self._clear_batch():
            pass
        self._checkpoint_clock(UPKEEP_SECONDS - TURN_SECONDS)
        with self._writing:
            db = self._connection()
            (kept,) = db.execute("SELECT max(seq) - min(seq) FROM changes").fetchone()
        if (kept or 0) > 2 * KEPT_CHANGES:
            with self._transaction(PUT_SECONDS) as (db, _):
                db.execute(
                    "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                    (KEPT_CHANGES,),
                )
        if self._commits:
            with self._writing:
                self._checkpoint(self._connection())
        self._make_room()

    def _clear_batch(self) -> bool:
        """Deletes some sessions that are over; whether there may be more."""
        over = "SELECT client FROM sessions WHERE ends < ? LIMIT ?"
        with self._writing:
            now = self._clock() + self._replica.state.shift
            if not self._connection().execute(over, (now - GRACE_SECONDS, 1)).fetchone():
                return False
        with self._transaction(PUT_SECONDS) as (db, shift):
            before = self._clock() + shift - GRACE_SECONDS
            clients = db.execute(over, (before, _BATCH)).fetchall()
            db.executemany("DELETE FROM sessions WHERE client = ?", clients)
            db.executemany(_CHANGE, clients)
        self._sync()
        return len(clients) == _BATCH

    def _checkpoint_clock(self, seconds: float) -> None:
        """Writes down how far time has come, unless somebody did in the last `seconds`."""
        with self._writing:
            db = self._connection()
            boot, shift, checkpoint = self._clock_of(db)
            (sessions,) = db.execute("SELECT EXISTS (SELECT 1 FROM sessions)").fetchone()
        late = boot != self._boot or self._clock() + shift - checkpoint > seconds
        if sessions and late:
            with self._transaction(PUT_SECONDS):
                pass

    def _say(self, fault: str | None) -> None:
        """Logs a fault once, and its end."""
        before, self.fault = self.fault, fault
        if fault is not None and fault != before:
            logger.error("%s", fault)
        elif fault is None and before is not None:
            logger.info("%s: works again", self.path)


def _row(session: Session, shift: float) -> Row:
    return (
        session.client,
        session.granted + shift,
        session.expires + shift,
        session.idle,
        max(session.last_seen, session.granted) + shift,
        session.granted_at,
        session.by,
        session.how,
        session.name,
    )


def _roll_back(db: sqlite3.Connection) -> None:
    """Ends a transaction, if SQLite has not done so itself (it does on a full or failing disk)."""
    with contextlib.suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")
