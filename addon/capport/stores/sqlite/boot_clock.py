"""Store time: a clock that runs while the machine runs, over all its boots.

The table `clock` names a boot, and says what to subtract from store time for an instant of that
boot, and what store time was at the last write. So after a reboot each session continues with the
time it had left, no row has to be rewritten, and the wall clock is not needed. Time in which the
machine was off does not count. After a power cut, the time since the last write counts again: a
minute at most.
"""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Self

from capport.core.session import Instant

CLOCK = (
    """CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        boot TEXT NOT NULL,
        shift REAL NOT NULL,
        checkpoint REAL NOT NULL
    ) STRICT""",
    "INSERT INTO clock VALUES (1, '', 0, 0)",
)
"""The statements that make the table, in a database that has none."""


@dataclass(frozen=True, slots=True)
class BootClock:
    """A row of the table: `shift` is how far store time is ahead of the clock of `boot`.

    `checkpoint` is the store time of the last write.
    """

    boot: str = ""
    shift: float = 0.0
    checkpoint: float = 0.0

    @classmethod
    def read(cls, db: sqlite3.Connection) -> Self:
        """Reads the clock from the file. Raises sqlite3.Error."""
        return cls(*db.execute("SELECT boot, shift, checkpoint FROM clock").fetchone())

    def write(self, db: sqlite3.Connection) -> None:
        """Writes the clock, within the caller's write transaction. Raises sqlite3.Error."""
        db.execute("UPDATE clock SET boot = ?, shift = ?, checkpoint = ?", astuple(self))

    def moved_on(self, boot: str, now: Instant) -> "BootClock":
        """The clock at the instant `now` of `boot`; store time never goes back.

        In another boot, store time continues from the checkpoint. It does so too if `now` is before
        the checkpoint, because a snapshot of the machine was restored.
        """
        time = now + self.shift if boot == self.boot else -math.inf
        if time >= self.checkpoint:
            return BootClock(boot, self.shift, time)
        return BootClock(boot, self.checkpoint - now, self.checkpoint)


class StoreTime:
    """Converts: store time is an instant of this boot's clock plus `shift`."""

    def __init__(self, clock: Callable[[], Instant], boot_id: Callable[[], str]) -> None:
        self.now = clock
        self._boot_id = boot_id
        self._boot = ""
        self._computed: tuple[BootClock, float] | None = None

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Finds out which boot this is, and writes it to the file. Raises OSError.

        Raises sqlite3.Error if it cannot be written: then each process computes its own shift.
        """
        self._boot = self._boot_id()
        if BootClock.read(reader).boot != self._boot:
            writer.execute("BEGIN IMMEDIATE")
            self.settle(writer)
            writer.execute("COMMIT")

    def shift(self, db: sqlite3.Connection) -> float:
        """How far store time is ahead of this boot's clock."""
        clock = BootClock.read(db)
        if clock.boot == self._boot:
            return clock.shift
        if self._computed is None or self._computed[0] != clock:
            self._computed = clock, clock.checkpoint - self.now()
        return self._computed[1]

    def settle(self, db: sqlite3.Connection) -> None:
        """Moves the clock on to now, and to this boot, within the caller's write transaction."""
        clock = BootClock.read(db)
        shift = self.shift(db)
        BootClock(self._boot, shift, clock.checkpoint).moved_on(self._boot, self.now()).write(db)

    def unwritten(self, db: sqlite3.Connection) -> float:
        """Seconds since a process last wrote the clock; infinite if that was in another boot."""
        clock = BootClock.read(db)
        return self.now() + clock.shift - clock.checkpoint if clock.boot == self._boot else math.inf
