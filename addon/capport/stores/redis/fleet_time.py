"""Fleet time: the clock of Redis, as far as this router can tell without asking.

Routers have no clock in common: instants count from each router's own boot, and wall clocks may be
wrong. So times travel by the clock of Redis (`TIME`). Each router measures how far that clock is
ahead of its own boot clock; the error is at most half the time that Redis takes to answer. A time
that was received is kept in this router's own time, so a clock that jumps later does not move it.
"""

import time
from collections.abc import Callable

from capport.core.session import Instant
from capport.stores.redis.fleet_record import SKEW

_NOISE = 0.005  # seconds: a smaller difference may be an error of the measurement


class FleetTime:
    """Converts: fleet time is an instant of this boot's clock plus `shift`.

    Until Redis has answered for the first time, this router's wall clock is used instead.
    """

    def __init__(self, clock: Callable[[], Instant], wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self.shift = wall() - clock()
        self.is_measured = False

    def now(self) -> float:
        """Fleet time now."""
        return self._clock() + self.shift

    @property
    def skew(self) -> float:
        """How many seconds this router's wall clock is ahead of Redis's; for display."""
        return self._wall() - self.now()

    def measure(self, sent: Instant, answered: Instant, theirs: float) -> float:
        """Notes that Redis showed `theirs` at some moment between these instants.

        Returns by how many seconds its clock has jumped since the last time; 0.0 if it has not.
        """
        shift, error = theirs - (sent + answered) / 2, (answered - sent) / 2
        jump = shift - self.shift
        if self.is_measured and abs(jump) <= max(error, _NOISE):
            return 0.0
        was_measured, self.is_measured, self.shift = self.is_measured, True, shift
        return jump if was_measured and abs(jump) > max(error, SKEW) else 0.0
