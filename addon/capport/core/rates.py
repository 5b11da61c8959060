"""The bucket of a rate: tokens in, tokens out, and how long to wait for the next one."""

import math
from dataclasses import dataclass

from capport.core.policy import Rate
from capport.core.session import Instant


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many more requests one client may send, as of `at`."""

    tokens: float
    at: Instant


def spend(bucket: Bucket | None, rate: Rate, now: Instant) -> tuple[Bucket, int | None]:
    """The bucket after one more request at `now`, and the seconds to wait if it was one too many.

    `rate.count` may come at once, then one each `rate.per / rate.count` seconds. A request that is
    refused costs nothing, so that who waits as long as told is let through.
    """
    a_second = rate.count / rate.per
    tokens = float(rate.count)
    if bucket is not None:
        tokens = min(tokens, bucket.tokens + max(0.0, now - bucket.at) * a_second)
    if tokens >= 1:
        return Bucket(tokens - 1, now), None
    return Bucket(tokens, now), math.ceil((1 - tokens) / a_second)
