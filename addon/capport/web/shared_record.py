"""What routers tell one another about a voucher, or about a state that was used.

A record is a value that merges: `join` is commutative, associative and idempotent, so routers that
have read the same records agree. Times are in whole milliseconds by the clock of Redis.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from capport.core.client import ClientId
from capport.stores import record_json
from capport.stores.record_json import RecordError, number

VERSION: Final = 1
"""The version of the format. A router refuses records of a later one.

It ignores members that it does not know, so a new member that may be ignored needs no new version.
"""
LARGEST = 262_144
"""Characters of a record: more than `dump` writes of `MOST_USES` uses and the longest note."""
MOST_USES = 1400
"""Uses in a record: those of the most devices (1000), and those that were given back."""
GIVEN_BACK = 100  # uses that were given back and are remembered
_NOTE = 10_000  # characters


class Use(NamedTuple):
    """A client's use: when it began, and whether it was given back because the grant failed.

    `by_wall` is `at` by the wall clock of the client's router. Of two uses by one client, the
    greater counts.
    """

    at: int
    is_given_back: bool
    by_wall: int


class RecordLimits(NamedTuple):
    """What never changes. A state has number 0. `until`: when it is forgotten; 0: never."""

    number: int = 0
    lifetime: int = 0
    devices: int = 1
    expires: int = 0  # 0: never
    created: int = 0
    until: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """A voucher, or a state that was used. `revoked`: when; 0 if it is not."""

    limits: RecordLimits
    revoked: int = 0
    uses: Mapping[ClientId, Use] = field(default_factory=dict)

    @property
    def clients(self) -> list[ClientId]:
        """The clients that have used it."""
        return [client for client, use in self.uses.items() if not use.is_given_back]

    def used(self, client: ClientId, at: int, by_wall: int) -> "SharedRecord":
        """The record after `client` has used it."""
        before = self.uses.get(client)
        use = Use(max(at, before.at + 1) if before else at, False, by_wall)
        # Only the oldest are forgotten: a router that did not hear of the giving back would count
        # the use again.
        old = sorted((one.at, who) for who, one in self.uses.items() if one.is_given_back)
        over = {who for _, who in old[: max(0, len(old) - GIVEN_BACK)]}
        kept = {who: one for who, one in self.uses.items() if who not in over}
        return replace(self, uses=_bounded(kept | {client: use}))

    def given_back(self, client: ClientId, by_wall: int | None = None) -> "SharedRecord":
        """The record without the use by `client`, if that began at `by_wall` (None: whenever)."""
        use = self.uses.get(client)
        if use is None or by_wall not in (None, use.by_wall):
            return self
        return replace(self, uses={**self.uses, client: use._replace(is_given_back=True)})

    def admits(self, client: ClientId, now: int) -> int | None:
        """For how many milliseconds the voucher admits `client` now; None if it does not.

        A client that has used it before gets the rest of its time.
        """
        limits, use = self.limits, self.uses.get(client)
        if self.revoked:
            return None
        if use is not None and not use.is_given_back:
            left = min(limits.lifetime, use.at + limits.lifetime - now)
            return left if left > 0 else None
        most = min(limits.devices, MOST_USES)
        is_over = 0 < limits.expires <= now or len(self.clients) >= most
        return None if is_over else limits.lifetime


def join(one: SharedRecord, other: SharedRecord) -> SharedRecord:
    """What follows from both records. A revocation and a use are never forgotten.

    Of more than `MOST_USES`, the oldest are, and first those that were given back. A voucher with
    that many uses is used up, so it admits no more devices for that.
    """
    uses = dict(one.uses)
    for client, use in other.uses.items():
        uses[client] = max(use, uses.get(client, use))
    revoked = min(filter(None, (one.revoked, other.revoked)), default=0)
    return SharedRecord(max(one.limits, other.limits), revoked, _bounded(uses))


def _bounded(uses: Mapping[ClientId, Use]) -> Mapping[ClientId, Use]:
    if len(uses) <= MOST_USES:
        return uses
    order = sorted(uses, key=lambda client: (not uses[client].is_given_back, uses[client], client))
    return {client: uses[client] for client in order[-MOST_USES:]}


def dump(record: SharedRecord) -> str:
    """The record as JSON."""
    uses = {
        client: [use.at, int(use.is_given_back), use.by_wall]
        for client, use in sorted(record.uses.items())
    }
    said = {"v": VERSION, **record.limits._asdict(), "revoked": record.revoked, "uses": uses}
    return json.dumps(said, separators=(",", ":"))


def parse(said: str) -> SharedRecord:
    """The record in `said`. Raises ValueError for whatever does not fit."""
    found = record_json.load(said, version=VERSION, largest=LARGEST)
    numbers = {name: number(found, name) for name in RecordLimits._fields if name != "note"}
    uses = record_json.members(found, "uses", MOST_USES)
    return SharedRecord(
        RecordLimits(**numbers, note=record_json.text(found, "note", _NOTE)),
        number(found, "revoked"),
        {record_json.client_of(client): _use(use) for client, use in uses.items()},
    )


def _use(found: Any) -> Use:
    if not isinstance(found, list) or len(found) != 3:
        raise RecordError("uses: not a list of three numbers")
    named = dict(zip(("at", "back", "since"), found, strict=True))
    at, back, since = (number(named, name) for name in named)
    return Use(at, bool(back), since)
