"""The one road from a change of a session to everything that enforces or reports it."""

from collections.abc import Callable
from dataclasses import dataclass

from capport.core.client import ClientId

type Hear = Callable[[ClientId], object]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Hears of each change through `changed`, which does not wait, on any thread.

    `carry_out`, if it has one, has put the change in force when it returns. It raises StoreError
    where there is no room for the session.
    """

    changed: Hear
    carry_out: Hear | None = None


class SessionChanges:
    """Calls its subscribers, in order, once the store has committed a change.

    The store reports each change with `changed`, whichever process made it. The gate waits in
    `carry_out` for those of its own: each subscriber that can refuse a session has then taken it.
    """

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def subscribe(self, *subscribers: Subscriber) -> None:
        """Adds these behind those that are there."""
        self._subscribers += subscribers

    def changed(self, client: ClientId) -> None:
        """Something about a session of `client` has changed."""
        for subscriber in self._subscribers:
            subscriber.changed(client)

    def carry_out(self, client: ClientId) -> None:
        """Returns when the change is in force. Raises StoreError where there is no room for it."""
        for subscriber in self._subscribers:
            if subscriber.carry_out is not None:
                subscriber.carry_out(client)
