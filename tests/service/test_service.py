"""What runs beside the hooks follows one policy after the other, and is closed where it fails."""

import time
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from capport.core.policy import Router
from capport.service import service
from conftest import Portal, StartPortal
from proxy.wire import until


class Follower:
    """Stands for each of the three that follow into the kernel, which takes root."""

    made: ClassVar[list["Follower"]] = []
    fails: ClassVar[bool] = False

    def __init__(self, *given: object, **named: Any) -> None:
        self.given = given
        self.named = named
        self.started = self.closed = 0
        self.made.append(self)

    def start(self) -> None:
        time.sleep(0.05)  # it reads what the kernel has
        if self.fails and self is self.made[-1]:
            raise OSError("no netlink")
        self.started += 1

    def reapply(self) -> None:
        """The policy is another."""

    def again(self) -> None:
        """The same."""

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[Follower]:
    monkeypatch.setattr(Follower, "made", [])
    for name in ("KnownSet", "GardenFollower", "RulesKeeper"):
        monkeypatch.setattr(service, name, Follower)
    return Follower.made


async def become_a_router(portal: Portal, times: int = 1) -> None:
    """So many policies in quick succession; returns when all of them have been followed."""
    beside = portal.keeper.alongside
    before = len(beside._tasks)
    for _ in range(times):
        portal.gate.policy = replace(portal.gate.policy, router=Router("br-lan", "wan"))
        beside.policy_changed()
    await until(lambda: len(beside._tasks) == before)


async def test_policies_in_quick_succession_are_followed_by_one(
    portal: StartPortal, followers: list[Follower]
) -> None:
    async with portal() as it:
        await become_a_router(it, times=3)
    assert [(one.started, one.closed) for one in followers] == [(1, 1)] * 3


async def test_the_garden_is_looked_up_again_when_the_table_is_another(
    portal: StartPortal, followers: list[Follower]
) -> None:
    async with portal() as it:
        await become_a_router(it)
    _, garden, keeper = followers
    assert garden.again in keeper.given


async def test_a_full_set_is_a_fault_in_the_log_and_in_the_events(
    portal: StartPortal,
    followers: list[Follower],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults: list[object] = []
    async with portal() as it:
        await become_a_router(it)
        monkeypatch.setattr(
            it.gate.events, "write", lambda *event, **of: faults.append((event, of))
        )
        followers[0].named["told"]("set macs is full")
        assert faults == [(("fault",), {"what": "set macs is full"})]
    assert caplog.text.count("set macs is full") == 1


async def test_what_had_begun_is_closed_where_the_rest_cannot(
    portal: StartPortal, followers: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "fails", True)
    async with portal() as it:
        await become_a_router(it)
        assert [(one.started, one.closed) for one in followers] == [(1, 1), (1, 1), (0, 1)]
        monkeypatch.setattr(Follower, "fails", False)
        await become_a_router(it)
        assert [(one.started, one.closed) for one in followers[3:]] == [(1, 0)] * 3
    assert [one.closed for one in followers] == [1] * 6
