"""Lets clients take turns: strangers' work waits here, and each client in turn gets a piece done.

So a client with a thousand connections delays only itself. Another client waits for at most one
piece of its work.
"""

from collections import OrderedDict, deque


class Turns[Key, Work]:
    """Work that waits, by client."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Key, deque[Work]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, client: Key) -> int:
        """How many pieces of one client's work wait."""
        return len(self._waiting.get(client, ()))

    def add(self, client: Key, work: Work) -> None:
        """Puts `work` behind the client's other work."""
        self._count += 1
        self._waiting.setdefault(client, deque()).append(work)

    def next(self) -> Work:
        """Takes the oldest work of the client whose turn it is. Raises KeyError if none waits."""
        client, its = self._waiting.popitem(last=False)
        self._count -= 1
        work = its.popleft()
        if its:
            self._waiting[client] = its
        return work

    def drop_oldest(self, client: Key) -> Work:
        """Removes and returns the oldest work of a client that has too much."""
        its = self._waiting[client]
        self._count -= 1
        work = its.popleft()
        if not its:
            del self._waiting[client]
        return work
