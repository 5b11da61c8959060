"""What routers tell one another of a client: records merge in any order; a revocation wins."""

import json
from dataclasses import replace
from functools import reduce
from itertools import permutations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capport.core.client import ClientId
from capport.stores.record_json import RecordError
from capport.stores.redis import fleet_record
from capport.stores.redis.fleet_record import (
    LARGEST,
    NOTHING,
    ROUTERS,
    FleetRecord,
    Grant,
    Revocation,
    dump,
    join,
    parse,
)

CLIENT = ClientId("02:00:00:00:00:07@2001:db8::7")
A, B, C = "a" * 16, "b" * 16, "c" * 16
NOW = 1000.0


def grant(router: str = A, order: int = 1, **changes: Any) -> Grant:
    given = Grant(order, router, 900.0, 5000.0, None, 900.0, 1.7e9, "ann", "voucher", "Zoë")
    return replace(given, **changes)


def revoked(**numbers: int) -> dict[str, Revocation]:
    return {letter * 16: Revocation(number, 4000.0) for letter, number in numbers.items()}


RECORDS = st.builds(
    FleetRecord,
    st.dictionaries(
        st.sampled_from([A, B, C]),
        st.builds(Revocation, st.integers(0, 3), st.sampled_from([500.0, 2000.0, 4000.0])),
    ),
    st.none()
    | st.builds(
        grant, st.sampled_from([A, B, C]), st.integers(0, 2), last_seen=st.sampled_from([1.0, 2.0])
    ),
)


def known(record: FleetRecord) -> tuple[dict[str, int], Grant | None, float | None]:
    seen = record.grant.last_seen if record.grant else None
    return {router: r.number for router, r in record.revoked.items()}, record.grant, seen


@given(st.lists(RECORDS, min_size=1, max_size=4))
@example(  # a copy that is over beside one that is not
    [
        FleetRecord({}, grant()),
        FleetRecord({A: Revocation(0, 500.0)}),
        FleetRecord({A: Revocation(0, 2000.0)}),
    ]
)
def test_records_merge_to_the_same_in_every_order(records: list[FleetRecord]) -> None:
    # As a router writes it: the revocations beside a grant are all that it has seen.
    merged = [
        known(reduce(lambda one, other: join(one, other, NOW), order, NOTHING))
        for order in permutations(records)
    ]
    decided = [(numbers, grant) for numbers, grant, _ in merged]
    assert all(one == decided[0] for one in decided)


@given(RECORDS)
def test_to_hear_a_record_twice_changes_nothing(record: FleetRecord) -> None:
    once = join(NOTHING, record, NOW)
    assert known(join(once, record, NOW)) == known(once)


@pytest.mark.parametrize(
    ("one", "other", "by"),
    [
        (FleetRecord({}, grant(A)), FleetRecord(revoked(b=7)), None),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord(revoked(b=7)), A),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord(revoked(b=8)), None),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord(revoked(b=6)), A),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord(revoked(c=7)), None),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord({}, grant(C, order=9)), A),
        (FleetRecord(revoked(b=7), grant(A)), FleetRecord(revoked(c=7), grant(C)), None),
        (FleetRecord({}, grant(A, order=1)), FleetRecord({}, grant(C, order=2)), C),
        (FleetRecord({}, grant(A)), FleetRecord({}, grant(B)), B),
    ],
)
def test_a_grant_stands_against_the_revocations_that_it_names_and_falls_to_any_other(
    one: FleetRecord, other: FleetRecord, by: str | None
) -> None:
    for merged in (join(one, other, NOW), join(other, one, NOW)):
        assert (merged.grant and merged.grant.router) == by


def test_a_revocation_counts_as_long_as_the_session_that_it_ends() -> None:
    long = FleetRecord({}, grant(expires=9000.0))
    merged = join(long, FleetRecord(revoked(b=7)), NOW)
    assert merged.grant is None
    assert join(merged, long, 8999.0).grant is None
    assert merged.without_past(8999.0).revoked
    assert not merged.without_past(9100.0).revoked


def test_a_revocation_that_is_over_ends_nothing() -> None:
    assert join(FleetRecord(revoked(b=7)), FleetRecord({}, grant(granted=4100.0)), 4000.0).grant


def test_of_the_same_grant_the_last_packet_at_any_router_counts() -> None:
    heard = FleetRecord({}, grant(last_seen=950.0))
    for merged in (
        join(heard, FleetRecord({}, grant()), NOW),
        join(FleetRecord({}, grant()), heard, NOW),
    ):
        assert merged.grant is not None
        assert merged.grant.last_seen == 950.0


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: FleetRecord) -> None:
    client, read = parse(dump(CLIENT, record))
    assert (client, known(read)) == (CLIENT, known(record))


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(dump(CLIENT, FleetRecord(revoked(b=7), grant()))) | changes)


def granted(**changes: Any) -> str:
    said = json.loads(dump(CLIENT, FleetRecord({}, grant())))
    return json.dumps(said | {"grant": said["grant"] | changes})


def test_members_of_a_later_version_that_may_be_ignored_are() -> None:
    assert parse(changed(more={"x": 1}))[1].grant == grant()
    assert parse(granted(more=1))[1].grant == grant()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 9000, "not JSON"),
        ("{" + " " * LARGEST, f"at most {LARGEST}"),
        (changed(v=2), "format 2, written by a newer capport; this one knows format 1"),
        (changed(v="1"), "v: not a whole number"),
        (changed(v=True), "v: not a whole number"),
        (changed(client="printer"), "client: neither"),
        (changed(client="02-00-00-00-00-07"), "client: neither"),
        (changed(client=None), "client: neither"),
        (changed(revoked=None), "revoked: not an object"),
        (changed(revoked={"x": [1, 1]}), "router: not 16"),
        (changed(revoked={A: [1]}), "revoked: not a list"),
        (changed(revoked={A: [1, None]}), "until: not a time"),
        (changed(revoked={A: [-1, 1]}), "number: not a whole"),
        (changed(grant=[]), "grant: not an object"),
        (granted(order=None), "order: not a whole"),
        (granted(order=1 << 60), "order: not a whole"),
        (granted(router=None), "router: not 16"),
        (granted(expires=1e300), "expires: not a time"),
        (granted(expires=float("inf")), "expires: not a time"),
        (granted(expires=(366 * 86400 + 1000) * 1000), "expires: more than"),
        (granted(idle="x"), "idle: not a time"),
        (granted(name="x" * 1001), "name: not a text"),
        (granted(name="a\0b"), "name: not a text"),
        (granted(name="\ud800"), "name: not a text"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        parse(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig"])
def test_only_utf_8_is_read(encoding: str) -> None:
    with pytest.raises(RecordError, match="not JSON"):
        parse(changed().encode(encoding))


# --- bounds ---


def by_many(first: int, number: int = 1 << 52, until: float = 4000.0) -> dict[str, Revocation]:
    """Revocations by as many routers as a record may have, from the router `first` on."""
    return {f"{n:016x}": Revocation(number, until) for n in range(first, first + ROUTERS)}


def test_whatever_was_read_and_merged_can_be_read_again() -> None:
    longest = grant(
        order=(1 << 53) - 1, by="\N{GUITAR}" * 1000, how="\x01" * 1000, name="\N{GUITAR}" * 1000
    )
    one = FleetRecord(by_many(0, (1 << 53) - 1, -9e12), longest)
    assert parse(dump(CLIENT, one))[1] == one
    merged = join(FleetRecord(by_many(0)), FleetRecord(by_many(9)), NOW)
    assert parse(dump(CLIENT, merged))[1] == merged


def test_beside_revocations_by_too_many_routers_no_grant_stands_until_all_are_over() -> None:
    names_half, late = FleetRecord(by_many(0), grant(order=9)), {A: Revocation(7, 6000.0)}
    full = join(names_half, FleetRecord(late), NOW)
    assert full.grant is None
    for one in (names_half, FleetRecord(full.revoked, grant(order=10))):
        assert join(full, one, NOW).grant is None
        assert join(one, full, NOW).grant is None
    assert full.until() == 6000.0
    assert join(full, FleetRecord({}, grant(order=11)), 6001.0).grant


def test_revocations_that_are_over_are_left_out_first() -> None:
    over = FleetRecord({A: Revocation(7, NOW - 1)})
    merged = join(FleetRecord(by_many(0), grant()), over, NOW)
    assert merged.grant
    assert dict(merged.revoked) == by_many(0)


@given(st.lists(RECORDS.filter(lambda r: len(r.revoked) < 2), min_size=1, max_size=4))
def test_too_many_routers_merge_to_the_same_in_every_order(records: list[FleetRecord]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet_record, "ROUTERS", 1)
        merged = [
            known(reduce(lambda one, other: join(one, other, NOW), [*order, *order], NOTHING))
            for order in permutations(records)
        ]
    assert all(one[:2] == merged[0][:2] for one in merged)


@given(st.text() | st.binary())
def test_nothing_that_is_read_raises_anything_else(text: str | bytes) -> None:
    with pytest.raises(RecordError):
        parse(text)
