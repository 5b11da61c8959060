"""What is recorded of one open connection of a client."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from mitmproxy import connection

from capport.core.client import Client, ClientId, Mac
from capport.core.place import Place
from capport.core.session import Instant

type Key = tuple[object, object]


def key_of(conn: connection.Client) -> Key:
    """A key that a connection shares with the copies mitmproxy makes of it (for TLS over TLS)."""
    return conn.peername, conn.sockname


class Line(Protocol):
    """The sockets of one connection, in the front or in mitmproxy's handler."""

    def abort(self, *, reset: bool = False) -> None:
        """Closes them at once. With `reset`, the peers get RST, not FIN."""

    def finish(self) -> None:
        """Ends the connection once everything that was written is sent (`sockets.finish`)."""

    def lingers(self) -> bool:
        """Whether it stays open for another stage, in which the client can read its last answer."""


@dataclass(slots=True, eq=False)
class Open:
    """One open connection of a client: in the front, then (`conn`) in mitmproxy if handed over."""

    key: Key
    line: Line
    client: Client
    counted_as: ClientId  # not the address: with IPv6, one device has many
    frame: Mac | None = None  # the MAC that the connection's first frame came from (`Peer`)
    conn: connection.Client | None = None  # None: mitmproxy does not have it yet
    answers: int = 0  # requests that the front has answered
    in_tunnel: bool = False  # whether those requests were sent in a tunnel
    let_through: bool = False  # whether something on it may be forwarded
    places: frozenset[Place | None] = frozenset({None})  # where it may go; None: anywhere
    until: Instant | None = None  # the end of the session that permits it
    heard: Instant = 0.0  # when the gate last got a report that data was relayed
    over: bool = False  # whether it was ended: then nothing on it is forwarded
    leaves: float | None = None  # the loop's time at which its use of the garden ends
    # Its connections to the login server, by mitmproxy's id; each counts for the client named.
    logins: dict[str, ClientId] = field(default_factory=dict)
    dialled: set[str] = field(default_factory=set)  # connections to origins that are being opened
    kept: int = 0  # bytes from the client that wait for them
    all_dialled: asyncio.Event = field(default_factory=asyncio.Event)  # none is being opened now
    came: int = 0  # bytes in the last segment from the client
    unread: int = 0  # bytes of answers that waited for the client before the last data arrived
    reads: asyncio.Event = field(default_factory=asyncio.Event)  # the client has sent something
    weight: int = 1  # how many connections it counts as

    @property
    def is_known(self) -> bool:
        """Whether the connection may go anywhere."""
        return self.let_through and None in self.places
