"""A session: how long a client is known, and how silence shortens that."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from capport.core.client import ClientId

type Instant = float
"""Seconds on the boot clock (CLOCK_BOOTTIME), because the wall clock may be set.

Functions here do not read the clock: their callers pass the time.
"""

LONGEST = 366 * 86400
"""The longest lifetime of a session, in seconds."""


@dataclass(frozen=True, slots=True)
class Session:
    """A client's permission to use the network, from `granted` to `expires` (RFC 8952 section 1.2).

    `granted_at` is wall time (Unix seconds), for display only. `idle` is in seconds. `last_seen` is
    updated only if there is an `idle`. The store writes it back in batches, so that in another
    process, or after a crash, it may be half a minute old. `lease` is set if another router granted
    the session: it ends here at that instant, unless the store renews the lease in time, which it
    does while Redis answers.
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
    lease: Instant = math.inf

    @property
    def ends(self) -> Instant:
        """When it ends if the client is silent, and no lease is renewed, from now on."""
        return min(self.ends_by_itself, self.lease)

    @property
    def ends_by_itself(self) -> Instant:
        """When it ends if the client is silent from now on, however long the lease lasts."""
        if self.idle is None:
            return self.expires
        return min(self.expires, max(self.granted, self.last_seen) + self.idle)

    @property
    def is_leased(self) -> bool:
        """Whether another router granted it."""
        return self.lease < math.inf

    def without_lease(self) -> "Session":
        """The session as it is while the lease lasts."""
        return replace(self, lease=math.inf) if self.is_leased else self

    def is_open(self, now: Instant) -> bool:
        """Whether the client is known at `now`. At the end itself it is not."""
        return now < self.ends

    def left(self, now: Instant) -> float:
        """Seconds until `expires`; 0 if the session is over.

        They do not count to `ends`, because traffic and leases move that.
        """
        return self.expires - now if self.is_open(now) else 0.0

    def seconds_remaining(self, now: Instant) -> int:
        """The whole seconds of `left`. RFC 8908 section 5."""
        return int(self.left(now))


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
    """Raises ValueError if a time is infinite or NaN, because such a session might never end."""
    times = session.granted, session.expires, session.idle, session.last_seen, session.granted_at
    for time in times:
        if time is not None and not math.isfinite(time):
            raise ValueError(f"{session.client}: {time} in {session} is not a time")
