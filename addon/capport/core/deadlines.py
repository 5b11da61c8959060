"""What falls due when: one instant for each key, and the earliest first."""

import heapq
import math
from collections.abc import Iterator

from capport.core.session import Instant


class Deadlines[Key]:
    """A heap that puts off cheaply: a later instant for a key that is in it costs a dict entry.

    Traffic puts the end of a session off all the time. So the heap has one entry that counts for
    each key, at its instant or before it, and what comes up too early goes back in.
    """

    def __init__(self) -> None:
        self._at: dict[Key, Instant] = {}
        self._entry: dict[Key, Instant] = {}  # the one in the heap that counts
        self._heap: list[tuple[Instant, int, Key]] = []
        self._order = 0  # keys need not be comparable

    def __len__(self) -> int:
        """Entries in memory: those that count, and those that do not any more."""
        return len(self._heap)

    def set(self, key: Key, at: Instant) -> None:
        """`key` falls due at `at`, and at no other instant any more."""
        self._at[key] = at
        if at < self._entry.get(key, math.inf):
            self._push(key, at)
        if len(self._heap) > 2 * len(self._at) + 64:
            self._rebuild()

    def drop(self, key: Key) -> None:
        """`key` never falls due."""
        self._at.pop(key, None)

    @property
    def next(self) -> Instant:
        """When `due` may have something to yield: at that instant or later. Infinite: never."""
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: Instant) -> Iterator[Key]:
        """Each key whose instant has come, once: it is dropped."""
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
        """Leaves out the entries that do not count any more."""
        self._heap, self._entry = [], {}
        for key, at in self._at.items():
            self._push(key, at)
