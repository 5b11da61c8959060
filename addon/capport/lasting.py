"""Keeps work going that must not end: if it fails, that is logged, and the work begins again.

`cancel_all` ends such work.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

logger = logging.getLogger(__name__)

_tasks = set[asyncio.Task[None]]()

PAUSE = 1.0  # seconds until work that has failed begins again


def start(work: Coroutine[Any, Any, None]) -> None:
    """Starts `work` as a task, and keeps the task until it is done, as the event loop does not."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def lasting(what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Does `work` until it returns or is cancelled. Each error is logged, as a failure of `what`.

    An error that repeats is logged once.
    """
    logged = ""
    while True:
        try:
            return await work()
        except Exception as error:  # the edge: nobody awaits this work before the end
            if repr(error) != logged:
                logger.exception(f"{what} failed; it begins again")
            logged = repr(error)
        await asyncio.sleep(PAUSE)


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks, and waits until they have ended, whatever they raise."""
    tasks = tuple(tasks)  # a task may remove itself from a collection
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
