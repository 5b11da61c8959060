"""`capport sessions export` and `import`: sessions from one store to another, as JSON Lines.

Times are Unix seconds, because instants mean nothing on another machine.
"""

import contextlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

from capport import clock
from capport.commands import (
    CommandError,
    chosen_policy,
    existing_store,
    open_sessions,
    warn_if_alone,
    writable_store,
)
from capport.core.client import parse_client_id
from capport.core.session import LONGEST, Instant, Session, open_ones
from capport.stores.opening import store_url

_TIMES = ("granted", "expires", "last_seen")
_TEXTS = ("by", "how", "name")
_LONGEST_LINE = 16_384


def export(arguments: Namespace) -> None:
    """Prints each open session of the store as one line."""
    url = store_url(arguments.sessions, chosen_policy(arguments))
    store = existing_store(url)
    if store is None:
        raise CommandError(f"there is no {url}")
    with contextlib.closing(store):
        now, wall = clock.now(), time.time()
        for session in sorted(open_sessions(store, now), key=lambda one: one.client):
            print(json.dumps(as_document(session, now, wall)))


def bring(arguments: Namespace) -> None:
    """Puts the sessions of a file, or of stdin, into the store. Checks all lines before that.

    If the store has a session of the same client that ends no earlier, that one stays.
    """
    policy = chosen_policy(arguments)
    name = arguments.file or "stdin"
    with _opened(arguments.file) as lines:
        try:
            found = list(parsed(lines, name, clock.now(), time.time()))
        except UnicodeDecodeError:
            raise CommandError(f"{name}: not UTF-8; nothing is imported") from None
    url = store_url(arguments.sessions, policy)
    with contextlib.closing(writable_store(url)) as store:
        now, brought, longer = clock.now(), 0, 0
        current = open_ones(found, now)
        for session in current:
            before = store.find((session.client,), now)
            if before is not None and before.expires >= session.expires:
                longer += 1
                continue
            store.put(session, most=policy.sessions.most)
            brought += 1
        print(
            f"{brought} sessions are imported; {longer} were there already, and last as long or"
            f" longer; {len(found) - len(current)} were over"
        )
        warn_if_alone(store)


def as_document(session: Session, now: Instant, wall: float) -> dict[str, object]:
    """A session with all that a store keeps of it."""
    return {
        "client": session.client,
        "granted": round(wall + session.granted - now, 3),
        "expires": round(wall + session.expires - now, 3),
        "idle": session.idle,
        "last_seen": round(wall + max(session.last_seen, session.granted) - now, 3),
        "by": session.by,
        "how": session.how,
        "name": session.name,
    }


def _opened(path: str | None) -> contextlib.AbstractContextManager[TextIO]:
    if path is None or path == "-":
        return contextlib.nullcontext(sys.stdin)
    return open(path, encoding="utf-8")  # noqa: PTH123


def parsed(lines: TextIO, name: str, now: Instant, wall: float) -> Iterator[Session]:
    """Yields the session of each line. Raises CommandError for a line that is not a session."""
    for number, line in enumerate(iter(partial(lines.readline, _LONGEST_LINE), ""), 1):
        if not line.strip():
            continue
        try:
            yield _session(json.loads(line), now, wall)
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{name}:{number}: {error}; nothing is imported") from None


def _session(found: Any, now: Instant, wall: float) -> Session:
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    needed = {"client", "idle", *_TIMES, *_TEXTS}
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"{missing[0]} is missing")
    if unknown := sorted(found.keys() - needed):
        raise ValueError(f"{unknown[0]} is not known")
    granted, expires, last_seen = (_number(name, found[name]) - wall + now for name in _TIMES)
    if expires - granted > LONGEST:
        raise ValueError(f"expires is more than {LONGEST} seconds after granted")
    idle = None if found["idle"] is None else _number("idle", found["idle"])
    if not isinstance(found["client"], str):
        raise ValueError("client is not a text")
    client, granted_at = parse_client_id(found["client"]), _number("granted", found["granted"])
    by, how, name = (_text(name, found[name]) for name in _TEXTS)
    return Session(client, granted, expires, idle, last_seen, granted_at, by, how, name)


def _number(name: str, found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= 1e11:
        raise ValueError(f"{name} is not a number of seconds")
    return float(found)


def _text(name: str, found: Any) -> str:
    if isinstance(found, str) and len(found) <= 1000 and "\0" not in found:
        with contextlib.suppress(UnicodeEncodeError):
            return found.encode().decode()
    raise ValueError(f"{name} is not a text of at most 1000 characters")
