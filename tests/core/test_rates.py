import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.policy import Rate
from capport.core.rates import FULL, spend, wait_after

RATE = Rate(3, 60.0)

rates = st.builds(Rate, st.integers(1, 1_000_000), st.integers(1, 86_400).map(float))
gaps = st.lists(st.floats(0, 30) | st.just(0.0), max_size=60)
uptimes = st.floats(1, 1e8)


def test_as_many_as_the_rate_says_may_come_at_once_and_then_one_has_to_wait() -> None:
    full_at = FULL
    for _ in range(3):
        full_at, wait = spend(full_at, RATE, 100.0)
        assert wait is None
    _, wait = spend(full_at, RATE, 100.0)
    assert wait == 20


@pytest.mark.parametrize(("left", "wait"), [(0.0, 20), (0.5, 10), (0.98, 1), (1.0, None)])
def test_the_wait_is_as_long_as_what_is_left_lacks_of_one(left: float, wait: int | None) -> None:
    assert spend(100.0 + (3 - left) * 20, RATE, 100.0)[1] == wait


def test_a_client_that_waits_for_retry_after_is_let_through() -> None:
    full_at, wait = spend(160.0, RATE, 100.0)
    assert wait == 20
    assert spend(full_at, RATE, 120.0)[1] is None


@given(gaps, st.integers(1, 20), st.floats(1, 600))
def test_no_window_lets_through_more_than_twice_the_count(
    gaps: list[float], count: int, per: float
) -> None:
    rate, full_at, now = Rate(count, per), FULL, 0.0
    passed: list[float] = []
    for gap in gaps:
        now += gap
        full_at, wait = spend(full_at, rate, now)
        if wait is None:
            passed.append(now)
        else:
            assert wait >= 1
    for start in passed:
        assert sum(start <= at < start + per for at in passed) <= 2 * count


@given(gaps, rates, uptimes)
def test_retry_after_is_exact_to_the_second(gaps: list[float], rate: Rate, now: float) -> None:
    full_at = now + rate.per  # empty
    for gap in gaps:
        now += gap
        full_at, wait = spend(full_at, rate, now)
        if wait is not None:
            assert spend(full_at, rate, now + wait)[1] is None
            assert wait == 1 or spend(full_at, rate, now + wait - 1)[1] == 1


@given(gaps, rates, uptimes)
def test_a_refused_request_takes_nothing(gaps: list[float], rate: Rate, now: float) -> None:
    full_at = now + rate.per
    for gap in gaps:
        now += gap
        after, wait = spend(full_at, rate, now)
        assert (wait is not None) == (after == max(full_at, now))
        full_at = after


@given(gaps, rates, uptimes)
def test_a_bucket_is_full_again_when_it_says_so(gaps: list[float], rate: Rate, now: float) -> None:
    full_at = FULL
    for gap in gaps:
        now += gap
        full_at, _ = spend(full_at, rate, now)
    assert spend(full_at, rate, full_at) == spend(FULL, rate, full_at)


@pytest.mark.parametrize(("full_at", "now"), [(160.0, 50.0), (1e9, 100.0)])
def test_a_clock_that_goes_back_gives_nothing_and_takes_no_more(full_at: float, now: float) -> None:
    assert spend(full_at, RATE, now) == (now + 60, 20)


@pytest.mark.parametrize(("count", "wait"), [(0, None), (2, None), (3, 20), (9, 20)])
def test_the_wait_after_so_many_requests_at_once(count: int, wait: int | None) -> None:
    assert wait_after(count, RATE) == wait


def test_the_bucket_of_a_machine_that_has_just_started_is_full() -> None:
    assert spend(FULL, RATE, 0.0) == (20.0, None)
