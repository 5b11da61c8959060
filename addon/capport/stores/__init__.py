"""Where sessions are kept: the protocol that every store implements."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from capport.core.client import ClientId
from capport.core.session import Instant, Session

type Watcher = Callable[[ClientId], None]
"""A function that the store calls with each client whose session any process put or dropped.

The store calls it soon after the change (at most 0.1 s for a change by another process). If `watch`
was called on an event loop, the call is made on that loop, otherwise on a thread of the store. The
call says that the session changed, not how: ask `find`. A session that ends by itself changes
nothing in the store. A watcher that must act at that moment sets its own timer and asks `find`
again when the timer fires, because the end may have moved.
"""


class StoreError(OSError):
    """The store could not make a change durable. Only `drop` takes effect all the same."""


class FullError(StoreError):
    """The store has no room for one more session, so a new client gets none."""

    @classmethod
    def by_policy(cls, most: int) -> "FullError":
        """The error for a store that has as many sessions as the policy allows."""
        return cls(f"there are as many sessions as sessions.most allows: {most}")


class SessionStore(Protocol):
    """Sessions by client id, shared by every process that opens the same store.

    Any thread may call any method. `put`, `drop` and `close` may wait for a disk or a
    network, a few seconds at most: do not call them on an event loop.
    """

    @property
    def fault(self) -> str | None:
        """Why the store can make nothing durable now; None while it can."""

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one.

        It reads memory only, so it never waits and may be called on the event loop.
        """

    def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
        """Opens a session, or replaces the one with the same id (but `last_seen` never goes back).

        The session is durable on return. If the store cannot make it durable, it raises StoreError
        and changes nothing. It raises FullError if there would be more than `most` sessions, where
        ended ones count until they are removed, and ValueError if a time is not a number.

        With `renews`, it only replaces, so a session that was revoked stays revoked. It returns
        False if there was none to replace.
        """

    def drop(self, client: ClientId) -> bool:
        """Ends a session. Returns whether there was one.

        This takes effect at once, in this process and in the others. If the store cannot make it
        durable, it takes effect all the same, and StoreError says how far.
        """

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`, for `Session.idle`. Written in batches.

        It does not reopen a session that is over, and does nothing for one without `idle`.
        """

    def sessions(self) -> Iterator[Session]:
        """Yields each session: the open ones, and those that are over but not removed yet."""

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change from now on; returns a function that stops this."""

    def close(self) -> None:
        """Writes what is pending and frees everything; afterwards no client is known."""
