"""Which day it is, where the wall clock may be wrong: a router without a battery boots in 1970.

A voucher that is good until a day must not be good for longer because the clock was set back. So
the latest time that was ever seen is kept, and the clock of boots says what has passed since then.
After a boot nobody knows how long the machine was off: until the clock says at least what it said
before, the day is not sure, and nothing is judged by it.
"""

from dataclasses import dataclass

from capport.stores.sqlite.boot_clock import BootClock


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clocks say: `wall` in Unix seconds, `running` in seconds since the boot `boot`."""

    wall: float
    boot: str
    running: float


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What is known of a moment, from all moments before it.

    `wall` is the latest time seen, with what has passed since; `sure`, whether it is now that late.
    """

    clock: BootClock
    wall: float
    sure: bool

    @property
    def elapsed(self) -> float:
        """Seconds that the machine has run, in all boots, since the first moment."""
        return self.clock.checkpoint


def reckon(before: Reckoning | None, now: Moment) -> Reckoning:
    """What is known now. Neither `wall` nor `elapsed` is ever less than before."""
    if before is None:
        return Reckoning(BootClock().moved_on(now.boot, now.running), now.wall, sure=True)
    clock, is_sure = before.clock, before.sure
    if clock.boot != now.boot:
        # Of this boot all that has passed counts, of the time that the machine was off nothing.
        clock, is_sure = BootClock(now.boot, clock.checkpoint, clock.checkpoint), False
    clock = clock.moved_on(now.boot, now.running)
    least = before.wall + (clock.checkpoint - before.elapsed if is_sure else 0.0)
    return Reckoning(clock, max(now.wall, least), is_sure or now.wall >= least)
