"""Calls watchers of the sessions or the neighbours, each on its own event loop or on a thread."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class _Watch[Subject]:
    watcher: Callable[[Subject], None]
    loop: "asyncio.AbstractEventLoop | None"


class Watchers[Subject]:
    """Calls each watcher on the event loop that it was added on, with what has changed.

    Watchers that were added on no event loop are called on one thread together. So a slow watcher
    delays neither the change nor what is watched, which `of` names in the log.
    """

    def __init__(self, of: str) -> None:
        self._of = of
        self._watches: tuple[_Watch[Subject], ...] = ()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[_Watch[Subject], Subject] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._watches)

    def add(self, watcher: Callable[[Subject], None]) -> Callable[[], None]:
        """Calls `watcher` from now on; returns a function that stops this, safe to call twice."""
        # A command adds no watcher. It would take longer to import asyncio than to grant a session.
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        watch = _Watch(watcher, loop)
        with self._lock:
            if loop is None and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchers", daemon=True)
                self._thread.start()
            self._watches += (watch,)
        return lambda: self._remove(watch)

    def notify(self, subject: Subject) -> None:
        """Calls every watcher soon, without waiting for it."""
        for watch in self._watches:
            if watch.loop is None:
                self._queue.put((watch, subject))
                continue
            try:
                watch.loop.call_soon_threadsafe(self._deliver, watch, subject)
            except RuntimeError:  # the watcher's loop is closed
                self._remove(watch)

    def close(self) -> None:
        """Removes every watcher. Calls that the thread has still to make are made first."""
        with self._lock:
            self._watches, thread, self._thread = (), self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout=2)

    def _remove(self, watch: _Watch[Subject]) -> None:
        with self._lock:
            self._watches = tuple(other for other in self._watches if other is not watch)

    def _deliver(self, watch: _Watch[Subject], subject: Subject) -> None:
        if watch in self._watches:  # it may have been removed since
            watch.watcher(subject)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            watch, subject = item
            try:
                watch.watcher(subject)
            except Exception:
                # The edge: after one watcher's error the others must still be called for a
                # revocation, and this thread has no caller to raise the error to.
                logger.exception(f"A watcher of {self._of} failed for {subject}")
