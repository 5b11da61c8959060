"""The service applies one policy after the other, and each change of a session, in one way."""

import asyncio
import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from capport import clock, lasting
from capport.core.client import Client, ClientId, parse_address
from capport.core.session import Session
from capport.service import kernel, service
from capport.service.service import Service
from capport.session_events import SessionEvents
from capport.stores import FullError, SessionStore
from capport.stores.memory import MemoryStore
from capport.stores.sqlite.store import SqliteStore
from conftest import LOGIN, SOON, Portal, StartPortal
from proxy.wire import until

CLIENT = Client(parse_address("192.0.2.7"))


class Follower:
    """Stands for each of the three that follow into the kernel, which needs root."""

    made: ClassVar[list["Follower"]] = []
    fails: ClassVar[bool] = False
    full: ClassVar[bool] = False

    def __init__(self, *given: object, **named: Any) -> None:
        self.given = given
        self.named = named
        self.started = self.closed = 0
        self.heard = queue.SimpleQueue[object]()
        self.carried_out: list[object] = []
        self.made.append(self)

    def start(self) -> None:
        time.sleep(0.05)  # it reads what the kernel has
        if self.fails and self is self.made[-1]:
            raise OSError("no netlink")
        self.started += 1

    def reapply(self) -> None:
        """Takes a new policy."""

    def look_up_now(self) -> None:
        """The same."""

    def changed(self, what: object) -> None:
        """Takes a change of a session."""
        self.heard.put(what)

    def update(self, ids: list[ClientId]) -> None:
        """A session is another, now."""
        if self.full:
            raise FullError("set known4 is full")
        self.carried_out += ids

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[Follower]:
    monkeypatch.setattr(Follower, "made", [])
    for name in ("KnownClients", "GardenFollower", "Restorer"):
        monkeypatch.setattr(kernel, name, Follower)
    return Follower.made


def service_of(portal: Portal) -> Service:
    assert isinstance(portal.keeper.service, Service)
    return portal.keeper.service


def become_a_router(portal: Portal, folder: Path, times: int = 1) -> None:
    """That many policies in quick succession."""
    policy = folder / "router.yaml"
    router = "{client_interface: br-lan, origin_interface: wan}"
    policy.write_text(f"login_url: {LOGIN}\nrouter: {router}\n")
    for _ in range(times):
        portal.keeper.service.follow_policy_file(policy)


async def test_policies_in_quick_succession_are_followed_by_one(
    portal: StartPortal, followers: list[Follower], tmp_path: Path
) -> None:
    async with portal() as it:
        become_a_router(it, tmp_path, times=3)
        await until(lambda: [one.started for one in followers[:3]] == [1] * 3)
    assert [(one.started, one.closed) for one in followers] == [(1, 1)] * 3


async def test_the_garden_is_looked_up_again_when_the_table_is_another(
    portal: StartPortal, followers: list[Follower], tmp_path: Path
) -> None:
    async with portal() as it:
        become_a_router(it, tmp_path)
        await until(lambda: len(followers) == 3)
    _, garden, keeper = followers
    assert garden.look_up_now in keeper.given


async def test_a_full_set_is_a_fault_in_the_log_and_in_the_events(
    portal: StartPortal,
    followers: list[Follower],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    faults: list[object] = []
    async with portal() as it:
        become_a_router(it, tmp_path)
        await until(lambda: bool(followers))
        monkeypatch.setattr(
            it.gate.events, "write", lambda *event, **of: faults.append((event, of))
        )
        followers[0].named["report"]("set macs is full")
        assert faults == [(("fault",), {"what": "set macs is full"})]
    assert caplog.text.count("set macs is full") == 1


async def test_what_had_begun_is_closed_where_the_rest_cannot(
    portal: StartPortal,
    followers: list[Follower],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Follower, "fails", True)
    async with portal() as it:
        become_a_router(it, tmp_path)
        await until(lambda: [one.closed for one in followers] == [1] * 3)
        assert [(one.started, one.closed) for one in followers] == [(1, 1), (1, 1), (0, 1)]
        monkeypatch.setattr(Follower, "fails", False)
        become_a_router(it, tmp_path)
        await until(lambda: [one.started for one in followers[3:]] == [1] * 3)
        assert [(one.started, one.closed) for one in followers[3:]] == [(1, 0)] * 3
    assert [one.closed for one in followers] == [1] * 6


ONE = ClientId("192.0.2.7")


async def test_a_grant_by_another_process_reaches_the_kernel_though_the_event_loop_is_busy(
    portal: StartPortal, followers: list[Follower], written: Counter[str], tmp_path: Path
) -> None:
    async with portal() as it:
        become_a_router(it, tmp_path)
        await until(lambda: [one.started for one in followers] == [1] * 3)
        now = clock.now()
        it.gate.store.put(Session(ONE, now, now + 60, None, last_seen=now))
        assert followers[0].heard.get(timeout=SOON) == ONE  # without an await, so the loop stands
        await until(lambda: written["granted"] == 1)


async def is_followed(portal: Portal, followers: list[Follower]) -> None:
    """Returns once a change is carried out in the kernel."""

    def is_carried_out() -> bool:
        portal.gate.revoke(ONE)
        return followers[:1] != [] and followers[0].carried_out != []

    await until(is_carried_out)
    followers[0].carried_out.clear()


async def test_a_grant_here_is_in_the_kernel_when_it_returns(
    portal: StartPortal, followers: list[Follower], tmp_path: Path
) -> None:
    async with portal() as it:
        become_a_router(it, tmp_path)
        await is_followed(it, followers)
        it.gate.grant(ONE)
        assert followers[0].carried_out == [ONE]
        it.gate.revoke(ONE)
        assert followers[0].carried_out == [ONE, ONE]


async def test_where_the_kernel_has_no_room_there_is_no_session(
    portal: StartPortal, followers: list[Follower], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with portal() as it:
        become_a_router(it, tmp_path)
        await is_followed(it, followers)
        monkeypatch.setattr(Follower, "full", True)
        with pytest.raises(FullError):
            it.gate.grant(ONE)
        assert not list(it.gate.store.sessions())


async def test_the_neighbours_are_those_of_the_policy_in_force(
    portal: StartPortal, followers: list[Follower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[object] = []
    async with portal() as it:
        monkeypatch.setattr(it.gate.neighbours, "use", used.append)
        become_a_router(it, tmp_path)
        assert used == [("br-lan",)]


async def test_a_session_that_was_open_at_the_start_has_an_end(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, written: Counter[str], tmp_path: Path
) -> None:
    later = [0.0]

    def with_a_clock(store: SessionStore, events: Any, now: Callable[[], float]) -> SessionEvents:
        return SessionEvents(store, events, lambda: now() + later[0])

    monkeypatch.setattr(service, "SessionEvents", with_a_clock)
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store:
        store.put(Session(CLIENT.id, clock.now(), clock.now() + 600))
    async with portal(sessions=str(tmp_path / "s.db")):
        later[0] = 600.0
        await until(lambda: written["expired"] == 1)
    assert written["revoked"] == 0


async def test_a_session_ends_after_the_check_for_ended_ones_has_failed_and_the_log_says_so_once(
    portal: StartPortal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    written: Counter[str],
) -> None:
    monkeypatch.setattr(lasting, "PAUSE", 0.0)
    failures, ended = [KeyError("an unforeseen fault")] * 3, SessionEvents.ended

    def fails(events: SessionEvents) -> Iterator[ClientId]:
        if failures:
            raise failures.pop()
        return ended(events)

    monkeypatch.setattr(SessionEvents, "ended", fails)
    async with portal() as it:
        it.gate.grant(CLIENT.id, lifetime=0.1)
        await until(lambda: written["expired"] == 1)
    assert caplog.text.count("The check which sessions are over failed; it begins again") == 1


async def test_a_slow_disk_holds_nobody_up_when_the_events_go_to_another_file(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed_on: list[str] = []
    async with portal() as it:
        first = it.gate.events
        monkeypatch.setattr(
            first, "close", lambda: closed_on.append(threading.current_thread().name)
        )
        it.keeper.service.write_events_to(tmp_path / "other.jsonl")
        assert it.gate.events is not first
        await until(lambda: len(closed_on) == 1)
    assert closed_on != [threading.main_thread().name]


async def test_what_the_service_still_does_has_ended_before_its_store_is_closed(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    close = MemoryStore.close

    async def goes_on(*given: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(1000):
                await asyncio.sleep(0)
            order.append("done")

    def closes(store: MemoryStore) -> None:
        order.append("closing")
        close(store)

    monkeypatch.setattr(kernel.Kernel, "drop", goes_on)
    monkeypatch.setattr(MemoryStore, "close", closes)
    async with portal() as it:
        service_of(it).drop(CLIENT, 60.0)
        await asyncio.sleep(0)
    assert order == ["done", "closing"]


async def test_work_that_fails_is_in_the_log(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*given: object) -> None:
        raise KeyError("an unforeseen fault")

    monkeypatch.setattr(kernel.Kernel, "drop", fails)
    async with portal() as it:
        service_of(it).drop(CLIENT, 60.0)
        await until(lambda: "The portal goes on, but could not do something" in caplog.text)
    assert "an unforeseen fault" in caplog.text
