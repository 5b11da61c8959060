"""The commands of `capport`, one module for each group; cli.py imports only the one that runs.

Login servers and scripts start one `capport grant` for each client, so it imports as little as
possible.
"""

import sys
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from capport.core.client import Address, Mac
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.session import Instant, Session, open_ones
from capport.stores import SessionStore, not_everywhere
from capport.stores.memory import MemoryStore
from capport.stores.opening import is_there, open_store, store_path, store_url, was_in_use


class CommandError(Exception):
    """A command failed; the message is printed to stderr, and says why."""


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def warn_if_alone(store: SessionStore) -> None:
    """Warns if the other routers of a fleet do not know of the change yet."""
    if (fault := not_everywhere(store)) is not None:
        warn(f"not everywhere yet: {fault}")


def policy_at(path: str) -> Policy:
    """The policy in a file. Raises CommandError with every error in it."""
    from capport.policy.policy_file import PolicyError, load

    try:
        return load(Path(path))
    except PolicyError as error:
        raise CommandError(str(error)) from None


def chosen_policy(arguments: Namespace) -> Policy:
    """The policy of `--policy`; without it, a policy with the built-in defaults.

    The default policy file sets nothing about sessions, and a test makes sure of that. So the file
    is not read, and YAML is not imported: that would take half as long as all other imports.
    """
    if arguments.policy is not None:
        return policy_at(arguments.policy)
    return Policy(login_url="", login_place=Place("", 0))


def writable_store(url: str, *, about: Collection[Mac | Address] | None = None) -> SessionStore:
    """The store at `url`, created if it does not exist. Raises CommandError, StoreError.

    `about`, here and below: whose sessions the command needs (see `open_store`).
    """
    _file_of(url)
    return open_store(url, about=about)


def existing_store(
    url: str, *, start_closed: bool = False, about: Collection[Mac | Address] | None = None
) -> SessionStore | None:
    """The store at `url`; None if it does not exist. Raises CommandError, StoreError.

    For commands that only read or end sessions: they do not create a file. With `start_closed`, a
    store that is gone or cannot be used is opened too, and knows no client.
    """
    path = _file_of(url)
    if not (is_there(url) or (start_closed and was_in_use(path))):
        return None
    return open_store(url, make=False, start_closed=start_closed, about=about)


def store_to_read(given: str | None, policy: Policy) -> SessionStore:
    """The store that `--sessions` names, which must exist; without it the policy's, if it exists.

    A store that does not exist yet has no sessions. Raises CommandError, StoreError.
    """
    store = existing_store(store_url(given, policy))
    if store is None and given is not None:
        raise CommandError(f"there is no {given}; name the portal's store, or leave --sessions out")
    return store or MemoryStore()


def open_sessions(store: SessionStore, now: Instant) -> list[Session]:
    """The open sessions of a store. Warns if those of other routers may be missing."""
    if (fault := not_everywhere(store)) is not None:
        warn(f"sessions of other routers may be missing: {fault}")
    return open_ones(store.sessions(), now)


def _file_of(url: str) -> Path:
    path = store_path(url)
    if path is None:
        raise CommandError(
            f"{url} is in the memory of one process; name the portal's store: --sessions PATH"
        )
    return path
