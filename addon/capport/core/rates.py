"""The token bucket behind 429: whether a client may send a request, or how long it must wait."""

import math
from dataclasses import dataclass

from capport.core.policy import Rate
from capport.core.session import Instant


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many more requests one client may send at the instant `at`."""

    tokens: float
    at: Instant


def spend(bucket: Bucket | None, rate: Rate, now: Instant) -> tuple[Bucket, int | None]:
    """The bucket after a request at `now`, and how many seconds to wait if it is one too many.

    A client may send `rate.count` requests at once, then one every `rate.per / rate.count` seconds.
    A refused request costs no token, so that a client that waits for Retry-After is let through.
    """
    a_second = rate.count / rate.per
    tokens = float(rate.count)
    if bucket is not None:
        tokens = min(tokens, bucket.tokens + max(0.0, now - bucket.at) * a_second)
    if tokens >= 1:
        return Bucket(tokens - 1, now), None
    return Bucket(tokens, now), math.ceil((1 - tokens) / a_second)
