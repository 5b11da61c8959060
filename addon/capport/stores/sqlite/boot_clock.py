"""Store time: a clock that runs while the machine does, over all its boots.

The table `clock` says what to take off it for an instant of the boot that it names, and how far
store time had come at the last write. So after a reboot everything goes on with what it had left,
no row need be rewritten, and no wall clock is asked. Time that passed unwritten before a power cut
is given twice, which is a minute at most; time in which the machine was off does not count.
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
"""Makes the table, in a database that has none."""


@dataclass(frozen=True, slots=True)
class BootClock:
    """What the table says: `shift` is how far store time is ahead of the clock of `boot`."""

    boot: str = ""
    shift: float = 0.0
    checkpoint: float = 0.0

    @classmethod
    def read(cls, db: sqlite3.Connection) -> Self:
        """What the file says. Raises sqlite3.Error."""
        return cls(*db.execute("SELECT boot, shift, checkpoint FROM clock").fetchone())

    def write(self, db: sqlite3.Connection) -> None:
        """In a write transaction. Raises sqlite3.Error."""
        db.execute("UPDATE clock SET boot = ?, shift = ?, checkpoint = ?", astuple(self))

    def moved_on(self, boot: str, now: Instant) -> "BootClock":
        """The clock at the instant `now` of `boot`; store time never goes back.

        In another boot it goes on from where it had come. So it does where `now` is earlier than
        what was written before: a snapshot of the machine was restored.
        """
        time = now + self.shift if boot == self.boot else -math.inf
        if time >= self.checkpoint:
            return BootClock(boot, self.shift, time)
        return BootClock(boot, self.checkpoint - now, self.checkpoint)


class StoreTime:
    """What to add to an instant of this boot's clock to have store time: the shift."""

    def __init__(self, clock: Callable[[], Instant], boot_id: Callable[[], str]) -> None:
        self.now = clock
        self._boot_id = boot_id
        self._boot = ""
        self._reckoned: tuple[BootClock, float] | None = None

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Finds out which boot this is, and makes the file know of it. Raises OSError.

        sqlite3.Error where it cannot be written: then each process reckons by itself.
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
        if self._reckoned is None or self._reckoned[0] != clock:
            self._reckoned = clock, clock.checkpoint - self.now()
        return self._reckoned[1]

    def settle(self, db: sqlite3.Connection) -> None:
        """In a write transaction: moves the clock on, into this boot if need be."""
        clock = BootClock.read(db)
        shift = self.shift(db)
        BootClock(self._boot, shift, clock.checkpoint).moved_on(self._boot, self.now()).write(db)

    def unwritten(self, db: sqlite3.Connection) -> float:
        """Seconds since somebody wrote down how far time has come; infinite in another boot."""
        clock = BootClock.read(db)
        return self.now() + clock.shift - clock.checkpoint if clock.boot == self._boot else math.inf
