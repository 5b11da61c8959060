"""Forgets the connections of clients that were removed from the kernel's sets."""

import logging
import queue
import threading
import time
from collections.abc import Collection

from capport.core.client import Address
from capport.linux import conntrack

REST = 9  # after a turn, rest for 9 times the processor time that it took

logger = logging.getLogger(__name__)


class Disconnections:
    """Forgets them on a thread, because a client may have thousands.

    Each turn takes all clients that were added during the turn before.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Collection[Address]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disconnections", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def add(self, addresses: Collection[Address]) -> None:
        """Makes the thread forget the connections of these clients; does not wait."""
        self._queue.put(addresses)

    def close(self) -> None:
        """Forgets what is left, and ends the thread."""
        self._closed.set()
        self._queue.put(())
        if self._thread.ident is not None:
            self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Forgets the connections of all clients that were added until now."""
        self._forget([])

    def _run(self) -> None:
        while not self._closed.is_set():
            some = [self._queue.get()]
            began = time.thread_time()
            self._forget(some)
            self._closed.wait(REST * (time.thread_time() - began))

    def _forget(self, some: list[Collection[Address]]) -> None:
        """Forgets the connections of `some`, and of all others that were added."""
        while not self._queue.empty():
            some.append(self._queue.get())
        addresses = {address for each in some for address in each}
        if not addresses:
            return
        try:
            conntrack.forget(addresses)
        except Exception as error:  # the edge of a thread that must not end; mostly OSError
            # The rules refuse their packets anyway, one by one.
            count = len(addresses)
            logger.warning(f"Cannot remove {count} addresses from conntrack: {error}")
