"""`scripts/bench` runs, measures what it says, and judges its figures correctly."""

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmarks.figures")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmarks.refuse")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent / "tests")])
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_gates_figures_come_with_their_peers_and_the_noise(tmp_path: Path) -> None:
    done = bench("--quick", "gate", "--json", str(tmp_path / "figures.json"))
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("decide", "Gate.request", "look-up of a session", "client rules", "reply_to"):
        assert f"\n{name}" in done.stdout
    assert "load average at the end" in done.stdout
    shown = json.loads((tmp_path / "figures.json").read_text())
    assert shown["gate"][0]["name"] == "decide"
    assert all(min(row) > 0 for one in shown["gate"] for row in one["rows"].values())
    for line in done.stdout.splitlines():
        if line.startswith("  with ") and "x (" not in line:
            low, middle, high = map(float, line[48:].split())
            assert 0 < low <= middle <= high


def test_a_server_that_does_not_answer_whole_511s_is_not_measured(refuse: Any) -> None:
    def asking(answer: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = refuse.Server(listener.getsockname()[1], 0)
            threading.Thread(target=answers, args=(listener, answer), daemon=True).start()
            refuse.check(refuse.NGINX, server)

    def answers(listener: socket.socket, answer: bytes) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(answer)

    page = b"x" * 2000
    asking(b"HTTP/1.1 511 X\r\nContent-Length: 2000\r\n\r\n" + page)
    for answer in (
        b"HTTP/1.1 511 X\r\nContent-Length: 2001\r\n\r\n" + page,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + page,
        b"HTTP/1.1 511 X\r\nContent-Length: 4\r\n\r\npage",
        b"",
    ):
        with pytest.raises(ValueError, match="nginx, return 511: "):
            asking(answer)


def test_the_picture_has_each_row_of_each_figure(refuse: Any, figures: Any) -> None:
    rows = {refuse.RUN: [30.0, 31.0, 35.0], refuse.SQUID: [17.0, 17.5, 18.0]}
    of = [figures.Figure(f"511s, {how}: {refuse.EACH}", "us", rows) for how in ("kept", "new")]
    other = figures.Figure("511s, kept", "1/s", rows)
    root = ElementTree.fromstring(refuse.picture([*of, other]))
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(refuse.RUN) == texts.count("31") == texts.count("17.5") == 2
    assert [of[0].name, of[1].name] == [text for text in texts if text and "511s" in text]


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    done = bench("--quick", "http", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "scripts/bench http: " in done.stderr
    assert "sudo apt-get install --no-install-recommends wrk" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_area_that_there_is_not_is_a_usage_error() -> None:
    done = bench("nothing")
    assert done.returncode == 2
    assert "choose from" in done.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.0, 3.0], "at most 3 ms; kept"),
        ([1.0, 2.0, 4.0], "at most 3 ms; kept by the median, not in every round"),
        ([1.0, 4.0, 5.0], "at most 3 ms; MISSED by the median, not in every round"),
        ([4.0, 5.0, 6.0], "at most 3 ms; MISSED"),
    ],
)
def test_a_promise_is_kept_missed_or_in_doubt(figures: Any, values: list[float], said: str) -> None:
    figure = figures.Figure("x", "ms", {"a": values}, promise=(figures.Promise.AT_MOST, 3.0))
    assert figure.kept() == f"promised: {said}"


def test_a_ratio_is_taken_in_each_round_so_that_a_drift_of_both_cancels_out(figures: Any) -> None:
    rows = {"ours": [10.0, 20.0, 40.0], "peer": [10.0, 20.0, 40.0]}
    promise = (figures.Promise.AT_LEAST, 0.95)
    figure = figures.Figure("x", "1/s", rows, "peer", promise, of_peer=True)
    assert figure.kept() == "promised: at least 0.95 times peer; kept"
    assert "1x (1 to 1)" in figure.lines()[1]


def test_the_rounds_alternate(figures: Any) -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return 1.0

    rows = figures.alternate(2, {name: lambda n=name: measure(n) for name in "abc"})
    assert "".join(order) == "abccba"
    assert rows == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]}


def test_99_of_100_are_no_later_than_the_percentile(figures: Any) -> None:
    values = [float(n) for n in range(1000)]
    late = figures.percentile(values, 99)
    assert sum(value <= late for value in values) >= 990
    assert late < 999
