"""Store time: a clock that runs while the machine does, over all its boots (`schema` says how)."""

import sqlite3
from collections.abc import Callable

from capport.core.session import Instant


class StoreTime:
    """What to add to an instant of this boot's clock to have store time: the shift."""

    def __init__(self, clock: Callable[[], Instant], boot_id: Callable[[], str]) -> None:
        self.now = clock
        self._boot_id = boot_id
        self._boot = ""
        self._reckoned: tuple[tuple[str, float], float] | None = None

    def begin(self) -> None:
        """Finds out which boot this is. Raises OSError."""
        self._boot = self._boot_id()

    def has_begun(self, db: sqlite3.Connection) -> bool:
        """Whether the file knows of this boot."""
        return _clock_of(db)[0] == self._boot

    def shift(self, db: sqlite3.Connection) -> float:
        """What store time is ahead of this boot's clock."""
        boot, shift, checkpoint = _clock_of(db)
        if boot == self._boot:
            return shift
        if self._reckoned is None or self._reckoned[0] != (boot, checkpoint):
            self._reckoned = (boot, checkpoint), checkpoint - self.now()
        return self._reckoned[1]

    def settle(self, db: sqlite3.Connection) -> float:
        """In a write transaction: moves the clock on, into this boot if need be; the shift."""
        _, _, checkpoint = _clock_of(db)
        shift = self.shift(db)
        now = self.now()
        if now + shift < checkpoint:  # a snapshot of the machine was restored: as after a reboot
            shift = checkpoint - now
        db.execute(
            "UPDATE clock SET boot = ?, shift = ?, checkpoint = ?",
            (self._boot, shift, max(checkpoint, now + shift)),
        )
        return shift

    def unwritten(self, db: sqlite3.Connection) -> float | None:
        """Seconds since somebody wrote down how far time has come; None in another boot."""
        boot, shift, checkpoint = _clock_of(db)
        return self.now() + shift - checkpoint if boot == self._boot else None


def _clock_of(db: sqlite3.Connection) -> tuple[str, float, float]:
    boot, shift, checkpoint = db.execute("SELECT boot, shift, checkpoint FROM clock").fetchone()
    return str(boot), float(shift), float(checkpoint)
