"""`capport clients`: who is known by a session, since when, until when, by what."""

import contextlib
import json
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

from capport import clock
from capport.commands import chosen_policy, existing_store, store_url
from capport.commands.display import cells, duration, fitted, rfc3339, short_moment
from capport.core.client import is_random, parse_address, parse_mac
from capport.core.session import Instant, Session

_WIDTH = 80
_MADE_UP = "~"
_GAP = "  "
_TITLES = ("CLIENT", "NAME", "SINCE", "UNTIL", "LEFT", "HOW")
_NAME, _HOW = 8, 12  # columns that are left for these at least


def clients(arguments: Namespace) -> None:
    """Prints them, whoever goes first at the top; nobody is there once a session is over."""
    policy = chosen_policy(arguments)
    store = existing_store(store_url(arguments, policy))
    now, wall = clock.now(), time.time()
    sessions: list[Session] = []
    if store is not None:
        with contextlib.closing(store):
            sessions = [session for session in store.sessions() if session.is_open(now)]
    sessions.sort(key=lambda session: (session.ends, session.client))
    if arguments.json:
        print(json.dumps([document(session, now, wall) for session in sessions], indent=2))
    elif not sessions:
        print("Nobody has a session.")
    else:
        for line in table(sessions, now, wall):
            print(line)


def document(session: Session, now: Instant, wall: float) -> dict[str, object]:
    """A session for programs. Members are added to it, never changed.

    Times are RFC 3339 in UTC, reckoned by this machine's wall clock; `seconds_remaining` is what
    counts. `expires` is when it ends for certain, `ends` when it does if the client stays silent.
    """
    mac, address = _split(session)
    return {
        "client": session.client,
        "mac": mac,
        "address": address,
        "random_mac": is_random(parse_mac(mac)) if mac else None,
        "name": session.name,
        "granted": rfc3339(session.granted_at),
        "expires": rfc3339(wall + session.expires - now),
        "ends": rfc3339(wall + session.ends - now),
        "idle": session.idle,
        "seconds_remaining": session.seconds_remaining(now),
        "by": session.by,
        "how": session.how,
    }


def table(sessions: Sequence[Session], now: Instant, wall: float) -> Iterator[str]:
    """For people: at most 80 columns. An id that is too long for its own has a line to itself."""
    rows = [_TITLES, *(_cells_of(session, now, wall) for session in sessions)]
    widths = _widths(rows)
    for client, *rest in rows:
        if len(client) > widths[0]:
            yield client
            client = ""
        yield _GAP.join(map(fitted, (client, *rest), widths)).rstrip()
    if any(client.endswith(_MADE_UP) for client, *_ in rows):
        yield f"{_MADE_UP} a MAC address that the device made up"


def _cells_of(session: Session, now: Instant, wall: float) -> tuple[str, ...]:
    mac, _ = _split(session)
    return (
        f"{session.client}{_MADE_UP if mac and is_random(parse_mac(mac)) else ''}",
        session.name,
        short_moment(session.granted_at, wall),
        short_moment(wall + session.ends - now, wall),
        duration(session.ends - now),
        ", ".join(filter(None, (session.how, session.by))),
    )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """What each column needs, if there is room: HOW gives way first, then names, then ids."""
    client, name, *times, how = (max(map(cells, column)) for column in zip(*rows, strict=True))
    room = _WIDTH - (len(_TITLES) - 1) * len(_GAP) - sum(times)
    how = min(how, max(_HOW, room - client - name))
    room -= how
    client = min(client, room - min(name, _NAME))
    return [client, min(name, room - client), *times, how]


def _split(session: Session) -> tuple[str | None, str | None]:
    """The MAC and the address in its id."""
    mac, at, address = session.client.partition("@")
    if at:
        return mac, address
    try:
        return None, str(parse_address(session.client))
    except ValueError:
        return session.client, None
