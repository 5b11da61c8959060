"""Work that must not end begins again when it fails."""

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from capport import lasting as module
from capport.lasting import keep, lasting, lasting_on_thread

type Work = Callable[[], None]


async def on_the_loop(work: Work) -> None:
    async def awaited() -> None:
        work()

    await lasting("The work", awaited)


async def on_a_thread(work: Work) -> None:
    await asyncio.to_thread(lasting_on_thread, "The work", work, threading.Event())


@pytest.mark.parametrize("last", [on_the_loop, on_a_thread])
@pytest.mark.parametrize(("quiet", "lines"), [(60.0, 2), (0.0, 3)])
async def test_work_that_fails_is_reported_and_begins_again_until_it_returns(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    last: Callable[[Work], Coroutine[None, None, None]],
    quiet: float,
    lines: int,
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "FAULTS", quiet)
    errors: list[Exception] = [KeyError("a"), RecursionError("b"), KeyError("a")]

    def work() -> None:
        if errors:
            raise errors.pop(0)

    await last(work)
    assert not errors
    # A repeated failure is logged once a minute.
    assert caplog.text.count("The work failed; it begins again") == lines
    assert "RecursionError" in caplog.text


def test_on_a_thread_it_ends_in_the_pause_after_a_failure() -> None:
    stopping = threading.Event()

    def work() -> None:
        stopping.set()
        raise KeyError("a")

    lasting_on_thread("The work", work, stopping)


async def test_what_is_kept_is_forgotten_once_it_is_done() -> None:
    tasks, begun = set[asyncio.Task[None]](), asyncio.Event()
    keep("The work", begun.wait, tasks)  # type: ignore[arg-type]
    (task,) = tasks
    begun.set()
    await task
    await asyncio.sleep(0)
    assert not tasks


async def test_it_ends_when_it_is_cancelled() -> None:
    task = asyncio.create_task(lasting("The work", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
