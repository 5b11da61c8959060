"""Telling whoever watches a store that a session changed, each where it wants to hear it."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from capport.core.client import ClientId
from capport.stores import Watcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class _Watch:
    watcher: Watcher
    loop: asyncio.AbstractEventLoop | None


class Watchers:
    """Calls each watcher on the event loop it came from, or on one thread for all that had none.

    So a watcher that dawdles holds up neither the change nor the store.
    """

    def __init__(self) -> None:
        self._watches: tuple[_Watch, ...] = ()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[_Watch, ClientId] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._watches)

    def add(self, watcher: Watcher) -> Callable[[], None]:
        """Has `watcher` called from now on; returns what ends that, which may be called twice."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        watch = _Watch(watcher, loop)
        with self._lock:
            if loop is None and self._thread is None:
                self._thread = threading.Thread(target=self._call, name="watchers", daemon=True)
                self._thread.start()
            self._watches += (watch,)
        return lambda: self._remove(watch)

    def tell(self, client: ClientId) -> None:
        """Calls every watcher, soon."""
        for watch in self._watches:
            if watch.loop is None:
                self._queue.put((watch, client))
                continue
            try:
                watch.loop.call_soon_threadsafe(self._deliver, watch, client)
            except RuntimeError:  # its loop is closed
                self._remove(watch)

    def close(self) -> None:
        """Lets go of every watcher, after those on the thread have heard what was still due."""
        with self._lock:
            self._watches, thread, self._thread = (), self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout=2)

    def _remove(self, watch: _Watch) -> None:
        with self._lock:
            self._watches = tuple(other for other in self._watches if other is not watch)

    def _deliver(self, watch: _Watch, client: ClientId) -> None:
        if watch in self._watches:  # it may have been ended since
            watch.watcher(client)

    def _call(self) -> None:
        while (item := self._queue.get()) is not None:
            watch, client = item
            try:
                watch.watcher(client)
            except Exception:
                # The edge: one watcher's mistake must not keep the others from hearing of a
                # revocation, and there is nobody above this thread to raise it to.
                logger.exception("A watcher of the session store failed for %s", client)
