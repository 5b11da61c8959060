"""Which day it is, where the wall clock may be wrong: a router without a battery boots in 1970.

A voucher that is good until a day must not be good for longer because the clock was set back. So
the latest time that was ever seen is kept, and the boot clock says how much has passed since then.
After a boot nobody knows how long the machine was off: until the clock says at least what it said
before, the day is not sure, and nothing is judged by it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clocks say: `wall` in Unix seconds, `running` in seconds since the boot `boot`."""

    wall: float
    boot: str
    running: float


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What is known of a moment, from all moments before it.

    `elapsed` are the seconds that the machine has run in all, `wall` is the latest time seen, with
    what has passed since; `sure`, whether it is now that late.
    """

    boot: str
    running: float
    elapsed: float
    wall: float
    sure: bool


def reckon(before: Reckoning | None, now: Moment) -> Reckoning:
    """What is known now. Neither `wall` nor `elapsed` is ever less than before."""
    if before is None:
        return Reckoning(now.boot, now.running, 0.0, now.wall, sure=True)
    if before.boot != now.boot:
        sure = now.wall >= before.wall
        # Of this boot all that has passed counts, of the time that the machine was off nothing.
        elapsed = before.elapsed + max(0.0, now.running)
        return Reckoning(now.boot, now.running, elapsed, max(now.wall, before.wall), sure)
    passed = max(0.0, now.running - before.running)
    least = before.wall + (passed if before.sure else 0.0)
    return Reckoning(
        now.boot,
        max(now.running, before.running),
        before.elapsed + passed,
        max(now.wall, least),
        sure=before.sure or now.wall >= least,
    )
