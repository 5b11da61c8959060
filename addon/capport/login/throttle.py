"""Slows guessing down, for each client and for all together (429, RFC 6585 section 4).

An attempt counts as wrong until it is forgiven. So a hundred attempts at the same time gain nothing
over one after the other.

An attacker with ten made-up devices reaches the limit for all clients, and must not lock out the
others that way. So that limit does not apply to a client that has entered the right password for
the same name before, nor to a good voucher.
"""

from collections import deque
from ipaddress import IPv6Address, ip_network

from capport.core import rates
from capport.core.bounded_map import BoundedMap
from capport.core.client import Client
from capport.core.policy import Rate
from capport.core.session import Instant

FREE = 10
"""Wrong attempts that a client may make before it has to wait: then 1, 2, 4 ... seconds."""

LONGEST = 900.0
"""Seconds: the longest wait, and how long a client's wrong attempts are remembered."""

FOR_ALL = 100
"""Wrong attempts of all clients together in a minute. It stops an attacker who makes up clients."""

SIGN_INS = Rate(60, 600.0)
"""How often a client may sign in, right or wrong: each sign-in costs a disk write and an event."""

TERMS_FOR_ALL = Rate(600, 60.0)
"""How often all clients together may accept the terms: ten a second, enough for a crowd.

A limit per client is not enough here: accepting needs neither code nor password, and a device that
makes up MACs is a new client each time.
"""

_REMEMBERED = 20_000  # clients; a few MB


class Throttle:
    """Counts attempts. The caller passes the times."""

    def __init__(self) -> None:
        self._wrong = BoundedMap[object, tuple[int, Instant]](_REMEMBERED)
        self._recent: deque[Instant] = deque()
        self._right = BoundedMap[tuple[object, str], None](_REMEMBERED)

    def for_all(self, now: Instant) -> float:
        """Seconds until all clients together may try again; 0: now."""
        while self._recent and self._recent[0] <= now - 60:
            self._recent.popleft()
        return self._recent[-FOR_ALL] + 60 - now if len(self._recent) >= FOR_ALL else 0.0

    def was_right(self, client: Client, name: str) -> bool:
        """Whether `client` has been right about `name`, so that the limit for all does not apply.

        (OWASP calls this a device cookie.) It holds for that name only. Otherwise a user could make
        up devices, sign in on each, and guess other users' passwords.
        """
        return (_who(client), name) in self._right

    def attempt(self, client: Client, now: Instant) -> float:
        """Counts an attempt as wrong and returns 0, or returns the seconds to wait before it."""
        who = _who(client)
        count, last = self._wrong.get(who, (0, now))
        if now - last > LONGEST:
            count = 0
        if count >= FREE:
            # The inner min keeps the power small, however many attempts there were.
            wait = last + min(LONGEST, 2.0 ** min(count - FREE, 16)) - now
            if wait > 0:
                return wait
        self._wrong[who] = (count + 1, now)
        self._recent.append(now)
        return 0.0

    def forgive(self, client: Client, name: str = "") -> None:
        """Notes that the client's last attempt, about `name`, was right, and does not count it.

        Earlier attempts still count. Otherwise a user could sign in now and then, and guess other
        users' passwords in between.
        """
        if name:
            self._right[_who(client), name] = None
        count, last = self._wrong.get(_who(client), (0, 0.0))
        if count:
            self._wrong[_who(client)] = (count - 1, last)
        if self._recent:
            self._recent.pop()


class Often:
    """Limits how often clients sign in: one that meets the conditions could do it in a loop."""

    def __init__(self) -> None:
        self._full_at = BoundedMap[object, Instant](_REMEMBERED)
        self._terms_full_at = rates.FULL

    def accept_terms(self, now: Instant) -> int:
        """Counts an acceptance and returns 0, or returns the seconds to wait before it."""
        self._terms_full_at, wait = rates.spend(self._terms_full_at, TERMS_FOR_ALL, now)
        return wait or 0

    def spend(self, client: Client, now: Instant) -> int:
        """Counts a sign-in and returns 0, or returns the seconds that `client` has to wait."""
        who = _who(client)
        full_at = self._full_at.get(who, rates.FULL)
        self._full_at[who], wait = rates.spend(full_at, SIGN_INS, now)
        return wait or 0


def _who(client: Client) -> object:
    address = client.address
    if client.mac is not None:
        return client.mac
    # A device can use as many IPv6 addresses of its /64 as it likes (RFC 8981).
    if isinstance(address, IPv6Address) and not address.is_link_local:
        return ip_network((address, 64), strict=False)
    return address
