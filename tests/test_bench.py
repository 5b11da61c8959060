"""`scripts/bench` runs, measures what it says, and judges its own figures rightly."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmarks.figures")


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
def test_the_gates_figures_come_with_their_peers_and_the_noise() -> None:
    done = bench("--quick", "gate")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("decide", "Gate.request", "look-up of a session", "client rules", "reply_to"):
        assert f"\n{name}" in done.stdout
    assert "load average at the end" in done.stdout
    for line in done.stdout.splitlines():
        if line.startswith("  with ") and "x (" not in line:
            low, middle, high = map(float, line[48:].split())
            assert 0 < low <= middle <= high


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


def test_a_ratio_is_taken_round_by_round_so_that_a_drift_of_both_is_none(figures: Any) -> None:
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
