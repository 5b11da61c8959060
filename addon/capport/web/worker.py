"""Work that waits for the disk, off the event loop: one piece after the other, on one thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 10.0
"""Seconds that a piece of work may wait for its turn. A disk or a lock that keeps each for seconds
would else keep the last of a hundred for minutes, and be at work for people who have long gone."""


class Worker:
    """A thread, and those who wait for it: `patience` seconds for their turn."""

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.patience = patience

    async def do[Answer](self, what: Callable[[], Answer]) -> Answer:
        """What `what` answers. Raises OSError, and does nothing, where its turn comes too late."""
        asked = time.monotonic()

        def in_turn() -> Answer:
            if time.monotonic() - asked > self.patience:
                raise OSError("the disk keeps too many waiting; try again")
            return what()

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_turn)

    def close(self) -> None:
        """Ends it, when what it is at and what waits is done."""
        self._thread.shutdown(wait=True)
