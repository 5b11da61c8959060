"""How long a session lasts."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import ClientId
from capport.core.session import LONGEST, Session, check_times, first_open, open_ones

HOUR = Session(ClientId("192.0.2.7"), granted=1000.0, expires=4600.0)
instants = st.floats(-1e9, 1e9)
spans = st.floats(0, 1e7)


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, 4600.0),
        ({"idle": 60.0}, 1060.0),
        ({"idle": 60.0, "last_seen": 2000.0}, 2060.0),
        ({"idle": 60.0, "last_seen": 4590.0}, 4600.0),
        ({"idle": 60.0, "last_seen": 900.0}, 1060.0),  # seen before it was granted
        ({"granted": -500.0, "expires": -100.0, "idle": 60.0, "last_seen": -400.0}, -340.0),
        ({"granted_at": 0.0}, 4600.0),  # the wall clock of a router that boots in 1970
        ({"granted_at": 9e9}, 4600.0),
    ],
)
def test_it_ends_when_it_expires_or_after_silence(changes: dict[str, float], ends: float) -> None:
    assert replace(HOUR, **changes).ends == ends  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "is_open", "seconds"),
    [
        (1000.0, True, 3600),
        (4599.0, True, 1),
        (4599.1, True, 0),
        (4599.999, True, 0),
        (4600.0, False, 0),
        (4601.0, False, 0),
        (1e300, False, 0),
    ],
)
def test_its_end_is_outside_and_seconds_are_whole(now: float, is_open: bool, seconds: int) -> None:
    assert HOUR.is_open(now) is is_open
    assert HOUR.seconds_remaining(now) == seconds
    assert HOUR.left(now) == (4600.0 - now if is_open else 0.0)


def test_a_session_that_another_router_granted_has_a_lease() -> None:
    leased = replace(HOUR, lease=2000.0)
    assert leased.is_leased
    assert not HOUR.is_leased
    assert leased.without_lease() == HOUR
    assert HOUR.without_lease() is HOUR


def test_the_open_ones_of_several_sessions() -> None:
    long = replace(HOUR, expires=9000.0)
    sessions = [None, HOUR, None, long]
    assert open_ones(sessions, 1000.0) == [HOUR, long]
    assert open_ones(sessions, 4600.0) == [long]
    assert first_open(sessions, 1000.0) == HOUR
    assert first_open(sessions, 4600.0) == long
    assert first_open(sessions, 9000.0) is None


def test_the_seconds_that_remain_are_those_until_it_ends_whatever_the_client_does() -> None:
    idle = replace(HOUR, idle=60.0)
    assert idle.seconds_remaining(1000.0) == 3600
    assert idle.seconds_remaining(1059.0) == 3541
    assert idle.seconds_remaining(1060.0) == 0  # over: idle for too long


@given(instants, spans, st.none() | spans, instants, instants, spans)
def test_once_over_it_stays_over_and_it_is_never_longer_than_granted(
    granted: float, lifetime: float, idle: float | None, seen: float, now: float, later: float
) -> None:
    session = Session(ClientId("192.0.2.7"), granted, granted + lifetime, idle, seen)
    assert session.ends <= session.expires
    assert session.is_open(now) == (now < session.ends)
    if not session.is_open(now):
        assert not session.is_open(now + later)
        assert session.seconds_remaining(now) == 0
    assert session.seconds_remaining(now) <= max(0.0, session.expires - now)


@pytest.mark.parametrize("field", ["granted", "expires", "idle", "last_seen", "granted_at"])
def test_a_time_that_is_no_number_is_an_error(field: str) -> None:
    for time in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"192\.0\.2\.7: -?(nan|inf) in .* is not a time"):
            check_times(replace(HOUR, **{field: time}))  # type: ignore[arg-type]
    check_times(HOUR)
    check_times(replace(HOUR, idle=60.0))


def test_what_is_not_said_of_a_session_is_nothing() -> None:
    assert Session(ClientId("192.0.2.7"), 1.0, 2.0) == Session(
        ClientId("192.0.2.7"), 1.0, 2.0, idle=None, last_seen=0.0, granted_at=0.0
    )
    assert (HOUR.by, HOUR.how, HOUR.name) == ("", "", "")


def test_a_session_lasts_a_leap_year_at_most() -> None:
    assert LONGEST == 31_622_400
