"""What is due now and then: touches written back, what is over cleared away, the clock noted."""

from collections.abc import Callable

from capport.core.session import Instant
from capport.stores import StoreError
from capport.stores.replica import FLUSH_SECONDS, Replica
from capport.stores.sqlite.boot_clock import StoreTime
from capport.stores.sqlite.database import PUT_SECONDS, Database
from capport.stores.sqlite.session_schema import CHANGE

UPKEEP_SECONDS = 60.0
"""How often what is over is cleared away, and how much time a power cut may give twice."""
GRACE_SECONDS = 3 * FLUSH_SECONDS
"""How long something must be over before it is cleared away: longer than touches lag behind."""
KEPT_CHANGES = 10_000
BATCH = 500  # rows a write transaction, so that a revocation never waits long behind upkeep

_HEARD = "UPDATE sessions SET last_seen = ? WHERE client = ? AND last_seen < ?"
_OVER = "SELECT client FROM sessions WHERE ends < ? LIMIT ?"


class Upkeep:
    """`sync` brings the replica up to what was committed. Every method may raise StoreError."""

    def __init__(
        self,
        database: Database,
        replica: Replica,
        store_time: StoreTime,
        sync: Callable[[], object],
        set_room_aside: Callable[[], None],
    ) -> None:
        self._database, self._replica, self._time = database, replica, store_time
        self._sync, self._set_room_aside = sync, set_room_aside
        self._due: Instant = store_time.now() + UPKEEP_SECONDS

    def turn(self) -> None:
        """Does what is due."""
        now = self._time.now()
        if now >= self._replica.flush_due:
            self.flush()
        if now >= self._due:
            self._due = now + UPKEEP_SECONDS
            while self._clear_batch():
                pass
            self.note_time(UPKEEP_SECONDS - 1)
            self._forget_changes()
            with self._database.current() as db:
                if self._database.commits:
                    self._database.checkpoint(db)
            self._set_room_aside()

    def flush(self) -> None:
        """Writes back when clients were heard of; what raises StoreError is kept for later."""
        heard = list(self._replica.heard().items())
        for batch in (heard[i : i + BATCH] for i in range(0, len(heard), BATCH)):
            try:
                with self._database.transaction(PUT_SECONDS) as db:
                    shift = self._time.shift(db)
                    for client, at in batch:
                        if db.execute(_HEARD, (at + shift, client, at + shift)).rowcount:
                            db.execute(CHANGE, (client,))
            except StoreError:
                self._replica.flush_due = self._time.now() + FLUSH_SECONDS
                raise
            self._sync()
            self._replica.written_back(batch)

    def note_time(self, seconds: float) -> None:
        """Writes down how far time has come, unless somebody did in the last `seconds`."""
        with self._database.current() as db:
            is_due = self._time.unwritten(db) > seconds
            (sessions,) = db.execute("SELECT EXISTS (SELECT 1 FROM sessions)").fetchone()
        if sessions and is_due:
            with self._database.transaction(PUT_SECONDS):
                pass

    def _clear_batch(self) -> bool:
        """Deletes some sessions that are over; whether there may be more."""
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
        """Keeps the last thousands: who lags behind reads everything."""
        with self._database.current() as db:
            (kept,) = db.execute("SELECT max(seq) - min(seq) FROM changes").fetchone()
        if (kept or 0) > 2 * KEPT_CHANGES:
            with self._database.transaction(PUT_SECONDS) as db:
                db.execute(
                    "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                    (KEPT_CHANGES,),
                )
