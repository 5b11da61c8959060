"""Deadlines: one instant for each key, the earliest first."""

import heapq
import math
from collections.abc import Iterator

from capport.core.session import Instant


class Deadlines[Key]:
    """A heap in which it is cheap to move a key to a later instant: that sets one dict entry.

    Traffic moves the end of a session all the time. So each key has one valid entry in the heap, at
    its instant or earlier. An entry that comes up too early is pushed again at the right instant.
    """

    def __init__(self) -> None:
        self._at: dict[Key, Instant] = {}
        self._entry: dict[Key, Instant] = {}  # each key's valid entry in the heap
        self._heap: list[tuple[Instant, int, Key]] = []
        self._order = 0  # decides between equal instants: keys need not be comparable

    def __len__(self) -> int:
        """How many entries are in memory, valid or not."""
        return len(self._heap)

    def set(self, key: Key, at: Instant) -> None:
        """Makes `key` fall due at `at`, in place of any instant that was set before."""
        self._at[key] = at
        if at < self._entry.get(key, math.inf):
            self._push(key, at)
        if len(self._heap) > 2 * len(self._at) + 64:
            self._rebuild()

    def drop(self, key: Key) -> None:
        """Makes `key` never fall due."""
        self._at.pop(key, None)

    @property
    def next(self) -> Instant:
        """The earliest instant at which `due` may yield a key; infinite if it is empty."""
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: Instant) -> Iterator[Key]:
        """Yields each key whose instant has come, and drops it."""
        while self.next <= now:
            entry, _, key = heapq.heappop(self._heap)
            if self._entry.get(key) != entry:
                continue
            del self._entry[key]
            at = self._at.get(key)
            if at is None:
                continue
            if at > now:
                self._push(key, at)
                continue
            del self._at[key]
            yield key

    def _push(self, key: Key, at: Instant) -> None:
        self._entry[key] = at
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, key))

    def _rebuild(self) -> None:
        """Removes the entries that are not valid any more."""
        self._heap, self._entry = [], {}
        for key, at in self._at.items():
            self._push(key, at)
