"""The way from a URL to a store, and where the store is if nobody says."""

import os
from collections.abc import Collection
from pathlib import Path

from capport.core.client import Address, Mac
from capport.stores import SessionStore, StoreError
from capport.stores.memory import MemoryStore


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
