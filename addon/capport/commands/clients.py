"""`capport clients`: which clients are known, from when, until when, and by what."""

import contextlib
import json
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from capport import clock
from capport.commands import chosen_policy, open_sessions, store_to_read
from capport.core.client import Mac, is_random
from capport.core.policy import ClientRule, Network
from capport.core.session import Instant, Session
from capport.core.standing import known_by_rule, known_sessions
from capport.session_view import MADE_UP, TITLES, cells_of, document
from capport.terminal import GAP, cells, rows_in_columns

_WIDTH = 80
_BY_RULE = "client rule"
_NAME, _HOW = 8, 14  # the narrowest that these columns become


def clients(arguments: Namespace) -> None:
    """Prints the sessions and the client rules that make clients known, by `--policy`.

    The next session to end is the first. The rules are in the order of the policy.
    """
    policy = chosen_policy(arguments)
    now, wall = clock.now(), time.time()
    with contextlib.closing(store_to_read(arguments.sessions, policy)) as store:
        sessions = [*known_sessions(open_sessions(store, now), policy, now)]
    sessions.sort(key=lambda session: (session.expires, session.client))
    rules = [*known_by_rule(policy)]
    if arguments.json:
        documents = [document(session, now, wall) for session in sessions]
        documents += [document_of_rule(subject, rule) for subject, rule in rules]
        print(json.dumps(documents, indent=2))
    elif not sessions and not rules:
        print("Nobody has a session.")
    else:
        for line in table(sessions, now, wall, rules):
            print(line)


def document_of_rule(subject: Mac | Network, rule: ClientRule) -> dict[str, object]:
    """A client rule with the members of a session: no times, and `by` is the rule's FILE:LINE.

    `client` is a MAC address, an address or a network; of a network, `mac` and `address` are null.
    """
    mac = subject if isinstance(subject, str) else None
    return {
        "client": _shown(subject),
        "mac": mac,
        "address": None if mac or "/" in _shown(subject) else _shown(subject),
        "random_mac": is_random(mac) if mac else None,
        "name": rule.name or "",
        **dict.fromkeys(("granted", "expires", "ends", "idle", "seconds_remaining")),
        "by": rule.where,
        "how": _BY_RULE,
    }


def table(
    sessions: Sequence[Session],
    now: Instant,
    wall: float,
    rules: Sequence[tuple[Mac | Network, ClientRule]] = (),
) -> Iterator[str]:
    """The lines for people, at most 80 columns; an id that is too long gets a line of its own."""
    known = [cells_of(session, now, wall) for session in sessions]
    rows = [TITLES, *known, *(_cells_of_rule(subject, rule) for subject, rule in rules)]
    widths = _widths(rows)
    for client, *rest in rows:
        if len(client) > widths[0]:
            yield client
            client = ""
        yield from rows_in_columns([(client, *rest)], widths)
    if any(client.endswith(MADE_UP) for client, *_ in rows):
        yield f"{MADE_UP} a MAC address that the device made up"


def _cells_of_rule(subject: Mac | Network, rule: ClientRule) -> tuple[str, ...]:
    made_up = MADE_UP if isinstance(subject, str) and is_random(subject) else ""
    return f"{_shown(subject)}{made_up}", rule.name or "", "", "", "always", Path(rule.where).name


def _shown(subject: Mac | Network) -> str:
    """A subject as text; a network of one address as that address."""
    if isinstance(subject, str) or subject.num_addresses > 1:
        return str(subject)
    return str(subject.network_address)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column; if room is short, HOW shrinks first, then NAME, then CLIENT."""
    client, name, *times, how = (max(map(cells, column)) for column in zip(*rows, strict=True))
    room = _WIDTH - (len(TITLES) - 1) * len(GAP) - sum(times)
    how = min(how, max(_HOW, room - client - name))
    room -= how
    client = min(client, room - min(name, _NAME))
    return [client, min(name, room - client), *times, how]
