"""Who is asking: the address at the other end of the connection, or whom the addon vouches for.

Nothing a client can write counts: no X-Forwarded-For, no Forwarded, no parameter. Through the
explicit proxy every connection comes from the router itself; there the addon takes `Capport-Client`
out of what the client sent and puts in its own, with the client's address, the MAC that its frames
come from, and a signature. From any other machine than this a signed one is a copy, and is refused.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence

from capport.core.client import UNSEEN, Mac, Peer, parse_address, parse_mac
from capport.core.session import Instant

HEADER = "Capport-Client"
"""The addon takes it out of every client's request, and adds its own towards the login server."""

LIFETIME = 10.0
"""Seconds a signature holds. It travels from the addon to the login server, and no further."""

_FORM = re.compile(
    rf"v2 ([0-9a-f.:]{{2,39}}) ([0-9a-f:]{{17}}|{UNSEEN}|-)"
    r" ([0-9]{1,10}\.[0-9]{3}) ([0-9a-f]{64})",
    re.ASCII,
)


class AskingError(ValueError):
    """A `Capport-Client` field that the addon did not write, or not just now."""


def sign_client(asks: Peer, secret: bytes, now: Instant) -> str:
    """The value of `Capport-Client` for a request that `asks` made."""
    said = f"v2 {asks.address} {asks.frame or '-'} {now:.3f}"
    return f"{said} {_signature(said, secret)}"


def verify_client(value: str, secret: bytes, now: Instant) -> Peer:
    """Who asks, by a `Capport-Client` field. Raises AskingError; never falls back to anything."""
    match = _FORM.fullmatch(value)
    if match is None:
        raise AskingError(f"{HEADER} is not as the addon writes it")
    said = value.rpartition(" ")[0]
    if not hmac.compare_digest(match[4], _signature(said, secret)):
        raise AskingError(f"{HEADER} is not signed by the addon")
    # A hair of tolerance: the time was rounded to milliseconds when it was signed.
    if not -0.001 <= now - float(match[3]) <= LIFETIME:
        raise AskingError(f"{HEADER} is older than {LIFETIME:g} s, or of another boot")
    try:
        return Peer(parse_address(match[1]), _frame(match[2]))
    except ValueError as error:
        raise AskingError(f"{HEADER}: {error}") from None


class Vouched:
    """For whom the addon, in the login server's process, connects to it.

    In a tunnel no field can say so. By the addon's end of the connection: an address and a port.

    Whoever is done with a connection last forgets it. A request may have come whole, and have yet
    to be read, when its sender has hung up: it would be taken for this machine's own.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[object, ...], Peer] = {}
        self._taken: dict[tuple[object, ...], object] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, end: Sequence[object]) -> Peer | None:
        """Whose the connection is; None where it is none of the addon's."""
        return self._clients.get(tuple(end[:2]))

    def connected(self, end: Sequence[object], client: Peer) -> None:
        """The addon has connected for `client`."""
        self._clients[tuple(end[:2])] = client

    def hung_up(self, end: Sequence[object]) -> None:
        """The addon has ended it."""
        if tuple(end[:2]) not in self._taken:
            self._clients.pop(tuple(end[:2]), None)

    def taken(self, end: Sequence[object], by: object) -> None:
        """The login server has it; `by` tells it from the next with the same end."""
        self._taken[tuple(end[:2])] = by

    def done(self, end: Sequence[object], by: object) -> None:
        """The login server has read all of it that it will."""
        if self._taken.get(tuple(end[:2])) is by:
            del self._taken[tuple(end[:2])]
            self._clients.pop(tuple(end[:2]), None)


def _frame(text: str) -> Mac | None:
    if text == "-":
        return None
    return UNSEEN if text == UNSEEN else parse_mac(text)


def _signature(said: str, secret: bytes) -> str:
    return hmac.new(secret, b"Capport-Client\0" + said.encode(), hashlib.sha256).hexdigest()
