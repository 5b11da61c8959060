"""How records of vouchers and used states merge, and what is read of them."""

import json
from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import ClientId
from capport.web.shared_record import (
    GIVEN_BACK,
    MOST_USES,
    RecordLimits,
    SharedRecord,
    Use,
    dump,
    join,
    parse,
)

CLIENTS = st.sampled_from([ClientId(f"192.0.2.{n}") for n in range(4)])
TIMES = st.integers(0, 5)
USES = st.dictionaries(CLIENTS, st.builds(Use, TIMES, st.booleans(), TIMES))
RECORDS = st.builds(SharedRecord, TIMES.map(RecordLimits), TIMES, USES)
VOUCHER = SharedRecord(RecordLimits(number=100_001, lifetime=60, devices=2, expires=1000))
ADA, EVE, MAX = (ClientId(f"192.0.2.{n}") for n in range(7, 10))


@given(
    st.lists(RECORDS, min_size=1, max_size=4).flatmap(
        lambda r: st.tuples(*[st.permutations(r)] * 2)
    )
)
def test_in_whatever_order_and_however_often_records_are_read_the_answer_is_one(
    orders: tuple[list[SharedRecord], list[SharedRecord]],
) -> None:
    one, other = (reduce(join, order) for order in orders)
    assert one == other
    assert join(one, orders[0][0]) == one
    for record in orders[0]:
        assert bool(record.revoked) <= bool(one.revoked), "a revocation is never forgotten"
        for client, use in record.uses.items():
            assert one.uses[client] >= use, "a use is only replaced by a later one"


@given(RECORDS)
def test_what_is_written_is_read_again(record: SharedRecord) -> None:
    assert parse(dump(record)) == record
    assert parse(json.dumps(json.loads(dump(record)) | {"new": 1})) == record


@given(st.text() | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"v": 2}, "newer capport"),
        ({"devices": -1}, "devices: not a whole number"),
        ({"lifetime": 1.5}, "lifetime: not a whole number"),
        ({"note": "\ud800"}, "note: not a text"),
        ({"note": None}, "note: not a text"),
        ({"uses": []}, "uses: not an object"),
        (
            {"uses": {f"192.0.2.{n}": [1, 0, 1] for n in range(MOST_USES + 1)}},
            "at most 1400 members",
        ),
        ({"uses": {"x": [1, 0, 1]}}, "x"),
        ({"uses": {"02-00-00-00-00-07": [1, 0, 1]}}, "client: neither"),
        ({"uses": {"192.0.2.7": [1, 0]}}, "not a list of three numbers"),
        ({"uses": {"192.0.2.7": [1, 0, "x"]}}, "since: not a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(json.dumps(json.loads(dump(VOUCHER)) | change))


def test_a_voucher_admits_as_many_devices_as_it_says_for_as_long_as_it_says() -> None:
    assert VOUCHER.admits(ADA, 5) == 60
    used = VOUCHER.used(ADA, 5, 5).used(EVE, 6, 6)
    assert used.admits(MAX, 7) is None
    assert used.admits(ADA, 25) == 40
    assert used.admits(ADA, 65) is None
    assert used.admits(ADA, 1) == 60, "a clock that was set back gives no more than it had"
    assert used.given_back(EVE, 7) == used, "that use began at another moment"
    again = used.given_back(EVE, 6)
    assert (again.admits(MAX, 7), again.clients) == (60, [ADA])
    assert join(again, used) == again
    assert again.used(EVE, 6, 6).uses[EVE].at == 7, "it counts, and not what was given back"
    assert VOUCHER.admits(ADA, 1000) is None, "it expired before its first use"


def test_uses_that_were_given_back_are_not_remembered_without_end() -> None:
    record = VOUCHER
    for n in range(3 * GIVEN_BACK):
        client = ClientId(f"192.0.{n // 256}.{n % 256}")
        record = record.used(client, n, n).given_back(client)
    assert len(record.uses) <= GIVEN_BACK + 1
    assert record.clients == []


def used_by_many(first: int, *, is_given_back: bool = False) -> SharedRecord:
    """A voucher as long as one may be."""
    last = (1 << 53) - 1
    uses = {
        ClientId(f"02:00:00:00:00:07@2001:db8:1111:2222:3333:4444:5555:{n:x}"): Use(
            last, is_given_back, last
        )
        for n in range(first, first + MOST_USES)
    }
    limits = RecordLimits(100_001, 60, 2 * MOST_USES, last, last, last, "\N{GUITAR}" * 10_000)
    return SharedRecord(limits, last, uses)


def test_whatever_was_read_and_merged_can_be_read_again() -> None:
    one, other = used_by_many(0x1000), used_by_many(0x2000)
    for record in (one, join(one, other), one.used(ADA, 1, 1)):
        assert parse(dump(record)) == record
    assert join(one, other) == join(other, one) == join(join(one, other), one)


def test_a_voucher_with_as_many_uses_as_one_may_have_admits_no_more_devices() -> None:
    voucher = replace(used_by_many(0x1000), revoked=0)
    voucher = replace(voucher, limits=voucher.limits._replace(expires=0))
    assert voucher.admits(ADA, 5) is None


def test_uses_that_were_given_back_are_left_out_first() -> None:
    merged = join(used_by_many(0x1000), used_by_many(0x2000, is_given_back=True))
    assert merged.uses == used_by_many(0x1000).uses
