"""Passes each change of a session to everything that enforces or reports it."""

from collections.abc import Callable
from dataclasses import dataclass

from capport.core.client import ClientId

type Listener = Callable[[ClientId], object]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """What enforces or reports changes of sessions.

    `changed` is called for each change, on any thread, and must not wait. `carry_out`, if it has
    one, puts the change into force before it returns; it raises StoreError if there is no room for
    the session.
    """

    changed: Listener
    carry_out: Listener | None = None


class SessionChanges:
    """Calls its subscribers, in order, after the store has committed a change.

    The store calls `changed` for each change, whichever process made it. The gate calls `carry_out`
    for its own changes, and waits until each subscriber has put the change into force.
    """

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def subscribe(self, *subscribers: Subscriber) -> None:
        """Adds `subscribers` after the earlier ones."""
        self._subscribers += subscribers

    def changed(self, client: ClientId) -> None:
        """Calls the subscribers, because a session of `client` has changed."""
        for subscriber in self._subscribers:
            subscriber.changed(client)

    def carry_out(self, client: ClientId) -> None:
        """Returns when the change is in force. Raises StoreError if there is no room for it."""
        for subscriber in self._subscribers:
            if subscriber.carry_out is not None:
                subscriber.carry_out(client)
