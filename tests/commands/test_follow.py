"""`capport events`: shows events to people, also those that are written while it runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from capport.cli import main
from capport.commands.follow import following, line_of
from report.recorded import Event, event, granted, passed, refused, shake


def add(path: Path, *texts: str) -> None:
    with path.open("a") as file:
        file.writelines(texts)


def test_events_are_lines_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    add(path, json.dumps(refused(0, because="it has no session")), "\n", '{"half')
    assert main(["events", str(path)]) == 0
    line = capsys.readouterr().out
    assert line.endswith(
        "  192.0.2.7        GET http://api.example.org/v1/items: 511, axios/1.7.2"
        " (it has no session)\n"
    )


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (passed(0), "GET http://api.example.org/v1/items: 200 by the origin, axios/1.7.2"),
        (shake(0, "rejected", alert="unknown_ca"), "intercept, rejected with unknown_ca"),
        (event(0, "refused", status=511, host="a.test", method="PUT", repeats=7), "511 (7 times)"),
        (granted(0, name="phone"), "granted, seconds 3600, by terms, name phone"),
        (
            event(0, "policy", client=None, action="loaded", file="lab.yaml"),
            "policy, action loaded",
        ),
        (event(0, "fault", what="\x1b[2J\n"), "fault, what \\x1b[2J\\n"),
        ({"event": "new", "x": 1}, "??:??:??  -                new, x 1"),
    ],
)
def test_each_event_is_one_line_of_text(one: Event, says: str) -> None:
    line = line_of(one)
    assert says in line
    assert line.isprintable()


def test_a_person_watches_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    add(path, f"{json.dumps(refused(0))}\n")
    command = [sys.executable, "-m", "capport", "events", str(path), "--follow"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # `&` in a shell ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        assert process.stdout
        assert "/v1/items: 511" in process.stdout.readline()
        path.rename(tmp_path / "events.jsonl.1")
        add(path, f"{json.dumps(granted(1))}\n")
        assert "granted" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_only_one_clients_events_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mac = tmp_path / "events.jsonl", "02:00:00:00:00:07"
    lines = [refused(0), refused(1, client="192.0.2.8"), event(2, "revoked", client=None, mac=mac)]
    add(path, *(f"{json.dumps(line)}\n" for line in lines))
    for client, count in (("192.0.2.8", 1), ("0200.0000.0007", 1), ("192.0.2.9", 0)):
        assert main(["events", str(path), "--client", client]) == 0
        assert capsys.readouterr().out.count("\n") == count
    assert main(["events", str(tmp_path / "no")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def followed(path: Path, *steps: Callable[[], object]) -> list[str]:
    """The lines that come while each step happens, one between two looks at the file."""
    left = iter(steps)

    class Over(Exception):
        pass

    def next_step(_: float) -> None:
        step = next(left, None)
        if step is None:
            raise Over
        step()

    lines = []
    try:
        for line in following(path, next_step):
            lines.append(line.rstrip("\n"))
    except Over:
        return lines
    raise AssertionError


def nothing() -> None:
    """A look at the file in which nothing has happened."""


def test_new_lines_are_followed_and_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "e"
    add(path, *(f"{n}\n" for n in range(12)))
    assert followed(path, lambda: add(path, "a\nb"), nothing, lambda: add(path, "c\n")) == [
        *map(str, range(2, 12)),
        *("a", "bc"),
    ]


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "e"
    assert followed(path, nothing, lambda: add(path, "a\n"), lambda: add(path, "b\n")) == ["a", "b"]


def test_a_file_that_is_moved_away_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    path, old = tmp_path / "e", tmp_path / "e.1"
    add(path, "a\n")

    def rotated() -> None:
        path.rename(old)
        add(old, "b\n")  # a process that has not noticed yet
        add(path, "c\n")

    late = lambda: add(path, "d\n")  # noqa: E731
    assert followed(path, rotated, late, nothing) == ["a", "b", "c", "d"]
    assert followed(path, lambda: path.rename(old), nothing, lambda: add(path, "e\n"), nothing) == [
        *("c", "d", "e")
    ]


class Vanishing(Path):
    """A file that is gone after a look at it, if its text is `vanishes`."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        found = super().stat(follow_symlinks=follow_symlinks)
        if self.read_text() == "vanishes\n":
            self.unlink()
        return found


def test_a_file_that_vanishes_while_it_is_opened_is_waited_for(tmp_path: Path) -> None:
    path, old = Vanishing(tmp_path / "e"), tmp_path / "e.1"
    add(path, "a\n")

    def rotated() -> None:
        path.rename(old)
        add(path, "vanishes\n")

    assert followed(path, rotated, lambda: add(old, "b\n"), lambda: add(path, "c\n"), nothing) == [
        *("a", "b", "c")
    ]


def test_a_file_that_is_emptied_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "e"
    add(path, "aaaa\n")

    def emptied() -> None:
        os.truncate(path, 0)
        add(path, "b\n")

    assert followed(path, emptied, nothing, nothing) == ["aaaa", "b"]
