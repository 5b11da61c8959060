"""Works out the date when the wall clock may be wrong: a router without a battery boots in 1970.

A voucher with an expiry date must not last longer because the clock was set back. So we keep the
latest time that the wall clock has ever shown, and add the time that the machine has run since.
After a boot we cannot tell how long the machine was off. Until the wall clock reaches the time that
we kept, the date is not sure, and no voucher is judged by it.
"""

from dataclasses import dataclass

from capport.stores.sqlite.boot_clock import BootClock


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clocks show: `wall` in Unix seconds, `running` in seconds since the boot `boot`."""

    wall: float
    boot: str
    running: float


@dataclass(frozen=True, slots=True)
class Reckoning:
    """The date and time that all moments so far lead to.

    `wall` is the latest time that the wall clock has shown, plus the time that has passed since, if
    that is known. After a boot, `sure` is false until the wall clock has reached `wall`.
    """

    clock: BootClock
    wall: float
    sure: bool

    @property
    def elapsed(self) -> float:
        """Seconds that the machine has run, in all boots, since the first moment."""
        return self.clock.checkpoint


def reckon(before: Reckoning | None, now: Moment) -> Reckoning:
    """The reckoning at `now`. Neither its `wall` nor its `elapsed` is ever less than before."""
    if before is None:
        return Reckoning(BootClock().moved_on(now.boot, now.running), now.wall, sure=True)
    clock, is_sure = before.clock, before.sure
    if clock.boot != now.boot:
        # All the time since this boot counts; the time that the machine was off does not.
        clock, is_sure = BootClock(now.boot, clock.checkpoint, clock.checkpoint), False
    clock = clock.moved_on(now.boot, now.running)
    least = before.wall + (clock.checkpoint - before.elapsed if is_sure else 0.0)
    return Reckoning(clock, max(now.wall, least), is_sure or now.wall >= least)
