"""Events: one JSON line each, in a file that no client can fill."""

import json
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capport import events
from capport.core.client import Client, ClientId, Mac, parse_address, parse_client_id
from capport.events import (
    BACKLOG,
    LINES_A_CLIENT,
    LINES_WATCHED,
    LONGEST_TEXT,
    WINDOW,
    EventLog,
    Watched,
)
from conftest import SOON

CLIENT = Client(parse_address("192.0.2.7"), Mac("02:00:00:00:00:07"))
OTHER = Client(parse_address("192.0.2.8"))


@dataclass
class Clock:
    """A clock that a test moves; `asked` counts the looks at it."""

    at: float = 1000.0
    asked: int = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.at


@contextmanager
def log(path: Path, clock: Clock | None = None) -> Iterator[EventLog]:
    """A log that is closed, and so written, at the end."""
    it = EventLog(path, monotonic=clock or Clock())
    try:
        yield it
    finally:
        assert it.close(SOON)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def eventually(holds: Any) -> None:
    """Waits until `holds()`."""
    until = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_event_is_a_line_with_time_event_and_client_first(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        it.wall = lambda: 0.0
        it.write("refused", CLIENT, status=511, host="x.test", method=None, because="no session")
    assert path.read_text("ascii") == (
        '{"time": "1970-01-01T00:00:00.000Z", "event": "refused", "client": "192.0.2.7",'
        ' "mac": "02:00:00:00:00:07", "status": 511, "host": "x.test", "because": "no session"}\n'
    )


def test_what_repeats_is_counted(tmp_path: Path) -> None:
    path, clock = tmp_path / "events", Clock()
    with log(path, clock) as it:
        for number in range(100):
            it.write("refused", CLIENT, status=511, host="x.test", because=f"in {number} s")
        it.write("refused", OTHER, status=511, host="x.test")
        clock.at += WINDOW
        it.write("refused", CLIENT, status=511, host="x.test", because="later")
    written = lines(path)
    assert [it.get("repeats") for it in written if it["client"] == "192.0.2.7"] == [None, 99, None]


@pytest.mark.parametrize("who", ["192.0.2.7", "02:00:00:00:00:07", "02:00:00:00:00:07@192.0.2.7"])
def test_each_event_of_a_watched_client_is_a_line(tmp_path: Path, who: str) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        it.watched.add(parse_client_id(who))
        for client in (CLIENT, OTHER) * 3:
            it.write("refused", client, status=511, host="x.test")
        it.watched.discard(parse_client_id(who))
        for _ in range(3):
            it.write("refused", CLIENT, status=511, host="x.test")
    written = [(line["client"], line.get("repeats")) for line in lines(path)]
    assert written.count(("192.0.2.7", None)) == 3 + 1
    assert written.count(("192.0.2.8", None)) == 1
    assert sorted(repeats for _, repeats in written if repeats) == [2, 2]


def test_a_watched_client_cannot_fill_the_disk(tmp_path: Path) -> None:
    path, clock = tmp_path / "events", Clock()
    with log(path, clock) as it:
        it.watched = Watched(everybody=True)
        for number in range(LINES_WATCHED + 1000):
            it.write("refused", CLIENT, host=f"{number}.test")
            if number % 1000 == 0:
                eventually(lambda: not it.backlog)
    assert len(lines(path)) <= LINES_WATCHED + LINES_A_CLIENT + 2
    assert sum(line.get("repeats", 0) + 1 for line in lines(path)) >= LINES_WATCHED + 1000


def test_only_a_log_with_a_file_watches(tmp_path: Path) -> None:
    watched = Watched()
    watched.add(ClientId("192.0.2.8"))
    assert not EventLog(watched=watched).watches(OTHER)
    with log(tmp_path / "events") as it:
        it.watched = watched
        assert it.watches(OTHER)
        assert not it.watches(CLIENT)


def test_credentials_that_are_new_are_no_repeat(tmp_path: Path) -> None:
    path = tmp_path / "events"
    offered: list[dict[str, int]] = [{}, {"authorizations": 1}, {"cookies": 1}, {"cookies": 2}]
    with log(path) as it:
        for credentials in offered * 3:
            it.write("refused", CLIENT, status=511, host="x.test", **credentials)
    written = [line for line in lines(path) if "repeats" not in line]
    assert [(it.get("cookies"), it.get("authorizations")) for it in written] == [
        *((None, None), (None, 1), (1, None), (2, None))
    ]


def test_one_client_that_makes_up_cookies_cannot_flood_it(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        for number in range(5000):
            it.write("refused", CLIENT, status=511, host="x.test", cookies=number)
    assert len(lines(path)) <= LINES_A_CLIENT + 2


def test_repeats_are_written_once_the_window_is_over(tmp_path: Path) -> None:
    path, clock = tmp_path / "events", Clock()
    with log(path, clock) as it:
        for _ in range(3):
            it.write("refused", CLIENT, host="x.test")
        clock.at += WINDOW
        eventually(lambda: len(path.read_text().splitlines()) == 2)
        assert lines(path)[1]["repeats"] == 2


def test_one_client_that_makes_up_hosts_cannot_flood_it(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        for number in range(20_000):
            it.write("refused", CLIENT, status=511, host=f"{number}.test")
        it.write("refused", OTHER, status=511, host="x.test")
        it.write("granted", id="192.0.2.7")
    written = lines(path)
    own = [it for it in written if it.get("client") == "192.0.2.7"]
    assert len(own) <= LINES_A_CLIENT + 2
    assert sum(it.get("repeats", 0) + 1 for it in own[LINES_A_CLIENT:]) >= 20_000 - LINES_A_CLIENT
    assert ["host" in it for it in own] == [True] * LINES_A_CLIENT + [False] * 2
    assert [it["event"] for it in written if it not in own] == ["refused", "granted"]


def test_many_clients_together_are_bounded_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        for number in range(25_000):
            it.write("refused", Client(parse_address(f"10.0.{number >> 8}.{number & 255}")))
        assert len(it.backlog) <= BACKLOG
        assert len(it.lines) <= 20_000
        assert len(it.shares) <= 20_000


@given(st.text(), st.text(alphabet=st.characters(codec=None)))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_client_says_stays_inside_its_string(
    tmp_path: Path, host: str, sni: str
) -> None:
    path = tmp_path / "events"
    path.unlink(missing_ok=True)
    with log(path) as it:
        it.write("refused", CLIENT, host=f"a\nb\r{host}", sni=sni)
    assert path.read_bytes().count(b"\n") == 1
    (written,) = lines(path)
    assert written["event"] == "refused"
    assert written["host"][:4] == "a\nb\r"
    assert len(written["host"]) <= LONGEST_TEXT


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as it:
        it.write("refused", CLIENT, host="x" * 100_000)
    assert path.stat().st_size < 1000


def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        EventLog(tmp_path / "no" / "events")


def test_a_full_disk_is_logged_once_and_what_was_lost_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events"
    path.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING), log(path) as it:
        for number in range(3):
            it.write("refused", CLIENT, host=f"{number}.test")
            eventually(lambda want=number + 1: it.lost >= want)
        path.unlink()  # as if there were room again
        it.write("refused", CLIENT, host="after.test")
        eventually(lambda: path.exists() and path.stat().st_size)
    first, second = lines(path)
    assert (first["event"], first["lost"]) == ("fault", 3)
    assert "time" in first
    assert second["host"] == "after.test"
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.records[0].getMessage()


def test_what_was_lost_is_not_forgotten_while_nothing_happens(tmp_path: Path) -> None:
    path, clock = tmp_path / "events", Clock()
    path.symlink_to("/dev/full")
    with log(path, clock) as it:
        it.write("refused", CLIENT, host="lost.test")
        eventually(lambda: it.lost == 1)
        before = clock.asked
        eventually(lambda: clock.asked >= before + 2)  # what is due, with nothing to write
        path.unlink()
        it.write("refused", CLIENT, host="after.test")
    assert [line.get("lost") for line in lines(path)] == [1, None]


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_after_a_rotation_a_new_file_is_begun(tmp_path: Path, how: str) -> None:
    path, old = tmp_path / "events", tmp_path / "events.1"
    with log(path) as it:
        it.write("refused", CLIENT, host="a.test")
        eventually(lambda: path.stat().st_size)
        if how == "renamed":
            path.rename(old)
        else:
            path.unlink()
        it.write("refused", CLIENT, host="b.test")
        eventually(lambda: path.exists() and path.stat().st_size)
    assert [it["host"] for it in lines(path)] == ["b.test"]
    if how == "renamed":
        assert [it["host"] for it in lines(old)] == ["a.test"]


def test_a_large_file_is_moved_aside_and_no_line_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LARGEST", 20_000)
    path, old = tmp_path / "events", tmp_path / "events.1"
    with log(path) as one, log(path) as two:  # each has the file open, as two processes have
        for number in range(150):
            one.write("granted", OTHER, number=number)
            two.write("granted", OTHER, number=-number)
            if number % 10 == 0:
                eventually(lambda: not one.backlog and not two.backlog)
    written = [line["number"] for line in [*lines(old), *lines(path)]]
    assert sorted(written) == sorted([*range(150), *(-number for number in range(150))])


def test_what_is_kept_of_events_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LARGEST", 5_000)
    path = tmp_path / "events"
    with log(path) as it:
        for number in range(1000):
            it.write("granted", OTHER, number=number)
            if number % 10 == 0:
                eventually(lambda: not it.backlog)
    assert sorted(kept.name for kept in tmp_path.iterdir()) == ["events", "events.1"]
    assert all(kept.stat().st_size < 5_000 + 20 * 150 for kept in tmp_path.iterdir())
    assert lines(path)[-1]["number"] == 999


def test_a_large_file_that_cannot_be_moved_grows_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "LARGEST", 1)
    path = tmp_path / "events"
    (tmp_path / "events.1").mkdir()
    (tmp_path / "events.1" / "in the way").touch()
    with log(path) as it:
        it.write("granted", OTHER, number=1)
        eventually(lambda: path.stat().st_size)
        it.write("granted", OTHER, number=2)
        eventually(lambda: it.lost)
        assert len(lines(path)) == 1
        (tmp_path / "events.1" / "in the way").unlink()
        (tmp_path / "events.1").rmdir()
        it.write("granted", OTHER, number=3)
    assert [line.get("number") for line in lines(tmp_path / "events.1")] == [1]
    assert [line.get("lost", line.get("number")) for line in lines(path)] == [1, 3]
    assert "events are lost until this is fixed" in caplog.text


def test_a_file_that_cannot_be_moved_goes_on_to_twice_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "LARGEST", 2000)
    path, old = tmp_path / "events", tmp_path / "events.1"
    (old / "in the way").mkdir(parents=True)
    with caplog.at_level(logging.ERROR), log(path) as it:
        number = 0
        while not it.lost:
            it.write("granted", OTHER, number=number)
            eventually(lambda want=number: it.lost or len(lines(path)) > want)
            number += 1
            assert number < 100
        assert 4000 <= path.stat().st_size < 4300
        assert [line["number"] for line in lines(path)] == [*range(number - 1)]
        moving, losing = [record.getMessage() for record in caplog.records]
        (old / "in the way").rmdir()
        old.rmdir()
        it.write("granted", OTHER, number=number)
    assert f"{path} cannot be moved to {old}" in moving
    assert "events are lost until this is fixed" in losing
    assert [line["number"] for line in lines(old)] == [*range(number - 1)]
    assert [line.get("lost", line.get("number")) for line in lines(path)] == [1, number]


def test_two_processes_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path) as one, log(path) as two:
        for number in range(50):
            one.write("refused", CLIENT, host=f"{number}.test")
            two.write("refused", OTHER, host=f"{number}.test")
    assert len(lines(path)) == 100


def test_the_file_is_not_for_everyone_to_read(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with log(path):
        assert path.stat().st_mode & 0o007 == 0


def test_a_pipe_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "events"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        EventLog(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with log(path) as it:
            for number in range(5000):  # more than a pipe holds
                it.write("granted", OTHER, number=number)
            eventually(lambda: it.lost)
        whole = os.read(reader, 10_000).split(b"\n")[:-1]
        assert [json.loads(line)["number"] for line in whole] == list(range(len(whole)))
    finally:
        os.close(reader)


@pytest.mark.parametrize("room", [10, 100, 3000])
def test_half_a_line_spoils_no_other(tmp_path: Path, room: int) -> None:
    path = tmp_path / "events"
    fits, rest = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with log(path) as it:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, rest))  # a disk that is full soon
            for number in range(100):
                it.write("granted", OTHER, number=number)
            eventually(lambda: it.lost)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fits, rest))
            it.write("granted", OTHER, number="last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fits, rest))
        signal.signal(signal.SIGXFSZ, before)
    written = path.read_text("ascii").splitlines()
    whole = [json.loads(line) for line in written if line.endswith("}")]
    assert len(written) - len(whole) <= 1
    assert whole[-1]["number"] == "last"
    lost = sum(it.get("lost", 0) for it in whole)
    assert lost + sum("number" in it for it in whole) == 101


def test_the_bounds_of_a_log_hold_for_all_that_it_merges(tmp_path: Path) -> None:
    path, clock = tmp_path / "events", Clock()
    with log(path, clock) as it:

        def forward(line: str) -> bool:
            it.merge(json.loads(line))
            return True

        workers = [EventLog(forward=forward, monotonic=clock) for _ in range(3)]
        for worker in workers:
            for number in range(50):
                worker.write("refused", CLIENT, host=f"{number}.test")
            for _ in range(10):
                worker.write("refused", OTHER, host="x.test", because="once")
        assert all(worker.close() for worker in workers)
    written = [(line["client"], line.get("repeats")) for line in lines(path)]
    assert written.count(("192.0.2.7", None)) == 50
    assert written.count(("192.0.2.7", 2)) == 50
    assert written.count(("192.0.2.8", None)) == 1
    assert written.count(("192.0.2.8", 3 * 10 - 1)) == 1
    assert len(written) == 102


def test_a_worker_that_cannot_forward_says_how_many_are_lost() -> None:
    arrived, works = list[str](), [False]

    def forward(line: str) -> bool:
        if works[0]:
            arrived.append(line)
        return works[0]

    it = EventLog(forward=forward)
    it.write("refused", CLIENT, host="lost.test")
    eventually(lambda: it.lost)
    works[0] = True
    it.write("refused", CLIENT, host="x.test")
    assert it.close()
    assert [json.loads(line).get("lost") for line in arrived] == [1, None]


def test_an_error_that_nobody_thought_of_loses_events_but_not_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arrived, errors = list[str](), [KeyError("an unforeseen fault")] * 2

    def forward(line: str) -> bool:
        if errors:
            raise errors.pop()
        arrived.append(line)
        return True

    it = EventLog(forward=forward)
    it.write("refused", CLIENT, host="lost.test")
    eventually(lambda: it.lost == 1)
    it.write("refused", CLIENT, host="lost-too.test")
    eventually(lambda: it.lost == 2)
    it.write("refused", CLIENT, host="x.test")
    assert it.close()
    assert [json.loads(line).get("lost") for line in arrived] == [2, None]
    assert caplog.text.count("KeyError: 'an unforeseen fault'") == 1  # once a minute
