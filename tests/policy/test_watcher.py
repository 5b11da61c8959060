# ruff: noqa: ASYNC240 (a test may wait for its own small files)
import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capport import lasting
from capport.core.policy import Policy
from capport.linux import file_state
from capport.policy import policy_file
from capport.policy import watcher as reload
from capport.policy.policy_file import PolicyError
from capport.policy.watcher import PolicyWatcher
from conftest import SOON

LOGIN = "login_url: https://login.example.net/\n"
STAFF = LOGIN + "clients: [{file: staff.csv, access: known}]\n"
INTERVAL = 0.02


def named(name: str) -> str:
    return f"{LOGIN}network: {name}\n"


class Heard:
    """What a watcher reported, in order."""

    def __init__(self) -> None:
        self.all: list[Policy | PolicyError] = []
        self._news = asyncio.Event()

    def hear(self, outcome: Policy | PolicyError) -> None:
        self.all.append(outcome)
        self._news.set()

    async def next(self) -> Policy | PolicyError:
        """The next report."""
        async with asyncio.timeout(SOON):
            while not self.all:
                self._news.clear()
                await self._news.wait()
        return self.all.pop(0)

    async def policy(self) -> Policy:
        got = await self.next()
        assert isinstance(got, Policy), got
        return got

    async def error(self) -> str:
        got = await self.next()
        assert isinstance(got, PolicyError), got
        return str(got)

    async def nothing(self) -> None:
        """Checks that nothing is reported during many looks."""
        await asyncio.sleep(INTERVAL * 20)
        assert self.all == []


async def stopped(watcher: PolicyWatcher) -> None:
    """Stops it, and waits until its thread has ended."""
    watcher.stop()
    for thread in threading.enumerate():
        if thread.name == "policy":
            await asyncio.to_thread(thread.join, SOON)
            assert not thread.is_alive()


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Heard]:
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, INTERVAL)
    watcher.load()
    watcher.start()
    try:
        yield heard
    finally:
        await stopped(watcher)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(named("one"))
    time.sleep(0.02)  # the file system's clock has ticked before any change (every 10 ms at most)
    return path


_between_looks = threading.Lock()


@pytest.fixture(autouse=True)
def whole_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a change in two steps look like one to a watcher, however long lies between them."""
    state = file_state.state_of

    def look(file: str) -> tuple[int, ...]:
        with _between_looks:
            return state(file)

    monkeypatch.setattr(reload, "state_of", look)


def rewrite(path: Path, text: str) -> None:
    """Writes the file in place."""
    with _between_looks:
        path.write_text(text)


def replace(path: Path, text: str) -> None:
    """Does as editors do: moves a new file over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_a_file_that_does_not_change_is_not_read_again(path: Path) -> None:
    async with watching(path) as heard:
        await heard.nothing()


@pytest.mark.parametrize("write", [rewrite, replace])
async def test_a_change_is_a_new_policy(path: Path, write: Callable[[Path, str], object]) -> None:
    async with watching(path) as heard:
        for name in ("two", "six", "three"):  # two and six are of one length
            write(path, named(name))
            assert (await heard.policy()).network == name
        await heard.nothing()


async def test_a_change_that_keeps_size_and_time_is_noticed(path: Path) -> None:
    before = path.stat()
    async with watching(path) as heard:
        with _between_looks:
            path.write_text(named("two"))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (await heard.policy()).network == "two"


async def test_a_change_before_the_start_is_noticed(path: Path) -> None:
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, INTERVAL)
    assert watcher.load().network == "one"
    rewrite(path, named("two"))
    watcher.start()
    assert (await heard.policy()).network == "two"
    await stopped(watcher)


async def test_without_a_load_the_first_policy_is_reported(path: Path) -> None:
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, INTERVAL)
    watcher.start()
    assert (await heard.policy()).network == "one"
    await stopped(watcher)


async def test_a_link_is_followed_to_whatever_it_leads_to(tmp_path: Path) -> None:
    one, two, link, far = (tmp_path / name for name in ("one.yaml", "two.yaml", "link", "far"))
    one.write_text(named("one"))
    rewrite(two, named("two"))
    link.symlink_to("one.yaml")
    far.symlink_to("link")
    async with watching(far) as heard:
        with _between_looks:
            link.unlink()
            link.symlink_to("two.yaml")
        assert (await heard.policy()).network == "two"
        replace(two, named("three"))
        assert (await heard.policy()).network == "three"
        rewrite(two, named("four"))
        assert (await heard.policy()).network == "four"
        with _between_looks:
            far.unlink()
            far.symlink_to("one.yaml")
        assert (await heard.policy()).network == "one"


async def test_a_folder_replaced_by_a_link_is_noticed(tmp_path: Path) -> None:
    for release in ("r1", "r2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "lab.yaml").write_text(named(release))
    (tmp_path / "current").symlink_to("r1")
    async with watching(tmp_path / "current" / "lab.yaml") as heard:
        (tmp_path / "next").symlink_to("r2")
        (tmp_path / "next").replace(tmp_path / "current")
        assert (await heard.policy()).network == "r2"


async def test_a_clients_file_that_changes_is_a_new_policy(path: Path) -> None:
    staff = path.with_name("staff.csv")
    async with watching(path) as heard:
        rewrite(path, STAFF)
        assert "staff.csv: cannot be read: No such file" in await heard.error()
        rewrite(staff, "192.0.2.7\n")
        assert len((await heard.policy()).clients) == 1
        replace(staff, "192.0.2.7\n192.0.2.8\n")
        assert len((await heard.policy()).clients) == 2
        rewrite(staff, "nobody\n")
        assert "staff.csv:1:1: nobody" in await heard.error()
        rewrite(path, named("two"))
        assert (await heard.policy()).network == "two"
        rewrite(staff, "192.0.2.9\n")  # no longer part of the policy
        await heard.nothing()


async def test_each_error_is_reported_once(path: Path) -> None:
    async with watching(path) as heard:
        rewrite(path, LOGIN + "refresh: soon\n")
        assert "refresh: soon" in await heard.error()
        replace(path, LOGIN + "refresh: soon\n")
        await heard.nothing()
        rewrite(path, LOGIN + "refresh: later\n")
        assert "refresh: later" in await heard.error()
        rewrite(path, named("two"))
        assert (await heard.policy()).network == "two"
        rewrite(path, LOGIN + "refresh: later\n")
        assert "refresh: later" in await heard.error()


async def test_a_deleted_file_is_reported_once_and_may_come_back(path: Path) -> None:
    async with watching(path) as heard:
        path.unlink()
        assert "No such file" in await heard.error()
        await heard.nothing()
        rewrite(path, named("one"))
        assert (await heard.policy()).network == "one"
        with _between_looks:
            path.unlink()
            path.mkdir()
        assert "is a folder" in await heard.error()
        with _between_looks:
            path.rmdir()
            os.mkfifo(path)
        assert "is a pipe" in await heard.error()
        replace(path, named("two"))
        assert (await heard.policy()).network == "two"


async def test_a_bad_start_is_raised_and_its_error_not_reported_again(path: Path) -> None:
    rewrite(path, "network: x\n")
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, INTERVAL)
    with pytest.raises(PolicyError, match="login_url is missing"):
        watcher.load()
    watcher.start()
    replace(path, "network: x\n")
    await heard.nothing()
    rewrite(path, named("two"))
    assert (await heard.policy()).network == "two"
    await stopped(watcher)


async def test_a_change_while_reading_is_read_again_and_the_first_reading_unused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = policy_file.load
    changes = [named("three")]

    def slow(where: Path, opening: policy_file.Opening) -> Policy:
        policy = load(where, opening)
        if policy.network == "two" and changes:
            path.write_text(changes.pop())
        return policy

    async with watching(path) as heard:
        monkeypatch.setattr(policy_file, "load", slow)
        rewrite(path, named("two"))
        assert (await heard.policy()).network == "three"
        await heard.nothing()


class Script:
    """Stands in for the state of a file, look by look; after the last, that stays."""

    def __init__(self, *states: int) -> None:
        self.states = list(states)
        self.looks = 0

    def __call__(self, _: str) -> tuple[int, ...]:
        self.looks += 1
        return (self.states.pop(0) if len(self.states) > 1 else self.states[0],)


async def reads_of(path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At which looks the file was read, in the course of a script."""
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, 0.001)
    monkeypatch.setattr(reload, "state_of", lambda _: (0,))
    watcher.load()
    monkeypatch.setattr(reload, "state_of", script)
    load = policy_file.load
    reads: list[int] = []

    def counted(where: Path, opening: policy_file.Opening) -> Policy:
        reads.append(script.looks)
        return load(where, opening)

    monkeypatch.setattr(policy_file, "load", counted)
    watcher.start()
    async with asyncio.timeout(SOON):
        while len(script.states) > 1 or not reads:
            await asyncio.sleep(0.001)
    await stopped(watcher)
    return reads


async def test_a_file_being_written_is_not_read_before_it_rests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Looks 1 to 5 each differ from the one before; 6 is the first that does not. One more look
    # is taken before the reading, which is what reads_of() counts.
    (read, *_) = await reads_of(path, Script(1, 2, 3, 4, 5, 5), monkeypatch)
    assert read == 7


async def test_a_file_that_never_rests_is_read_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (read, *_) = await reads_of(path, Script(*range(1, 60)), monkeypatch)
    assert read == reload.PATIENCE + 1


async def test_reading_does_not_hold_the_loop_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loop, went_on = policy_file.load, asyncio.get_running_loop(), threading.Event()

    def waiting(where: Path, opening: policy_file.Opening) -> Policy:
        loop.call_soon_threadsafe(went_on.set)
        assert went_on.wait(SOON), "the loop did nothing else while the file was read"
        return load(where, opening)

    async with watching(path) as heard:
        monkeypatch.setattr(policy_file, "load", waiting)
        path.with_name("staff.csv").write_text("10.0.0.1\n")
        rewrite(path, STAFF)
        assert len((await heard.policy()).clients) == 1


async def test_after_the_stop_nothing_is_reported_and_no_thread_is_left(path: Path) -> None:
    before = set(threading.enumerate())
    heard = Heard()
    watcher = PolicyWatcher(path, heard.hear, heard.hear, INTERVAL)
    watcher.start()
    watcher.stop()
    await stopped(watcher)
    rewrite(path, named("two"))
    await heard.nothing()
    assert not [t for t in set(threading.enumerate()) - before if t.name == "policy"]


async def test_a_watcher_that_never_started_can_be_stopped(path: Path) -> None:
    watcher = PolicyWatcher(path, lambda _: None, lambda _: None)
    watcher.stop()
    watcher.stop()


async def test_it_starts_once(path: Path) -> None:
    watcher = PolicyWatcher(path, lambda _: None, lambda _: None, INTERVAL)
    watcher.start()
    with pytest.raises(RuntimeError, match="started already"):
        watcher.start()
    await stopped(watcher)


async def test_a_listener_that_fails_with_one_policy_gets_the_next(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def fail_with_two(policy: Policy) -> None:
        heard.hear(policy)
        if policy.network == "two":
            raise RuntimeError("cannot take it")

    watcher = PolicyWatcher(path, fail_with_two, heard.hear, INTERVAL)
    watcher.load()
    watcher.start()
    with caplog.at_level(logging.ERROR):
        rewrite(path, named("two"))
        assert (await heard.policy()).network == "two"
        rewrite(path, named("three"))
        assert (await heard.policy()).network == "three"
    assert "The policy was read, but could not be put in force" in caplog.text
    await stopped(watcher)


async def test_an_unexpected_exception_is_an_error_and_not_the_end_of_watching(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = policy_file.load

    def faulty(where: Path, opening: policy_file.Opening) -> Policy:
        policy = load(where, opening)
        if policy.network == "two":
            raise MemoryError("no more")
        return policy

    async with watching(path) as heard:
        monkeypatch.setattr(policy_file, "load", faulty)
        rewrite(path, named("two"))
        assert "could not be read: MemoryError: no more" in await heard.error()
        rewrite(path, named("three"))
        assert (await heard.policy()).network == "three"


async def test_a_look_that_fails_is_logged_once_and_the_watching_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lasting, "PAUSE", INTERVAL)
    looks, twice = 0, threading.Event()

    def failing(file: str) -> tuple[int, ...]:
        nonlocal looks
        looks += 1
        if looks == 3:
            twice.set()
        raise MemoryError("no more")

    async with watching(path) as heard:
        with monkeypatch.context() as broken:
            broken.setattr(reload, "state_of", failing)
            assert await asyncio.to_thread(twice.wait, SOON)
        rewrite(path, named("two"))
        assert (await heard.policy()).network == "two"
    assert caplog.text.count("The look at the policy file failed; it begins again") == 1


def test_a_loop_that_is_closed_ends_the_watching(path: Path) -> None:
    before = set(threading.enumerate())
    watcher = PolicyWatcher(path, lambda _: None, lambda _: None, INTERVAL)

    async def forget_to_stop() -> None:
        watcher.load()
        watcher.start()

    asyncio.run(forget_to_stop())
    (thread,) = (t for t in set(threading.enumerate()) - before if t.name == "policy")
    rewrite(path, named("two"))
    thread.join(SOON)
    assert not thread.is_alive()
