"""Guessing slowed down, for each client and for all together (429, RFC 6585 section 4).

An attempt counts as wrong until it is forgiven, so that a hundred at once get no further than one
after the other.

Ten devices that are made up reach the limit for all, and must not close the login server by it. So
it holds up neither whoever has been right about the same name before, nor a voucher that is good.
"""

from collections import deque
from ipaddress import IPv6Address, ip_network

from capport.core import rates
from capport.core.bounded_map import BoundedMap
from capport.core.client import Client
from capport.core.policy import Rate
from capport.core.session import Instant

FREE = 10
"""Wrong attempts a client may make before it has to wait: then 1, 2, 4 ... seconds."""

LONGEST = 900.0
"""Seconds: the longest wait, and how long a client's wrong attempts are remembered."""

FOR_ALL = 100
"""Wrong attempts of all clients together in a minute. Who makes up addresses meets this one."""

SIGN_INS = Rate(60, 600.0)
"""How often a client may sign in, right or wrong: whoever is let on is written down, and told."""

TERMS_FOR_ALL = Rate(600, 60.0)
"""How often all clients together may accept the terms: a crowd that arrives may, ten a second.

Nothing is used up by that, and a device that makes up MACs is a new client each time.
"""

_REMEMBERED = 20_000  # clients; a few MB


class Throttle:
    """Counts attempts. Times are instants, passed in."""

    def __init__(self) -> None:
        self._wrong = BoundedMap[object, tuple[int, Instant]](_REMEMBERED)
        self._lately: deque[Instant] = deque()
        self._right = BoundedMap[tuple[object, str], None](_REMEMBERED)

    def for_all(self, now: Instant) -> float:
        """Seconds until all clients together have few enough wrong attempts in a minute; 0: now."""
        while self._lately and self._lately[0] <= now - 60:
            self._lately.popleft()
        return self._lately[-FOR_ALL] + 60 - now if len(self._lately) >= FOR_ALL else 0.0

    def was_right(self, client: Client, name: str) -> bool:
        """Whether `client` has been forgiven for `name`, and may go on trying whatever others do.

        (OWASP calls it a device cookie.) For that name alone: who has a password of his own could
        else make up devices that may guess at others'.
        """
        return (_who(client), name) in self._right

    def attempt(self, client: Client, now: Instant) -> float:
        """Seconds `client` has to wait before this attempt; 0: it is made, and counts as wrong."""
        who = _who(client)
        count, last = self._wrong.get(who, (0, now))
        if now - last > LONGEST:
            count = 0
        if count >= FREE:
            # The doubling is bounded before it is computed.
            wait = last + min(LONGEST, 2.0 ** min(count - FREE, 16)) - now
            if wait > 0:
                return wait
        self._wrong[who] = (count + 1, now)
        self._lately.append(now)
        return 0.0

    def forgive(self, client: Client, name: str = "") -> None:
        """The client's last attempt was right, about `name`, and does not count.

        Those before it still do: who has one password of his own could else guess at others'.
        """
        if name:
            self._right[_who(client), name] = None
        count, last = self._wrong.get(_who(client), (0, 0.0))
        if count:
            self._wrong[_who(client)] = (count - 1, last)
        if self._lately:
            self._lately.pop()


class Often:
    """Counts each client's sign-ins: whoever meets the conditions could do so in a loop."""

    def __init__(self) -> None:
        self._buckets = BoundedMap[object, rates.Bucket](_REMEMBERED)
        self._terms: rates.Bucket | None = None

    def accept_terms(self, now: Instant) -> int:
        """Seconds to wait before any client may accept the terms; 0: now, and it counts."""
        self._terms, wait = rates.spend(self._terms, TERMS_FOR_ALL, now)
        return wait or 0

    def spend(self, client: Client, now: Instant) -> int:
        """Seconds to wait before `client` may sign in; 0: now, and it counts."""
        who = _who(client)
        self._buckets[who], wait = rates.spend(self._buckets.get(who), SIGN_INS, now)
        return wait or 0


def _who(client: Client) -> object:
    address = client.address
    if client.mac is not None:
        return client.mac
    # A device on IPv6 makes up as many addresses of its /64 as it likes (RFC 8981).
    if isinstance(address, IPv6Address) and not address.is_link_local:
        return ip_network((address, 64), strict=False)
    return address
