"""Where sessions are kept: the protocol every store keeps, and the way from a URL to a store."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from capport.core.client import Address, ClientId, Mac
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


def default_store() -> str:
    """Where sessions are kept if nobody says: a file in the user's state directory.

    XDG Base Directory Specification: an empty or relative XDG_STATE_HOME counts as none. Raises
    StoreError where the user has no such directory, being in no list of users.
    """
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        state = home if home.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        raise StoreError(
            "no file for sessions: this user has no home; name one, or set XDG_STATE_HOME"
        ) from None
    return str(state / "capport" / "sessions.db")


def open_store(
    url: str,
    *,
    make: bool = True,
    start_closed: bool = False,
    about: Collection[Mac | Address] | None = None,
) -> SessionStore:
    """The store at a path, `sqlite:///PATH` or `:memory:`. Raises StoreError.

    A file that is missing is made, with `make`. With `start_closed` one that cannot be used is no
    error: it is logged, nobody is known, grants fail and revocations are noted beside it, until a
    file appears that can be used. With `about`, no sessions are found but those filed under one of
    these, alone or bound together: as quick with a million sessions as with ten.
    """
    path = store_path(url)
    if path is None:
        from capport.stores.memory import MemoryStore

        return MemoryStore()
    from capport.stores.sqlite.store import SqliteStore

    make_folder = _is_default(path)
    return SqliteStore(
        path,
        make=make,
        make_folder=make_folder and make,
        start_closed=start_closed,
        about=about,
    )


def _is_default(path: Path) -> bool:
    try:
        return path == Path(default_store())
    except StoreError:
        return False


def was_in_use(path: Path) -> bool:
    """Whether there is, or was, a store in the file at `path`: whoever has it open keeps a journal.

    Where the file alone is gone, a revocation is noted there for them.
    """
    return path.exists() or Path(f"{path}-revoked").exists()


def store_path(url: str) -> Path | None:
    """The file that the store at `url` is in, None for `:memory:`. Raises StoreError."""
    if url == ":memory:":
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        path = Path(url)
    elif scheme == "sqlite":
        # sqlite:////var/s.db is how others write it; a path that starts with // is another one.
        path = Path(rest[1:] if rest.startswith("//") else rest)
        if not path.is_absolute():
            raise StoreError(f"{url}: a relative path; write sqlite:///var/lib/capport/sessions.db")
    elif scheme in ("redis", "rediss"):
        raise StoreError(f"{url}: not built yet; use sqlite:///PATH")
    else:
        raise StoreError(f"{url}: no store of ours; use a path, sqlite:///PATH or :memory:")
    if not url or path.name in ("", ".."):
        raise StoreError(f"{url!r}: names no file; use a path, sqlite:///PATH or :memory:")
    return path
