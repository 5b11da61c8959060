"""The table of budgets is bounded, and the same for all processes that share it."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from capport.budgets import MOST, SIZE, Budgets
from capport.core.policy import Rate
from conftest import SOON

RATE = Rate(100, 60.0)

SPENDS = """
import sys
from capport.budgets import Budgets
from capport.core.policy import Rate
budgets, passed = Budgets(int(sys.argv[1])), 0
for line in sys.stdin:
    passed += budgets.spend(line, Rate(2000, 60.0), 1000.0) is None
print(passed)
"""


@pytest.fixture
def shared() -> Iterator[int]:
    file = os.memfd_create("budgets")
    os.truncate(file, SIZE)
    yield file
    os.close(file)


def test_each_key_has_a_budget_of_its_own() -> None:
    budgets = Budgets()
    for _ in range(100):
        assert budgets.spend("a", RATE, 1000.0) is None
    assert budgets.spend("a", RATE, 1000.0) == 1
    assert budgets.spend("b", RATE, 1000.0) is None
    assert budgets.spend("a", RATE, 1001.0) is None


def test_what_is_recorded_is_found_again() -> None:
    budgets = Budgets()
    for number in range(1000):
        budgets.set(str(number), 2000.0 + number)
    assert [budgets.until(str(number)) for number in range(1000)] == [
        2000.0 + number for number in range(1000)
    ]
    assert budgets.until("another") == 0.0


def test_strangers_without_end_take_a_megabyte_and_only_budgets_that_are_full_again() -> None:
    """A client that is still over its limit stays so, while those before it have refilled."""
    assert SIZE < 1 << 20 | 64
    budgets, now = Budgets(), 1000.0
    for _ in range(100):
        budgets.spend("over", RATE, now)
    for number in range(2 * MOST):
        budgets.spend(str(number), RATE, now + number / MOST * 25)
    assert budgets.spend("over", RATE, now) == 1


def test_processes_that_share_the_table_share_each_budget_within_a_tenth(shared: int) -> None:
    """Three processes, each of which would let 2000 requests through by itself, at once."""
    first = Budgets(shared)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDS, str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[shared],
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("02:00:00:00:00:07\n" * 3000)
    passed = [int(worker.communicate(timeout=SOON)[0]) for worker in workers]
    assert 2000 <= sum(passed) <= 2200
    assert first.spend("02:00:00:00:00:07\n", Rate(2000, 60.0), 1000.0) == 1


def test_a_process_that_was_stopped_with_the_lock_holds_up_no_other(shared: int) -> None:
    holds = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", holds, str(shared)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[shared],
    )
    try:
        assert holder.stdout
        holder.stdout.readline()
        budgets = Budgets(shared)
        waits = [budgets.spend("a", Rate(2, 60.0), 1000.0) for _ in range(3)]
        assert waits == [None, None, 30]
    finally:
        holder.communicate(b"\n", timeout=SOON)


def test_no_client_can_choose_whose_place_it_takes(shared: int) -> None:
    """The table of another portal, or of this one after a restart, is ordered in another way."""
    tables = [Budgets(), Budgets(), Budgets(shared)]
    for table in tables:
        table.set("a", 1e9)
    with closing(os.fdopen(os.dup(shared), "rb")) as file:
        file.seek(0)
        salts = [bytes(table.memory[:16]) for table in tables]
        assert file.read(16) == salts[2]
    assert len({*salts, bytes(16)}) == 4


def test_a_random_walk_agrees_with_a_dict() -> None:
    chance, budgets, plain = random.Random(1), Budgets(), dict[str, float]()
    for _ in range(2000):
        key = str(chance.randrange(300))
        if chance.random() < 0.5:
            plain[key] = chance.random() * 1e6
            budgets.set(key, plain[key])
        with suppress(KeyError):
            assert budgets.until(key) == plain[key]
