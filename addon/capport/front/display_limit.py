"""Decides which refusals mitmproxy shows, so that a flood of them costs it nothing.

What is shown becomes a flow, which costs a millisecond and stays in memory. So one token bucket
bounds all clients together, and a bucket for each client keeps it from using up the others' share.
"""

from collections import Counter
from typing import Final

from capport.core import rates
from capport.core.bounded_map import BoundedMap
from capport.core.client import Client, ClientId
from capport.core.policy import Rate

BURST: Final = 5
"""Seconds' worth of flows that may be shown at once."""
SHARE: Final = 4
"""One client gets at most the whole divided by this."""
WATCHED: Final = Rate(100, BURST)
"""What a watched client gets. It does not count against what all clients get."""
CLIENTS: Final = 4096
"""The most clients that have a bucket and a count of their own."""

_ALL: Final = ClientId("")


class DisplayLimit:
    """Says for each refusal whether it is shown: on average at most `a_second`, or none if 0."""

    def __init__(self, a_second: int) -> None:
        self.set_rate(a_second)
        self._buckets = BoundedMap[ClientId, float](CLIENTS)
        self._hidden = Counter[ClientId]()

    def set_rate(self, a_second: int) -> None:
        """Changes how many are shown."""
        self.a_second = a_second
        self._all = Rate(a_second * BURST, BURST)
        self._one = Rate(max(1, a_second * BURST // SHARE), BURST)

    def may_show(self, client: Client, now: float, *, watched: bool = False) -> bool:
        """Whether to show a refusal of `client` at the time `now`. It then counts as shown."""
        if watched:
            return self._spend(client.id, WATCHED, now)
        if not self.a_second:
            return False
        if self._spend(client.id, self._one, now) and self._spend(_ALL, self._all, now):
            return True
        has_room = len(self._hidden) < CLIENTS or client.id in self._hidden
        self._hidden[client.id if has_room else _ALL] += 1
        return False

    def take_hidden(self) -> Counter[ClientId]:
        """How many refusals of each client were not shown since the last call."""
        hidden, self._hidden = self._hidden, Counter()
        return hidden

    def _spend(self, client: ClientId, rate: Rate, now: float) -> bool:
        bucket, wait = rates.spend(self._buckets.get(client, rates.FULL), rate, now)
        self._buckets[client] = bucket
        return wait is None
