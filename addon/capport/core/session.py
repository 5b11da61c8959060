"""For how long a client is known."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from capport.core.client import ClientId

type Instant = float
"""Seconds on the boot clock (CLOCK_BOOTTIME), always passed in: the wall clock may be set."""

LONGEST = 366 * 86400
"""Seconds that a session may be granted for, whoever grants it."""


@dataclass(frozen=True, slots=True)
class Session:
    """Leave to use the network, from `granted` to `expires` (RFC 8952 section 1.2).

    `granted_at` is wall time (Unix seconds) and for display only: nothing is decided by it.
    `idle` is in seconds; `last_seen` is kept up only where there is an `idle`, and written back in
    batches, so another process's, or the one after a crash, may lag by half a minute.
    """

    client: ClientId
    granted: Instant
    expires: Instant
    idle: float | None = None
    last_seen: Instant = 0.0
    granted_at: float = 0.0
    by: str = ""
    how: str = ""
    name: str = ""

    @property
    def ends(self) -> Instant:
        """When it ends if nothing more is heard of the client."""
        if self.idle is None:
            return self.expires
        return min(self.expires, max(self.granted, self.last_seen) + self.idle)

    def is_open(self, now: Instant) -> bool:
        """Whether the client is known at `now`. The end itself is outside."""
        return now < self.ends

    def seconds_remaining(self, now: Instant) -> int:
        """Whole seconds until it ends whatever the client does, and 0 once it is over.

        Not until `ends`: what a client still sends puts that off. RFC 8908 section 5.
        """
        return int(self.expires - now) if self.is_open(now) else 0


def open_ones(sessions: Iterable[Session | None], now: Instant) -> list[Session]:
    """Those of `sessions` that are open at `now`."""
    return [session for session in sessions if session is not None and session.is_open(now)]


def first_open(sessions: Iterable[Session | None], now: Instant) -> Session | None:
    """The first of `sessions` that is open at `now`."""
    for session in sessions:
        if session is not None and session.is_open(now):
            return session
    return None


def check_times(session: Session) -> None:
    """Raises ValueError for a session that no instant could end: NaN compares false with each."""
    times = session.granted, session.expires, session.idle, session.last_seen, session.granted_at
    for time in times:
        if time is not None and not math.isfinite(time):
            raise ValueError(f"{session.client}: {time} in {session} is no time")
