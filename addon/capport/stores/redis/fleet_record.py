"""What routers tell one another about one client: its revocations and its grant.

A record is a value that merges. `join` is commutative, associative and idempotent, so routers that
have read the same records agree, in whatever order they read them. A revocation wins over each
grant that does not name it: a grant stands only if its record names every revocation that anybody
knows. Times are in fleet time: seconds by the clock of Redis.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from capport.core.client import ClientId
from capport.core.session import LONGEST
from capport.stores import record_json
from capport.stores.record_json import WHOLE, RecordError, number

VERSION: Final = 1
"""The version of the format. A router refuses records of a later one, and reports them.

It ignores members that it does not know, so a new member that may be ignored needs no new version.
"""
SKEW = 2.0
"""Seconds that the clocks of two routers, or of Redis before and after a failover, may differ."""
LARGEST = 65_536
"""Characters of a record: more than `dump` writes of the most revocations and the longest texts."""
ROUTERS = 256  # routers that may have revoked one client
MANY: Final = "f" * 16
"""Stands for every router, once more than `ROUTERS` of them have revoked one client.

No grant stands beside it, and it takes in each further revocation, until the last of them is over.
So none of them is lost, and the order in which they are heard makes no difference.
"""
_TEXT = 1000  # characters of `by`, `how` and `name`
_ROUTER = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Revocation:
    """The newest revocation of a client by one router: its number, and until when it counts.

    It counts until every session that it ends would have ended. The newer one is the one with the
    larger `number`.
    """

    number: int
    until: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """A session as it travels, in fleet time. Of two grants the one with more `order` counts."""

    order: int
    router: str
    granted: float = field(compare=False)
    expires: float = field(compare=False)
    idle: float | None = field(compare=False)
    last_seen: float = field(compare=False)
    granted_at: float = field(compare=False)
    by: str = field(compare=False)
    how: str = field(compare=False)
    name: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """The revocations of one client, and the grant that was made with knowledge of them all."""

    revoked: Mapping[str, Revocation] = field(default_factory=dict)
    grant: Grant | None = None

    def live(self, now: float) -> dict[str, int]:
        """The revocations that still count at `now`: the number of each router's newest."""
        return {router: one.number for router, one in self.revoked.items() if one.until > now}

    def says_the_same(self, other: "FleetRecord", now: float) -> bool:
        """Whether both decide the same. A later `last_seen` makes no difference."""
        return self is other or (self.grant == other.grant and self.live(now) == other.live(now))

    def until(self) -> float:
        """When its grant and all its revocations are over."""
        ends = [one.until for one in self.revoked.values()]
        return max([*ends, self.grant.expires if self.grant else 0.0])

    def without_past(self, now: float) -> "FleetRecord":
        """The record without revocations that ended so long ago that no router counts them."""
        if not self.revoked:
            return self
        kept = {router: r for router, r in self.revoked.items() if r.until + 2 * SKEW > now}
        return self if len(kept) == len(self.revoked) else replace(self, revoked=kept)


NOTHING: Final = FleetRecord()


def bounded(revoked: Mapping[str, Revocation], now: float) -> Mapping[str, Revocation]:
    """These revocations, or one by `MANY` for all of them if they do not fit in a record."""
    if len(revoked) > ROUTERS:
        revoked = {router: one for router, one in revoked.items() if one.until > now}
    has_many = MANY in revoked and revoked[MANY].until > now
    has_last = any(one.number >= WHOLE for one in revoked.values())  # none could be newer
    if has_many or has_last or len(revoked) > ROUTERS:
        return {MANY: Revocation(WHOLE - 1, max(one.until for one in revoked.values()))}
    return revoked


def join(one: FleetRecord, other: FleetRecord, now: float) -> FleetRecord:
    """What follows from both records.

    Revocations that ended long ago are left out first. One copy of a revocation may have ended
    while the other one still counts: then a grant beside the ended copy does not name the other.
    """
    if one is NOTHING and not other.revoked:
        return other
    one, other = one.without_past(now), other.without_past(now)
    revoked = dict(one.revoked)
    for router, revocation in other.revoked.items():
        mine = revoked.get(router, revocation)
        revoked[router] = Revocation(
            max(mine.number, revocation.number), max(mine.until, revocation.until)
        )
    revoked = dict(bounded(revoked, now))
    live = FleetRecord(revoked).live(now)
    standing: list[Grant] = []
    ended = 0.0
    for record in (one, other):
        if record.grant is None:
            continue
        names = {router: revocation.number for router, revocation in record.revoked.items()}
        names.pop(MANY, None)  # no grant names routers that its own did not hear of
        if all(names.get(router, -1) >= number for router, number in live.items()):
            standing.append(record.grant)
        else:
            ended = max(ended, record.grant.expires)
    for router in live:  # a revocation counts as long as any session that it ends
        if revoked[router].until < ended:
            revoked[router] = Revocation(revoked[router].number, ended)
    return FleetRecord(revoked, _newer(standing))


def _newer(grants: list[Grant]) -> Grant | None:
    if not grants:
        return None
    best = max(grants, key=lambda grant: (grant.order, grant.router))
    seen = max(grant.last_seen for grant in grants if grant == best)
    return replace(best, last_seen=seen) if seen > best.last_seen else best


def dump(client: ClientId, record: FleetRecord) -> str:
    """The record as JSON; times are in whole milliseconds."""
    grant = record.grant
    return json.dumps(
        {
            "v": VERSION,
            "client": client,
            "revoked": {r: [one.number, _ms(one.until)] for r, one in record.revoked.items()},
            "grant": grant
            and {
                "order": grant.order,
                "router": grant.router,
                "granted": _ms(grant.granted),
                "expires": _ms(grant.expires),
                "idle": grant.idle if grant.idle is None else _ms(grant.idle),
                "seen": _ms(grant.last_seen),
                "at": _ms(grant.granted_at),
                "by": grant.by,
                "how": grant.how,
                "name": grant.name,
            },
        },
        separators=(",", ":"),
    )


def parse(said: str | bytes) -> tuple[ClientId, FleetRecord]:
    """The client and the record in `said`. Raises RecordError for whatever does not fit."""
    found = record_json.load(said, version=VERSION, largest=LARGEST)
    client, grant = record_json.client_of(found.get("client")), found.get("grant")
    revoked = record_json.members(found, "revoked", ROUTERS)
    return client, FleetRecord(
        {_router(router): _revocation(one) for router, one in revoked.items()},
        None if grant is None else _grant(grant),
    )


def _revocation(found: Any) -> Revocation:
    if not isinstance(found, list) or len(found) != 2:
        raise RecordError("revoked: not a list of a number and a time")
    values = dict(zip(("number", "until"), found, strict=True))
    return Revocation(number(values, "number"), _seconds(values, "until"))


def _grant(found: Any) -> Grant:
    if not isinstance(found, dict):
        raise RecordError("grant: not an object")
    grant = Grant(
        order=number(found, "order"),
        router=_router(found.get("router")),
        granted=_seconds(found, "granted"),
        expires=_seconds(found, "expires"),
        idle=None if found.get("idle") is None else _seconds(found, "idle"),
        last_seen=_seconds(found, "seen"),
        granted_at=_seconds(found, "at"),
        by=_text(found, "by"),
        how=_text(found, "how"),
        name=_text(found, "name"),
    )
    if grant.expires - grant.granted > LONGEST + SKEW:
        raise RecordError(f"expires: more than {LONGEST} seconds after granted")
    return grant


def _router(found: Any) -> str:
    if isinstance(found, str) and _ROUTER.fullmatch(found):
        return found
    raise RecordError("router: not 16 hexadecimal digits")


def _seconds(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    if type(value) is int and -WHOLE < value < WHOLE:
        return value / 1000
    raise RecordError(f"{name}: not a time in whole milliseconds")


def _text(found: Mapping[str, Any], name: str) -> str:
    if "\0" in (value := record_json.text(found, name, _TEXT)):
        raise RecordError(f"{name}: not a text without NUL")
    return value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
