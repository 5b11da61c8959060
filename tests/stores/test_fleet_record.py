"""What routers tell one another about a client: it merges in any order, and a revocation wins."""

import json
from dataclasses import replace
from functools import reduce
from itertools import permutations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capport.core.client import ClientId
from capport.stores.redis.fleet_record import (
    LARGEST,
    NOTHING,
    Grant,
    Record,
    RecordError,
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
    Record,
    st.dictionaries(
        st.sampled_from([A, B, C]),
        st.builds(Revocation, st.integers(0, 3), st.sampled_from([500.0, 2000.0, 4000.0])),
    ),
    st.none()
    | st.builds(
        grant, st.sampled_from([A, B, C]), st.integers(0, 2), last_seen=st.sampled_from([1.0, 2.0])
    ),
)


def known(record: Record) -> tuple[dict[str, int], Grant | None, float | None]:
    seen = record.grant.last_seen if record.grant else None
    return {router: r.number for router, r in record.revoked.items()}, record.grant, seen


@given(st.lists(RECORDS, min_size=1, max_size=4))
@example(  # a copy that is over beside one that is not
    [
        Record({}, grant()),
        Record({A: Revocation(0, 500.0)}),
        Record({A: Revocation(0, 2000.0)}),
    ]
)
def test_records_merge_to_the_same_in_every_order(records: list[Record]) -> None:
    # As a router's own: what it knows beside a grant names all that it has seen.
    merged = [
        known(reduce(lambda one, other: join(one, other, NOW), order, NOTHING))
        for order in permutations(records)
    ]
    decided = [(numbers, grant) for numbers, grant, _ in merged]
    assert all(one == decided[0] for one in decided)


@given(RECORDS)
def test_to_hear_a_record_twice_changes_nothing(record: Record) -> None:
    once = join(NOTHING, record, NOW)
    assert known(join(once, record, NOW)) == known(once)


@pytest.mark.parametrize(
    ("one", "other", "by"),
    [
        (Record({}, grant(A)), Record(revoked(b=7)), None),
        (Record(revoked(b=7), grant(A)), Record(revoked(b=7)), A),
        (Record(revoked(b=7), grant(A)), Record(revoked(b=8)), None),
        (Record(revoked(b=7), grant(A)), Record(revoked(b=6)), A),
        (Record(revoked(b=7), grant(A)), Record(revoked(c=7)), None),
        (Record(revoked(b=7), grant(A)), Record({}, grant(C, order=9)), A),
        (Record(revoked(b=7), grant(A)), Record(revoked(c=7), grant(C)), None),
        (Record({}, grant(A, order=1)), Record({}, grant(C, order=2)), C),
        (Record({}, grant(A)), Record({}, grant(B)), B),
    ],
)
def test_a_grant_stands_against_the_revocations_that_it_names_and_falls_to_any_other(
    one: Record, other: Record, by: str | None
) -> None:
    for merged in (join(one, other, NOW), join(other, one, NOW)):
        assert (merged.grant and merged.grant.router) == by


def test_a_revocation_counts_as_long_as_the_session_that_it_ends() -> None:
    long = Record({}, grant(expires=9000.0))
    merged = join(long, Record(revoked(b=7)), NOW)
    assert merged.grant is None
    assert join(merged, long, 8999.0).grant is None
    assert merged.without_past(8999.0).revoked
    assert not merged.without_past(9100.0).revoked


def test_a_revocation_that_is_over_ends_nothing() -> None:
    assert join(Record(revoked(b=7)), Record({}, grant(granted=4100.0)), 4000.0).grant


def test_of_the_same_grant_the_last_packet_at_any_router_counts() -> None:
    heard = Record({}, grant(last_seen=950.0))
    for merged in (join(heard, Record({}, grant()), NOW), join(Record({}, grant()), heard, NOW)):
        assert merged.grant is not None
        assert merged.grant.last_seen == 950.0


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    client, read = parse(dump(CLIENT, record))
    assert (client, known(read)) == (CLIENT, known(record))


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(dump(CLIENT, Record(revoked(b=7), grant()))) | changes)


def granted(**changes: Any) -> str:
    said = json.loads(dump(CLIENT, Record({}, grant())))
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
        ("{" + " " * LARGEST, "at most 16384"),
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


@given(st.text() | st.binary())
def test_nothing_that_is_read_raises_anything_else(text: str | bytes) -> None:
    with pytest.raises(RecordError):
        parse(text)
