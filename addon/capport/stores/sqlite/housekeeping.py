"""Background work: writes last-seen times and the clock, and removes old sessions and changes."""

from collections.abc import Callable
from itertools import batched

from capport.core.session import Instant
from capport.stores import StoreError
from capport.stores.replica import FLUSH_SECONDS, Replica
from capport.stores.sqlite.boot_clock import StoreTime
from capport.stores.sqlite.database import PUT_SECONDS, Database
from capport.stores.sqlite.session_schema import CHANGE

UPKEEP_SECONDS = 60.0
"""How often ended sessions are removed and the clock is written (see `boot_clock`)."""
GRACE_SECONDS = 3 * FLUSH_SECONDS
"""How long a session must be over before it is removed: longer than touches are delayed."""
KEPT_CHANGES = 10_000
BATCH = 500  # rows per write transaction, so that no revocation waits long

_SEEN = "UPDATE sessions SET last_seen = ? WHERE client = ? AND last_seen < ?"
_OVER = "SELECT client FROM sessions WHERE ends < ? LIMIT ?"


class Housekeeping:
    """The background work of one store. Every method may raise StoreError.

    `sync` updates the replica to what was committed. `reserve_space` reserves space on the disk.
    """

    def __init__(
        self,
        database: Database,
        replica: Replica,
        store_time: StoreTime,
        sync: Callable[[], object],
        reserve_space: Callable[[], None],
    ) -> None:
        self._database, self._replica, self._time = database, replica, store_time
        self._sync, self._reserve_space = sync, reserve_space
        self._due: Instant = store_time.now() + UPKEEP_SECONDS

    def turn(self) -> None:
        """Does what is due."""
        now = self._time.now()
        if now >= self._replica.flush_due:
            self.flush()
        if now >= self._due:
            self._due = now + UPKEEP_SECONDS
            while self._remove_batch():
                pass
            self.note_time(UPKEEP_SECONDS - 1)
            self._forget_changes()
            with self._database.current() as db:
                if self._database.commits:
                    self._database.checkpoint(db)
            self._reserve_space()

    def flush(self) -> None:
        """Writes when clients were last seen. After a StoreError it is tried again later."""
        for batch in batched(self._replica.touches().items(), BATCH):
            try:
                with self._database.transaction(PUT_SECONDS) as db:
                    shift = self._time.shift(db)
                    for client, at in batch:
                        if db.execute(_SEEN, (at + shift, client, at + shift)).rowcount:
                            db.execute(CHANGE, (client,))
            except StoreError:
                self._replica.flush_due = self._time.now() + FLUSH_SECONDS
                raise
            self._sync()
            self._replica.touches_written(batch)

    def note_time(self, seconds: float) -> None:
        """Writes the clock, unless a process has written it in the last `seconds`."""
        with self._database.current() as db:
            is_due = self._time.unwritten(db) > seconds
            (sessions,) = db.execute("SELECT EXISTS (SELECT 1 FROM sessions)").fetchone()
        if sessions and is_due:
            with self._database.transaction(PUT_SECONDS):
                pass  # each transaction writes the clock

    def _remove_batch(self) -> bool:
        """Deletes some sessions that are over. Returns whether there may be more."""
        with self._database.current() as db:
            before = self._time.now() + self._time.shift(db) - GRACE_SECONDS
            if not db.execute(_OVER, (before, 1)).fetchone():
                return False
        with self._database.transaction(PUT_SECONDS) as db:
            before = self._time.now() + self._time.shift(db) - GRACE_SECONDS
            clients = db.execute(_OVER, (before, BATCH)).fetchall()
            db.executemany("DELETE FROM sessions WHERE client = ?", clients)
            db.executemany(CHANGE, clients)
        self._sync()
        return len(clients) == BATCH

    def _forget_changes(self) -> None:
        """Keeps only the last changes: a process that needs older ones reads everything."""
        with self._database.current() as db:
            (kept,) = db.execute("SELECT max(seq) - min(seq) FROM changes").fetchone()
        if (kept or 0) > 2 * KEPT_CHANGES:
            with self._database.transaction(PUT_SECONDS) as db:
                db.execute(
                    "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                    (KEPT_CHANGES,),
                )
