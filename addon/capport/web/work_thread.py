"""Does work that waits for the disk off the event loop: one task after the other, on one thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 10.0
"""Seconds that a task may wait for its turn. Otherwise, if a slow disk takes seconds for each task,
the last of a hundred waits for minutes, and the thread works for clients that have long gone."""


class WorkThread:
    """One thread. A task waits for its turn, for `patience` seconds at most."""

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.patience = patience

    async def do[Answer](self, what: Callable[[], Answer]) -> Answer:
        """Calls `what`, returns its result. If its turn comes too late, raises OSError instead."""
        asked = time.monotonic()

        def in_turn() -> Answer:
            if time.monotonic() - asked > self.patience:
                raise OSError("too many requests wait for the disk; try again")
            return what()

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_turn)

    def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Ends the thread once all tasks are done, the waiting ones too, and then `last`."""
        closed = self._thread.submit(last)
        self._thread.shutdown(wait=True)
        closed.result()
