"""Describes a session, as JSON and as a table's row, for the commands, the console and the API."""

from capport.clock import rfc3339
from capport.core.client import is_random, parts_of
from capport.core.session import Instant, Session
from capport.terminal import duration, short_moment

TITLES = ("CLIENT", "NAME", "SINCE", "UNTIL", "LEFT", "HOW")
MADE_UP = "~"
"""Stands behind a MAC address that the device made up."""


def document(session: Session, now: Instant, wall: float) -> dict[str, object]:
    """A session as JSON values. New members may be added; none is ever changed.

    Times are RFC 3339 in UTC. They are computed from this machine's wall clock, so rely on
    `seconds_remaining` instead. `expires` is when the session ends at the latest, in
    `seconds_remaining`. `ends` is when it ends if the client is silent from now on.
    """
    mac, address = parts_of(session.client)
    return {
        "client": session.client,
        "mac": mac,
        "address": str(address) if address else None,
        "random_mac": is_random(mac) if mac else None,
        "name": session.name,
        "granted": rfc3339(session.granted_at),
        "expires": rfc3339(wall + session.expires - now),
        "ends": rfc3339(wall + session.ends - now),
        "idle": session.idle,
        "seconds_remaining": session.seconds_remaining(now),
        "by": session.by,
        "how": session.how,
    }


def cells_of(session: Session, now: Instant, wall: float) -> tuple[str, ...]:
    """A session as a row of the table."""
    mac, _ = parts_of(session.client)
    return (
        f"{session.client}{MADE_UP if mac and is_random(mac) else ''}",
        session.name,
        short_moment(session.granted_at, wall),
        short_moment(wall + session.expires - now, wall),
        duration(session.left(now)),
        ", ".join(filter(None, (session.how, session.by))),
    )
