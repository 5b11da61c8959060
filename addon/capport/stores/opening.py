"""Chooses the URL of the session store, and opens the store that a URL names."""

import os
from collections.abc import Collection
from pathlib import Path

from capport.core.client import Address, Mac
from capport.core.policy import Policy
from capport.extras import lacking
from capport.stores import Book, Copy, SessionStore, StoreError
from capport.stores.memory import MemoryStore
from capport.stores.redis_url import is_redis, parse_redis_url


def default_store() -> str:
    """The path of the default store: a file in the user's state directory.

    XDG Base Directory Specification: an empty or relative XDG_STATE_HOME counts as not set. Raises
    StoreError if the system knows no home directory of this user.
    """
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        state = home if home.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        raise StoreError(
            "this user has no home directory for sessions; name a file, or set XDG_STATE_HOME"
        ) from None
    return str(state / "capport" / "sessions.db")


def store_url(given: str | None, policy: Policy) -> str:
    """The session store's URL: the one that is `given`, else the policy's, else the default.

    "" counts as given, and opening it fails. Raises StoreError like `default_store`.
    """
    return policy.sessions.store or default_store() if given is None else given


def open_store(
    url: str,
    *,
    make: bool = True,
    start_closed: bool = False,
    about: Collection[Mac | Address] | None = None,
    follows: bool = False,
) -> SessionStore:
    """Opens the store at a path, at `sqlite:///PATH`, at `redis://HOST:PORT/DB` or in `:memory:`.

    Raises StoreError.

    With `make`, a missing file is created. With `start_closed`, a file that cannot be used is not
    an error: it is logged, and until a usable file appears, no client is known, grants fail, and
    revocations are written to a journal beside it. With `about`, the store finds only sessions
    whose id is or contains one of these addresses; that takes as long with a million sessions as
    with ten. With `follows`, another process of this router tells Redis what this router knows.
    """
    path = store_path(url)
    if path is None:
        return MemoryStore()
    if is_redis(url) and (lacks := lacking("redis")):
        raise StoreError(f"{url}: {lacks}")
    from capport.stores.sqlite.store import SqliteStore

    make = make or is_redis(url)
    make_folder = make and _is_default(path)

    def own(about: Collection[Mac | Address] | None = about) -> SqliteStore:
        return SqliteStore(
            path, make=make, make_folder=make_folder, start_closed=start_closed, about=about
        )

    if not is_redis(url):
        return own()
    from capport.stores.redis.closed_store import ClosedStore
    from capport.stores.redis.redis_store import RedisStore

    def shared() -> RedisStore:
        return RedisStore(parse_redis_url(url), path, own(), about=about, follows=follows)

    try:
        return shared()
    except StoreError as error:
        if not start_closed:
            raise
        return ClosedStore(path, own(about=()), shared, error)


def open_book(url: str, copy: Copy) -> Book:
    """The records that the routers share in the Redis at `url`. It connects at the first `look`.

    Raises StoreError.
    """
    if lacks := lacking("redis"):
        raise StoreError(f"{url}: {lacks}")
    from capport.stores.redis.record_book import RecordBook

    return RecordBook(parse_redis_url(url), copy)


def _is_default(path: Path) -> bool:
    try:
        return path == Path(default_store())
    except StoreError:
        return False


def is_there(url: str) -> bool:
    """Whether there is a store at `url`. Sessions in Redis are there, whatever this router has."""
    path = store_path(url)
    return is_redis(url) or (path is not None and path.exists())


def was_in_use(path: Path) -> bool:
    """Whether there is or was a store in the file at `path`.

    Each process that opens a store makes a journal beside it. If only the database is gone, a
    revocation is written to that journal, and the processes that have the store open read it there.
    """
    return path.exists() or Path(f"{path}-revoked").exists()


def store_path(url: str) -> Path | None:
    """The file of the store at `url`; None for `:memory:`. Raises StoreError.

    With Redis, it is the file of the sessions that this router grants.
    """
    if url == ":memory:":
        return None
    if is_redis(url):
        try:
            return Path(parse_redis_url(url).file or default_store())
        except ValueError as error:
            raise StoreError(str(error)) from None
    scheme, separator, rest = url.partition("://")
    if not separator:
        path = Path(url)
    elif scheme == "sqlite":
        # Other programs write sqlite:////var/s.db. POSIX gives a path that starts with // its own
        # meaning, so one slash is removed.
        path = Path(rest[1:] if rest.startswith("//") else rest)
        if not path.is_absolute():
            raise StoreError(f"{url}: a relative path; write sqlite:///var/lib/capport/sessions.db")
    else:
        raise StoreError(
            f"{url}: not a kind of store; use a path, sqlite:///PATH, redis://HOST:PORT/DB or"
            " :memory:"
        )
    if not url or path.name in ("", ".."):
        raise StoreError(f"{url!r}: names no file; use a path, sqlite:///PATH or :memory:")
    return path
