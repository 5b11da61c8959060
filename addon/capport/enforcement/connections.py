"""The client connections that are open, and for how long each may be.

mitmproxy's own time-out is for silence: who sends one byte a second is never silent (measured with
12.2.3). So an unknown client's connection has a deadline of its own, each client has so many, and
whoever was let through is asked about again when its session ends.
"""

import asyncio
import logging
import resource
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mitmproxy import connection
from mitmproxy.proxy import server

from capport.core.client import Client, ClientId
from capport.core.place import Place
from capport.core.verdict import Pass
from capport.gate import Gate

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for a head, and between two requests
MOST_A_CLIENT = 512  # connections of one unknown client; one more ends its oldest
DESCRIPTORS_KEPT = 256  # for everything that is not an unknown client

RESET = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: close(2) sends RST


type Key = tuple[object, object]


def key_of(conn: connection.Client) -> Key:
    """What is the same for a connection and for mitmproxy's copies of it (TLS over TLS)."""
    return conn.peername, conn.sockname


@dataclass(slots=True, eq=False)
class Open:
    """One connection. `place` is set where only that was let through, for an unknown client."""

    conn: connection.Client
    client: Client
    let_through: bool = False
    place: Place | None = None
    counted_as: ClientId | None = None
    timer: asyncio.TimerHandle | None = None


class Connections:
    """Every connection; `handler_of` gives the sockets to mitmproxy's id for one."""

    def __init__(
        self, gate: Gate, handler_of: Callable[[str], server.ConnectionHandler | None]
    ) -> None:
        self.gate = gate
        self.handler_of = handler_of
        self.most = _raised_limit() - DESCRIPTORS_KEPT
        self._open: dict[Key, Open] = {}
        self._unknown: OrderedDict[Key, Open] = OrderedDict()  # the oldest first
        self._unknown_of: dict[ClientId, OrderedDict[Key, Open]] = {}
        self._by_id: dict[ClientId, set[Key]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, conn: connection.Client, client: Client) -> None:
        """A client has connected; nothing of it is let through yet."""
        key = key_of(conn)
        if before := self._open.get(key):
            self.closed(before.conn)  # the client's port is in use again before its end was told
        entry = self._open[key] = Open(conn, client)
        self._file(entry)
        if self.gate.known(client):
            self._let_through(entry)
            return
        self._unknown[key] = entry
        entry.counted_as = client.id  # not by address: IPv6 gives one device many
        own = self._unknown_of.setdefault(client.id, OrderedDict())
        own[key] = entry
        if len(own) > MOST_A_CLIENT:
            self.abort(next(iter(own.values())))
        elif len(self._unknown) > self.most:
            self.abort(next(iter(self._unknown.values())))
        self._wait(entry, PATIENCE)

    def closed(self, conn: connection.Client) -> None:
        """A client's connection has ended: nothing of it is kept."""
        entry = self._open.get(key_of(conn))
        if entry is None or entry.conn.id != conn.id:
            return
        del self._open[key_of(conn)]
        self._cancel(entry)
        self._forget_unknown(entry)
        self._unfile(entry)

    def answered(self, conn: connection.Client) -> None:
        """An unknown client had its answer, and may send its next request."""
        if (entry := self._open.get(key_of(conn))) and not entry.let_through:
            self._wait(entry, PATIENCE)

    def let_through(self, conn: connection.Client, place: Place | None) -> None:
        """Something of this connection's goes on: to `place` alone, or wherever it wants."""
        if entry := self._open.get(key_of(conn)):
            entry.place = place
            self._let_through(entry)

    def recheck(self, ids: Iterable[ClientId]) -> None:
        """Something was granted, revoked or has ended: each of these clients' connections anew."""
        for key in {key for client_id in ids for key in self._by_id.get(client_id, ())}:
            self._recheck(self._open[key])

    def recheck_all(self) -> None:
        """Another policy is in force, or a MAC has moved."""
        for entry in tuple(self._open.values()):
            self._recheck(entry)

    def abort(self, entry: Open, *, reset: bool = False) -> None:
        """Ends a connection and what it had open to origins, whatever is still to be sent."""
        self._cancel(entry)
        self._forget_unknown(entry)
        self.abort_connection(entry.conn, reset=reset)

    def abort_connection(self, conn: connection.Client, *, reset: bool = False) -> None:
        """The same for a connection of mitmproxy's. `reset` tells the client with RST, not FIN."""
        handler = self.handler_of(conn.id)
        if handler is None:
            return
        for io in tuple(handler.transports.values()):
            if isinstance(io.writer, asyncio.StreamWriter):
                sock = io.writer.get_extra_info("socket")
                if reset and sock is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                io.writer.transport.abort()
            elif io.writer is not None:  # mitmproxy_rs: UDP, and what comes by tun
                io.writer.close()

    def finish(self, conn: connection.Client) -> None:
        """Closes a connection once what was written to it has been sent."""
        handler = self.handler_of(conn.id)
        io = handler.transports.get(conn) if handler else None
        if io and io.writer and not io.writer.is_closing():
            io.writer.close()

    def _recheck(self, entry: Open) -> None:
        """Decides on a connection once more. Whom the gate raises on is unknown."""
        try:
            stays = self._is_same(entry)
            known = stays and self.gate.known(entry.client) is not None
            keeps = known or (stays and self._may_keep(entry))
        except Exception:
            logger.exception("No verdict on an open connection; it is closed")
            self.abort(entry)
            return
        if entry.let_through and not keeps:
            self.abort(entry)
        elif entry.let_through:
            self._let_through(entry)  # its session may end at another time now
        elif known:
            self.finish(entry.conn)  # so that its next request goes the new way

    def _is_same(self, entry: Open) -> bool:
        """Whether the device at the address is still the one that connected.

        A MAC that is not in the neighbour table (any more, or not yet) is no other device.
        """
        client = self.gate.client(str(entry.client.address))
        if client.mac is None or client == entry.client:
            return True
        if entry.client.mac is not None:
            return False
        self._unfile(entry)
        entry.client = client
        self._file(entry)
        return True

    def _may_keep(self, entry: Open) -> bool:
        """Whether the place in the garden that was let through still is in it."""
        if entry.place is None:
            return False
        verdict = self.gate.connection(entry.client, entry.place)
        return isinstance(verdict, Pass) and verdict.to == entry.place

    def _let_through(self, entry: Open) -> None:
        entry.let_through = True
        self._cancel(entry)
        if entry.place is None:  # who was let through to one place is unknown still, and counts
            self._forget_unknown(entry)
        until = self.gate.known_until(entry.client)
        if entry.place is None and until is not None:
            left = max(0.0, until - self.gate.now())
            entry.timer = asyncio.get_running_loop().call_later(left, self._ended, entry)

    def _ended(self, entry: Open) -> None:
        """Its session is over, unless what mitmproxy relayed meanwhile has kept it up."""
        entry.timer = None
        if handler := self.handler_of(entry.conn.id):
            silent = max(0.0, time.time() - handler.timeout_watchdog.last_activity)
            self.gate.heard_of(entry.client, self.gate.now() - silent)
        self._recheck(entry)

    def _wait(self, entry: Open, seconds: float) -> None:
        self._cancel(entry)
        entry.timer = asyncio.get_running_loop().call_later(seconds, self.abort, entry)

    def _cancel(self, entry: Open) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _file(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            self._by_id.setdefault(client_id, set()).add(key_of(entry.conn))

    def _unfile(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            if keys := self._by_id.get(client_id):
                keys.discard(key_of(entry.conn))
                if not keys:
                    del self._by_id[client_id]

    def _forget_unknown(self, entry: Open) -> None:
        self._unknown.pop(key_of(entry.conn), None)
        counted_as = entry.counted_as
        if counted_as and (own := self._unknown_of.get(counted_as)):
            own.pop(key_of(entry.conn), None)
            if not own:
                del self._unknown_of[counted_as]


def _raised_limit() -> int:
    """How many descriptors this process may have, raised as far as it may raise it itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
