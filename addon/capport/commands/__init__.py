"""The commands behind `capport`, one module for each; imported when one is asked for, not before.

`capport grant` is run by login servers and scripts, a process for each client, so what it need not
import it does not.
"""

from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from capport.core.client import Address, Mac
from capport.core.place import Place
from capport.core.policy import Policy
from capport.stores import SessionStore
from capport.stores.opening import default_store, open_store, store_path, was_in_use


class CommandError(Exception):
    """A command that could not do what it was asked to: the one line that says why."""


def policy_at(path: str) -> Policy:
    """The policy in a file. Raises CommandError with every error in it."""
    from capport.policy.policy_file import PolicyError, load

    try:
        return load(Path(path))
    except PolicyError as error:
        raise CommandError(str(error)) from None


def chosen_policy(arguments: Namespace) -> Policy:
    """The policy by `--policy`, else what of the default one a session has to do with.

    That says nothing of sessions (a test holds it to that), so the file, and with it YAML, which
    takes half as long to import as all else, can stay away.
    """
    if arguments.policy is not None:
        return policy_at(arguments.policy)
    return Policy(login_url="", login_place=Place("", 0))


def store_url(arguments: Namespace, policy: Policy) -> str:
    """Where sessions are kept, chosen as the addon does: `--sessions`, the policy, the default."""
    if arguments.sessions is not None:  # "" is a store that was named, and names no file
        return str(arguments.sessions)
    return policy.sessions.store or default_store()


def writable_store(url: str, *, about: Collection[Mac | Address] | None = None) -> SessionStore:
    """The store at `url`, made if it is not there. Raises CommandError, StoreError.

    `about`, here and below: the sessions of these are all that is needed (`open_store`).
    """
    _shared(url)
    return open_store(url, about=about)


def existing_store(
    url: str, *, start_closed: bool = False, about: Collection[Mac | Address] | None = None
) -> SessionStore | None:
    """The store at `url`, None where there is none. Raises CommandError, StoreError.

    Who only looks makes no file.
    """
    path = _shared(url)
    if not (was_in_use(path) if start_closed else path.exists()):
        return None
    return open_store(url, make=False, start_closed=start_closed, about=about)


def _shared(url: str) -> Path:
    path = store_path(url)
    if path is None:
        raise CommandError(
            f"{url} is in the memory of one process; name the portal's store: --sessions PATH"
        )
    return path
