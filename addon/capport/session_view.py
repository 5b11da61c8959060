"""A session for programs: `capport clients --json`, and the API for login servers of others."""

from datetime import UTC, datetime

from capport.core.client import is_random, parts_of
from capport.core.session import Instant, Session


def document(session: Session, now: Instant, wall: float) -> dict[str, object]:
    """A session for programs. Members are added to it, never changed.

    Times are RFC 3339 in UTC, reckoned by this machine's wall clock; `seconds_remaining` is what
    counts. `expires` is when it ends whatever the client does, after `seconds_remaining`; `ends` is
    when it does if the client stays silent from now on.
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


def rfc3339(unix: float) -> str:
    """A time as RFC 3339 has it, in UTC, to the second: `2030-01-31T16:05:09Z`."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
