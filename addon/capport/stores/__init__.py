"""The protocols of what is stored: sessions, and the records that routers share."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from capport.core.client import ClientId
from capport.core.session import Instant, Session

type Watcher = Callable[[ClientId], None]
"""A function that the store calls with each client whose session any process put or revoked.

The store calls it soon after the change (at most 0.1 s for a change by another process). If `watch`
was called on an event loop, the call is made on that loop, otherwise on a thread of the store. The
call says that the session changed, not how: ask `find`. A session that ends by itself changes
nothing in the store. A watcher that must act at that moment sets its own timer and asks `find`
again when the timer fires, because the end may have moved.
"""


class StoreError(OSError):
    """The store cannot be used, or could not make a change durable.

    Of the changes, only `revoke` takes effect all the same.
    """


class FullError(StoreError):
    """The store has no room for one more session, so a new client gets none."""

    @classmethod
    def by_policy(cls, most: int) -> "FullError":
        """The error for a store that has as many sessions as the policy allows."""
        return cls(f"there are as many sessions as sessions.most allows: {most}")


class AwayError(StoreError):
    """What the routers of a fleet share cannot be read or changed now; the text says why."""


type Unreadable = dict[str, ValueError]
"""The records that do not fit their format: key and error."""


class Copy(Protocol):
    """A router's copy of the records that the routers share, on its disk.

    A record is a text under a key. Two records under one key can be joined into one. Any thread may
    call any method, and each may raise StoreError.
    """

    @property
    def router(self) -> str:
        """The id of this router."""

    def keys(self) -> list[str]:
        """Every key that has a record."""

    def unsent(self) -> list[str]:
        """The keys whose records say more than the other routers are known to have."""

    def lack(self, keys: Collection[str]) -> None:
        """Notes that the others have nothing under `keys`."""

    def joined(self, theirs: Mapping[str, str | None]) -> tuple[dict[str, str], Unreadable]:
        """The records under these keys, joined with those of the others; and what does not fit."""

    def keep(self, theirs: Mapping[str, str]) -> Unreadable:
        """Joins records that the others have into the copy. Returns what does not fit."""

    def until(self, record: str) -> int:
        """Until when the others need a record, in milliseconds of their common clock; 0: always."""

    def roster(self) -> tuple[str, dict[str, str]]:
        """The generation of the shared data, and each router's last sign of life in it.

        Each of these routers may know something that this one does not.
        """

    def looked(self, now: int, generation: str, roster: Mapping[str, str]) -> None:
        """Keeps the roster, and forgets what has ended. Call it when all was read, at `now`."""


type Rewrite = Callable[[dict[str, str], int], dict[str, str]]
"""Returns new records, given the present ones and the time in milliseconds.

Records that it does not return stay as they are.
"""


class Book(Protocol):
    """The records that the routers of a fleet share. Its methods may wait a few seconds."""

    @property
    def fault(self) -> str | None:
        """Why nothing can be changed now; None while it can."""

    def look(self) -> bool:
        """Connects if needed, reads what changed, and sends what this router alone knows.

        Call it each second. Returns whether it is connected. Even then `fault` may name a router
        that must be waited for.
        """

    def change(self, keys: Sequence[str], change: Rewrite, *, completely: bool = True) -> None:
        """Changes the records under `keys` in one step: all of them, or none.

        On return they are in the copy too. Raises AwayError if that cannot be done now. With
        `completely`, it also does so while some router may know more than the shared records say.
        """

    def close(self) -> None:
        """Closes the connection."""


class SessionStore(Protocol):
    """Sessions by client id, shared by every process that opens the same store.

    Any thread may call any method. `put`, `revoke` and `close` may wait for a disk or a
    network, a few seconds at most: do not call them on an event loop.
    """

    @property
    def fault(self) -> str | None:
        """Why the store can make nothing durable now; None while it can."""

    @property
    def lease(self) -> Instant:
        """Until when sessions that other routers granted are in force; infinite without a fleet."""

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

    def revoke(self, client: ClientId) -> bool:
        """Ends a session. Returns whether there was one.

        This takes effect at once, in this process and in the others. If the store cannot make it
        durable, it takes effect all the same, and StoreError says how far.
        """

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`, for `Session.idle`. Written in batches.

        It does not reopen a session that is over, and does nothing for one without `idle`.
        """

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields each session: the open ones, and those that are over but not removed yet.

        With `about`, it yields those whose id is one of these MACs and addresses, or has one in it.
        Without it, 100 000 sessions take 0.3 s: on an event loop, take some at a time.
        """

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change from now on; returns a function that stops this."""

    def close(self) -> None:
        """Writes what is pending and frees everything; afterwards no client is known."""


def not_everywhere(store: SessionStore) -> str | None:
    """Why the other routers do not know of a change yet; None if they do, or there are none."""
    return store.fault if store.lease < math.inf else None
