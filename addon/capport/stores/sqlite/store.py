"""Sessions in one SQLite file that the proxy, the login server and the commands share.

Each process keeps a replica of it in memory, and `find` reads only that. A change is committed
(write-ahead log, synced), then read back into the replica through the table `changes`. Other
processes read the change from the same table, so every replica applies all changes in the order of
the commits. One thread per store does the background work. Measured on two busy cores (medians of
scripts/bench store): a grant takes 0.5 ms, another process acts on it 0.5 to 0.9 ms after the grant
began (of 1200 grants, the slowest took 17 ms), and an idle store takes 0.03 % of a core.

If the file cannot be written (disk full, read-only, damaged, locked, missing), `put` raises
StoreError and changes nothing, and a known client stays known until its session ends. `revoke`
takes effect in this process before anything else happens, and then goes to the first place that
accepts it (`revocations.py`). If another file is put in its place, that file is used, and a client
that is not in it is unknown (`database.py`).
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from capport import clock as clocks
from capport.core.client import Address, ClientId, Mac
from capport.core.session import Instant, Session, check_times
from capport.log_limits import FAULTS, Seldom
from capport.stores import FullError, StoreError, Watcher
from capport.stores.replica import Replica, granted, row_of
from capport.stores.sqlite.boot_clock import StoreTime
from capport.stores.sqlite.database import PUT_SECONDS, REVOKE_SECONDS, Contents, Database, followed
from capport.stores.sqlite.file_notifier import FileNotifier
from capport.stores.sqlite.follower import Follower
from capport.stores.sqlite.housekeeping import Housekeeping
from capport.stores.sqlite.revocation_file import (
    RevocationFile,
    free_ballast,
    set_ballast,
    spare_folders,
)
from capport.stores.sqlite.revocations import Revocations
from capport.stores.sqlite.schema import is_busy, no_room
from capport.stores.sqlite.session_schema import CHANGE, COLUMNS, SESSIONS
from capport.watchers import Watchers

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
"""How often the background thread looks at the file if nothing wakes it."""
_ROUNDING = 1e-6  # seconds: more than an instant loses between this boot's time and store time

_UPSERT = f"""INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (client) DO UPDATE SET
        granted = excluded.granted, expires = excluded.expires, idle = excluded.idle,
        last_seen = max(last_seen, excluded.last_seen), granted_at = excluded.granted_at,
        granted_by = excluded.granted_by, how = excluded.how, name = excluded.name
"""  # noqa: S608
_DELETE = "DELETE FROM sessions WHERE client = ? AND granted <= ?"
_THERE = "SELECT 1 FROM sessions WHERE client = ?"
_COUNT = "SELECT count(*) FROM sessions"


class SqliteStore:
    """A SessionStore in the file at `path`. `spares` defaults to `spare_folders()`.

    `make` makes the file if it is missing, and `make_folder` its folder, which only the user may
    read. Raises StoreError; with `start_closed` it logs the error instead, knows no client, and
    tries again each second. With `about`, it has only the sessions whose id is or contains one of
    these addresses, so that a command does not have to read a million sessions.
    """

    lease: Instant = math.inf

    def __init__(
        self,
        path: Path,
        *,
        make: bool = True,
        make_folder: bool = False,
        start_closed: bool = False,
        about: Collection[Mac | Address] | None = None,
        clock: Callable[[], Instant] = clocks.now,
        boot_id: Callable[[], str] = clocks.boot_id,
        spares: Sequence[Path] | None = None,
    ) -> None:
        self.path = followed(path)
        self._time = StoreTime(clock, boot_id)
        self._revocations = Revocations(self.path, spare_folders() if spares is None else spares)
        self._replica = Replica()
        self._watchers = Watchers[ClientId]("the session store")
        self._follower = Follower(
            self._replica, self._revocations, self._time, self._watchers, about
        )
        self._journal = self._revocations.places[0]
        self._ballast, self._is_reserved = Path(f"{self.path}-ballast"), True
        contents = Contents(
            SESSIONS,
            begin=self._time.begin,
            load=self._follower.load,
            opened=self._reserve_space,
            settle=self._time.settle,
            committed=self._journal.ring,
            free_room=self._free_room,
        )
        self.database = Database(
            path, contents, lock=self._journal.path, make=make, make_folder=make_folder
        )
        self._housekeeping = Housekeeping(
            self.database, self._replica, self._time, self._sync, self._reserve_space
        )
        self._closed = False
        self.database.open(start_closed=start_closed)
        self._look_too: Callable[[], object] = lambda: None
        self._notifier = FileNotifier((place.path for place in self._revocations.places), self.path)
        self._thread = threading.Thread(target=self._run, name=self.path.name, daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str | None:
        """Why the file cannot be used now, None while it can."""
        return self.database.fault

    # --- the protocol SessionStore ---

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one."""
        return self._replica.find(ids, now)

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`."""
        self._replica.touch(client, now)

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields each session, or those whose id is or has one of the addresses `about`."""
        return self._replica.sessions(about)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change, also when a written touch moved the end of a session."""
        return self._watchers.add(watcher)

    def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
        """Opens or replaces a session. On return it is on the disk and in the replica here."""
        check_times(session)
        self._delete_noted(PUT_SECONDS)  # otherwise an older revocation would end this session
        with self.database.transaction(PUT_SECONDS) as db:
            if not db.execute(_THERE, (session.client,)).fetchone():
                if renews:
                    return False
                if most is not None and db.execute(_COUNT).fetchone()[0] >= most:
                    raise FullError.by_policy(most)
            db.execute(_UPSERT, row_of(session, self._time.shift(db)))
            db.execute(CHANGE, (session.client,))
        self._read_back()
        return True

    def revoke(self, client: ClientId, *, granted_by: Instant = math.inf) -> bool:
        """Ends a session granted at `granted_by` or before. Returns whether there was one."""
        shift = self._replica.state.shift
        until = granted_by + _ROUNDING + shift
        now = min(self._time.now() + shift, until)
        self._revocations.begin(client, now if self.database.has_file else math.inf)
        record = self._replica.get(client)
        known = record is not None and granted(record) <= until
        if known and self._replica.set(client, None):
            self._watchers.notify(client)
        try:
            noted = client in self._revocations.noted()
            known = self._delete_making_room(client, until) and not noted  # as the file says
            self._read_back()
        except StoreError as error:
            self._revocations.note(client, error)
        finally:
            self._revocations.end(client)
            self._sync(client)
        return known

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        if self._closed:
            return
        self._notifier.stop()
        self._thread.join()
        try:
            self._housekeeping.flush()
            self._housekeeping.note_time(TURN_SECONDS)
        except StoreError as error:
            self.database.report(str(error))
        self._closed = True
        self._notifier.close()
        self.database.close()
        self._replica.replace({}, 0.0)
        self._watchers.close()

    # --- what the database calls ---

    def _reserve_space(self) -> None:
        """Reserves space on the disk, or logs once that it cannot. Called regularly."""
        try:
            self._journal.make()
            set_ballast(self._ballast, self.path)
        except OSError as error:
            if self._is_reserved:
                logger.warning(
                    f"{self._ballast}: {error.strerror}; revocations may fail on a full disk"
                )
            self._is_reserved = False
        else:
            self._is_reserved = True

    def _free_room(self) -> None:
        free_ballast(self._ballast, self.path)

    # --- revoking ---

    def _delete(self, client: ClientId, until: float) -> bool:
        with self.database.transaction(REVOKE_SECONDS) as db:
            known = db.execute(_DELETE, (client, until)).rowcount > 0
            if known:
                db.execute(CHANGE, (client,))
            return known

    def _delete_making_room(self, client: ClientId, until: float) -> bool:
        try:
            return self._delete(client, until)
        except StoreError as error:
            if not no_room(error.__cause__) or not self.database.free_room():
                raise
            return self._delete(client, until)

    def _delete_noted(self, seconds: float) -> None:
        """Deletes from the database what was noted elsewhere as revoked. Raises StoreError."""
        for place in self._revocations.places:
            if place.read():
                try:
                    self._delete_noted_in(place, seconds)
                except StoreError:
                    raise
                except OSError as error:
                    raise StoreError(
                        f"{place.path}: cannot be emptied ({error.strerror}); check its owner"
                    ) from error
        for client in tuple(self._revocations.unnoted):
            with self.database.transaction(seconds) as db:
                db.execute(_DELETE, (client, self._revocations.since(client)))
                db.execute(CHANGE, (client,))
            self._revocations.unnoted.discard(client)
            self._revocations.end(client)
            self._read_back()

    def _delete_noted_in(self, place: RevocationFile, seconds: float) -> None:
        """Keeps the journal locked from within the transaction until it is empty.

        Every grant does this first, so no revocation in the journal ends a later grant.
        """
        with contextlib.ExitStack() as stack:
            with self.database.transaction(seconds) as db:
                clients, empty = stack.enter_context(place.held())
                for client in clients:
                    db.execute("DELETE FROM sessions WHERE client = ?", (client,))
                    db.execute(CHANGE, (client,))
            self._read_back()
            empty()

    # --- reading ---

    def _read_back(self) -> None:
        """Reads a commit into the replica. Raises StoreError if it cannot be read.

        SQLite can write to a damaged file for a while, because it remembers parts of it.
        """
        if not self._sync():
            raise StoreError(self.fault or f"{self.path}: cannot be read after a write")

    def _sync(self, also: ClientId | None = None) -> bool:
        return self._follower.sync(self.database, also)

    # --- in the background ---

    def ring(self) -> None:
        """Makes each process that has this store open look at what others have changed."""
        self._journal.ring()

    def look_too(self, look: Callable[[], object]) -> None:
        """Calls `look` on the store's thread when another process may have changed something."""
        self._look_too = look

    def _run(self) -> None:
        seldom = Seldom(FAULTS)
        while self._notifier.wait(TURN_SECONDS):
            for work in (self.turn, self._look_too):
                try:
                    work()
                except StoreError as error:
                    self.database.report(str(error))
                except Exception as error:
                    # The edge: without this thread no revocation by another process takes effect.
                    if seldom.is_due(time.monotonic(), repr(error)):
                        logger.exception("The store's background work failed; it tries again")

    def turn(self) -> None:
        """One round of background work: changes, a replaced file, noted revocations, upkeep."""
        self._sync()
        if self.database.writing.acquire(blocking=False):
            try:
                self.database.connection()
            finally:
                self.database.writing.release()
        if self._revocations.waiting():
            try:
                self._delete_noted(REVOKE_SECONDS)
            except StoreError as error:
                if error.__cause__ is not None and not is_busy(error.__cause__):
                    raise  # otherwise the next turn does it; meanwhile they are in force
        self._housekeeping.turn()
