"""Keeps work going that must not end: if it fails, that is logged, and the work begins again.

`keep` starts such work on the event loop and `cancel_all` ends it; `lasting_on_thread` does it on a
thread. `start` starts work that ends by itself.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from capport.log_limits import FAULTS, Seldom

logger = logging.getLogger(__name__)

_tasks = set[asyncio.Task[Any]]()

PAUSE = 1.0  # seconds until work that has failed begins again


def start[T](
    work: Coroutine[Any, Any, T], tasks: set[asyncio.Task[Any]] = _tasks
) -> asyncio.Task[T]:
    """Starts `work` as a task, and keeps the task in `tasks`, as the event loop does not.

    If the work fails, that is logged.
    """

    def done(task: asyncio.Task[T]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The portal goes on, but could not do something", exc_info=error)

    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(done)
    return task


def keep(
    what: str, work: Callable[[], Coroutine[Any, Any, None]], tasks: set[asyncio.Task[Any]]
) -> None:
    """Starts `lasting` work as a task, and keeps the task in `tasks`."""
    start(lasting(what, work), tasks)


async def lasting(what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Does `work` until it returns or is cancelled. Each error is logged, as a failure of `what`.

    An error that repeats is logged once a minute.
    """
    seldom = Seldom(FAULTS)
    while True:
        try:
            return await work()
        except Exception as error:  # the edge: nobody awaits this work before the end
            _log(what, error, seldom)
        await asyncio.sleep(PAUSE)


def lasting_on_thread(what: str, work: Callable[[], None], stopping: threading.Event) -> None:
    """Does what `lasting` does, on the caller's thread. `stopping` ends the pause after a failure.

    `work` itself has to return when `stopping` is set.
    """
    seldom = Seldom(FAULTS)
    while True:
        try:
            return work()
        except Exception as error:  # the edge: without this loop the thread would end
            _log(what, error, seldom)
        if stopping.wait(PAUSE):
            return None


def _log(what: str, error: Exception, seldom: Seldom) -> None:
    if seldom.is_due(time.monotonic(), repr(error)):
        logger.error(f"{what} failed; it begins again", exc_info=error)


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks, and waits until they have ended, whatever they raise."""
    tasks = tuple(tasks)  # a task may remove itself from a collection
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
