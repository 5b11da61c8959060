"""Looks at a fleet from outside: which routers share a Redis, and how far each of them has read."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from capport.stores.redis.redis_client import RedisClient, change_id, find_primary
from capport.stores.redis.redis_link import CHANGES, KEY, ROUTER, sign_of_life
from capport.stores.redis_url import RedisUrl


@dataclass(frozen=True, slots=True)
class Sign:
    """A router's last sign of life. `ago`, `lag` and `skew` are in seconds.

    `lag`: how much older the last change that it had read is than the newest one, if it is behind.
    `own` and `known`: how many sessions it has granted, and knows. `unsent`: how many changes it
    has that the others have not. `refused`: how many records it could not read.
    """

    router: str
    name: str
    ago: float
    lag: float
    own: int
    known: int
    unsent: int
    refused: int
    skew: float


@dataclass(frozen=True, slots=True)
class FleetView:
    """The routers, by name, and how many clients Redis has a record of."""

    primary: str
    routers: Sequence[Sign]
    records: int


def look(url: RedisUrl) -> FleetView:
    """What is in the Redis at `url` now. Raises StoreError."""
    return asyncio.run(_look(url))


async def _look(url: RedisUrl) -> FleetView:
    place, secret = await find_primary(url)
    async with contextlib.aclosing(RedisClient(place, url, secret)) as client:
        routers = sorted({key async for keys in client.pages(ROUTER) for key in keys})
        records = len({key async for keys in client.pages(KEY) for key in keys})
        said = await client.ask("MGET", *routers) if routers else []
        (seconds, micros), last = await client.together(
            [("TIME",), ("XREVRANGE", CHANGES, "+", "-", "COUNT", 1)]
        )
    now, newest = seconds + micros / 1e6, last[0][0] if last else b"0-0"
    signs = [
        sign
        for key, text in zip(routers, said, strict=True)
        if (sign := _sign(key.decode(errors="replace").removeprefix(ROUTER), text, now, newest))
    ]
    return FleetView(str(place), sorted(signs, key=lambda one: (one.name, one.router)), records)


def _sign(router: str, text: bytes | None, now: float, newest: bytes) -> Sign | None:
    """The sign of life in `text`; None if it does not fit: from another version or program."""
    try:
        said = sign_of_life(text)
        read = str(said["read"]).encode()
        lag = 0.0 if read == newest else change_id(newest)[0] - change_id(read)[0]
        found = Sign(
            router,
            str(said["name"])[:64],
            now - said["at"] / 1000,
            max(0.0, lag / 1000),
            int(said["own"]),
            int(said["known"]),
            int(said["unsent"]),
            int(said["refused"]),
            float(said["skew"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return found if all(map(math.isfinite, (found.ago, found.lag, found.skew))) else None
