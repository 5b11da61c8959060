import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.policy import Rate
from capport.core.rates import Bucket, spend

RATE = Rate(3, 60.0)


def test_as_many_as_the_rate_says_may_come_at_once_and_then_one_has_to_wait() -> None:
    bucket = None
    for _ in range(3):
        bucket, wait = spend(bucket, RATE, 100.0)
        assert wait is None
    _, wait = spend(bucket, RATE, 100.0)
    assert wait == 20


@pytest.mark.parametrize(("left", "wait"), [(0.0, 20), (0.5, 10), (0.98, 1), (1.0, None)])
def test_the_wait_is_as_long_as_what_is_left_lacks_of_one(left: float, wait: int | None) -> None:
    assert spend(Bucket(left, 100.0), RATE, 100.0)[1] == wait


def test_who_waits_as_long_as_told_is_let_through() -> None:
    bucket, wait = spend(Bucket(0.0, 100.0), RATE, 100.0)
    assert wait == 20
    assert spend(bucket, RATE, 120.0)[1] is None


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 20), st.floats(1, 600))
def test_no_window_lets_through_more_than_twice_the_count(
    gaps: list[float], count: int, per: float
) -> None:
    rate, bucket, now = Rate(count, per), None, 0.0
    passed: list[float] = []
    for gap in gaps:
        now += gap
        bucket, wait = spend(bucket, rate, now)
        if wait is None:
            passed.append(now)
        else:
            assert wait >= 1
    for start in passed:
        assert sum(start <= at < start + per for at in passed) <= 2 * count


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket, _ = spend(Bucket(0.0, 100.0), RATE, 50.0)
    assert bucket.tokens == 0.0
