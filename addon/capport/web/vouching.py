"""Which client asks: the peer of the connection, or the client that the addon vouches for.

Nothing that a client can write counts: no X-Forwarded-For, no Forwarded, no parameter. Through the
explicit proxy, every connection comes from the router itself. There the addon removes any
`Capport-Client` field that the client sent and adds its own, with the client's address, the MAC
that its frames come from, and a signature. A signed field from another machine is a copy, and the
login server refuses it.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence

from capport.core.client import UNSEEN, Peer, parse_address, parse_frame
from capport.core.session import Instant

HEADER = "Capport-Client"
"""The addon removes it from every client's request, and adds its own to those for the login
server."""

LIFETIME = 10.0
"""Seconds that a signature is valid. It only travels from the addon to the login server."""

_FORM = re.compile(
    rf"v2 ([0-9a-f.:]{{2,39}}) ([0-9a-f:]{{17}}|{UNSEEN}|-)"
    r" ([0-9]{1,10}\.[0-9]{3}) ([0-9a-f]{64})",
    re.ASCII,
)


class AskingError(ValueError):
    """A `Capport-Client` field that the addon did not write, or wrote too long ago."""


def sign_client(asks: Peer, secret: bytes, now: Instant) -> str:
    """The value of `Capport-Client` for a request by `asks`."""
    said = f"v2 {asks.address} {asks.frame or '-'} {now:.3f}"
    return f"{said} {_signature(said, secret)}"


def verify_client(value: str, secret: bytes, now: Instant) -> Peer:
    """The peer that a `Capport-Client` field names. Raises AskingError if anything is wrong."""
    match = _FORM.fullmatch(value)
    if match is None:
        raise AskingError(f"{HEADER} does not have the addon's format")
    said = value.rpartition(" ")[0]
    if not hmac.compare_digest(match[4], _signature(said, secret)):
        raise AskingError(f"{HEADER} is not signed by the addon")
    # 1 ms of tolerance, because the time was rounded to milliseconds when it was signed.
    if not -0.001 <= now - float(match[3]) <= LIFETIME:
        raise AskingError(f"{HEADER} is older than {LIFETIME:g} s, or from another boot")
    try:
        frame = None if match[2] == "-" else parse_frame(match[2])
        return Peer(parse_address(match[1]), frame)
    except ValueError as error:
        raise AskingError(f"{HEADER}: {error}") from None


class Vouched:
    """The client of each connection that the addon makes to the embedded login server.

    In a tunnel the addon cannot add a field. So it notes its own end of the connection, an address
    and a port, and the client for which it connects, before it sends anything. If the addon is
    another process, `read_notes` reads its notes.

    An entry stays until both sides are done with the connection. When the addon hangs up, the login
    server may still have to read a request; without the entry it would count as this machine's own.
    """

    def __init__(self) -> None:
        self.read_notes: Callable[[], None] | None = None
        self._clients: dict[tuple[object, ...], Peer] = {}
        self._taken: dict[tuple[object, ...], object] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, end: Sequence[object]) -> Peer | None:
        """The client of the connection; None if the addon did not make it."""
        if self.read_notes is not None:
            self.read_notes()
        return self._clients.get(tuple(end[:2]))

    def connected(self, end: Sequence[object], client: Peer) -> None:
        """Notes that the addon has connected for `client`."""
        self._clients[tuple(end[:2])] = client

    def hung_up(self, end: Sequence[object]) -> None:
        """Notes that the addon has closed the connection."""
        if tuple(end[:2]) not in self._taken:
            self._clients.pop(tuple(end[:2]), None)

    def taken(self, end: Sequence[object], by: object) -> None:
        """Notes that the login server has accepted it; `by` distinguishes it from a later one."""
        self._taken[tuple(end[:2])] = by

    def done(self, end: Sequence[object], by: object) -> None:
        """Notes that the login server will read no more from it."""
        if self._taken.get(tuple(end[:2])) is by:
            del self._taken[tuple(end[:2])]
            self._clients.pop(tuple(end[:2]), None)


def _signature(said: str, secret: bytes) -> str:
    return hmac.new(secret, b"Capport-Client\0" + said.encode(), hashlib.sha256).hexdigest()
