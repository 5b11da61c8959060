"""What commands show: durations, moments, and a table that fits a terminal."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.clock import rfc3339
from capport.commands import clients
from capport.core.client import ClientId
from capport.core.session import Session
from capport.terminal import cells, duration, fitted, moment, short_moment


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59.6, "1m"),
        (90, "1m 30s"),
        (7200, "2h"),
        (7199, "1h 59m"),
        (7205, "2h"),
        (86400, "1d"),
        (90000, "1d 1h"),
        (7 * 86400 + 59, "7d"),
    ],
)
def test_a_duration_is_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.floats(0, 366 * 86400))
def test_a_duration_is_never_off_by_more_than_its_smallest_unit(seconds: float) -> None:
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = [(int(part[:-1]), units[part[-1]]) for part in duration(seconds).split()]
    assert len(parts) <= 2
    shown = sum(number * unit for number, unit in parts)
    assert shown - 0.5 <= seconds < shown + parts[0][1]


def test_people_read_local_time_and_programs_utc() -> None:
    noon = 1_893_495_600.0  # 2030-01-01T11:00:00Z
    assert moment(noon) == "2030-01-01 12:00:00 CET"
    assert rfc3339(noon) == "2030-01-01T11:00:00Z"
    assert short_moment(noon, noon + 60) == "12:00"
    assert short_moment(noon, noon + 86400) == "01 Jan 12:00"
    assert short_moment(noon, noon + 400 * 86400) == "2030-01-01"


@given(st.text(), st.integers(1, 40))
def test_fitted_text_has_its_width_and_no_control_characters(text: str, width: int) -> None:
    shown = fitted(text, width)
    assert cells(shown) == width
    assert all(unicodedata.category(c)[0] != "C" for c in shown)


IDS = st.sampled_from(
    [
        "192.0.2.7",
        "00:00:5e:00:53:01",
        "02:00:5e:00:53:01",
        "2001:db8:1111:2222:3333:4444:5555:6666",
        "02:00:5e:00:53:01@192.0.2.7",
        "02:00:5e:00:53:01@2001:db8:1111:2222:3333:4444:5555:6666",
    ]
)
SESSIONS = st.builds(
    Session,
    client=IDS.map(ClientId),
    granted=st.just(0.0),
    expires=st.floats(1, 366 * 86400),
    granted_at=st.floats(0, 4e9),
    by=st.text(max_size=30),
    how=st.text(max_size=30),
    name=st.text(max_size=100),
)


@given(st.lists(SESSIONS, min_size=1, max_size=8), st.floats(0, 4e9))
def test_the_table_fits_80_columns_whatever_is_in_it(sessions: list[Session], wall: float) -> None:
    lines = list(clients.table(sessions, 0.0, wall))
    assert max(map(cells, lines)) <= 80
    for session in sessions:
        assert any(line.startswith(session.client) for line in lines)


def test_an_id_that_is_too_long_has_a_line_to_itself() -> None:
    long = "02:00:5e:00:53:01@2001:db8:1111:2222:3333:4444:5555:6666"
    session = Session(ClientId(long), 0.0, 3600.0, granted_at=1_893_495_600.0, name="Ada")
    _, first, second, _ = clients.table([session], 0.0, 1_893_495_600.0)
    assert first == f"{long}~"
    assert second.split() == ["Ada", "12:00", "13:00", "1h"]
