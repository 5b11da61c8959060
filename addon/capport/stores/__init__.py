"""Where sessions are kept: the protocol every store keeps."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from capport.core.client import ClientId
from capport.core.session import Instant, Session

type Watcher = Callable[[ClientId], None]
"""Called with each client whose session was put, extended or dropped, by whichever process.

It is called soon after the change (0.1 s for another process's), on the event loop that `watch`
was called on where there is one, else on a thread of the store's. It says that something changed,
not what: ask `find`. A session that ends by itself changes nothing in the store, so whoever must
act at that moment keeps a timer of its own, and asks again when it fires: the end may have moved.
"""


class StoreError(OSError):
    """A change that the store could not make durable; what was in force stays in force."""


class FullError(StoreError):
    """There is no place for one more session, so a new client gets none."""

    @classmethod
    def by_policy(cls, most: int) -> "FullError":
        """There are as many as the policy allows."""
        return cls(f"there are as many sessions as sessions.most allows: {most}")


class SessionStore(Protocol):
    """Sessions by client id, shared by every process that opens the same store.

    Any thread may call any of these. `put`, `drop` and `close` may wait for a disk or a network,
    for a few seconds at most: keep them off an event loop.
    """

    @property
    def fault(self) -> str | None:
        """Why nothing can be made durable now, None while it can."""

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """The open session that is filed under the first of `ids` that has one.

        From memory: it never waits for a disk or a network, and is asked on the event loop.
        """

    def put(self, session: Session, *, most: int | None = None) -> None:
        """Opens a session, or replaces the one with the same id (but `last_seen` never goes back).

        Durable on return; raises StoreError, and changes nothing, where it cannot be made so.
        FullError where it would be one more than `most`; those that are over count until they are
        cleared away. ValueError for a session whose times are no numbers.
        """

    def renew(self, session: Session) -> bool:
        """The same, where there is one with that id; whether there was: a revoked one stays so."""

    def drop(self, client: ClientId) -> bool:
        """Ends a session; whether there was one.

        In force at once, in this process and the others, also where it could not be made durable,
        which then raises StoreError.
        """

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was heard of, for `Session.idle`. Written back in batches.

        Wakes nothing that is over, and costs nothing for a session without `idle`.
        """

    def sessions(self) -> Iterator[Session]:
        """Each session, open or over and not yet cleared away."""

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Has `watcher` called on each change; returns what ends that."""

    def close(self) -> None:
        """Writes back what is due and lets go of everything; nobody is known afterwards."""
