"""How many requests a client may send: a token bucket (429, and RFC 6585 section 7.2).

A bucket is one instant: when it will be full again. A bucket whose instant has passed is full, so
it need not be kept.
"""

import math

from capport.core.policy import Rate
from capport.core.session import Instant

FULL: Instant = 0.0
"""The bucket of a client about which nothing is recorded."""

_EQUAL = 1e-7  # seconds: instants of a machine that runs for years are exact to less than this


def spend(full_at: Instant, rate: Rate, now: Instant) -> tuple[Instant, int | None]:
    """The bucket after a request at `now`, and how many seconds to wait if it is one too many.

    A client may send `rate.count` requests at once, then one every `rate.per / rate.count` seconds.
    A refused request takes nothing, so that a client that waits for Retry-After is let through. A
    client never waits longer than for an empty bucket, even if the clock goes back or the policy
    gets a higher rate.
    """
    one = rate.per / rate.count
    full_at = min(max(full_at, now), now + rate.per)
    wait = full_at + one - rate.per - now - _EQUAL
    if wait <= 0:
        return full_at + one, None
    return full_at, math.ceil(wait)


def wait_after(count: int, rate: Rate) -> int | None:
    """How long to wait after `count` requests at once; None if there is no need to."""
    return spend(count * rate.per / rate.count, rate, 0.0)[1]
