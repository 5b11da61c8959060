"""Bounds what asyncio and mitmproxy keep of data that a client, or an origin, cannot take yet.

All connections of one unknown client together may take 64 MiB. So asyncio reads and keeps little
data for each: with a megabyte for each connection that waits for a garden host that is down, one
client would take 500 MB. While a client does not read an answer, nothing more is read from the
origin.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from mitmproxy import connection
from mitmproxy.proxy import events, server

from capport.core.client import ClientId
from capport.proxy.internals import http2_bounds, sockets
from capport.proxy.open_connection import Open

MOST_KEPT_OF_ONE = 16 * 1024 * 1024  # bytes of one client that wait for connections to open
MOST_KEPT = 1024 * 1024  # of those, bytes on one connection of a known client
MOST_UNREAD = 8 * 1024 * 1024  # bytes of HTTP/2 answers that a known client has not read
LITTLE = 8 * 1024  # both of these bounds for an unknown client; also bounds each read and write
WAIT = 10.0  # seconds after which a little more is read while connections are being opened


class Backpressure:
    """Makes mitmproxy wait before it reads more. `handler_of` is that of `Connections`."""

    def __init__(self, handler_of: Callable[[str], server.ConnectionHandler | None]) -> None:
        self._handler_of = handler_of
        self._kept: Counter[ClientId] = Counter()  # bytes: the sum of `Open.kept`

    def dials(self, entry: Open, server_id: str) -> None:
        """Records that a connection to an origin is about to be opened."""
        entry.dialled.add(server_id)
        entry.all_dialled.clear()

    def dialled(self, entry: Open, server_id: str) -> None:
        """Records that a connection to an origin is open, or could not be opened."""
        self.set_buffers(entry)
        entry.dialled.discard(server_id)
        if not entry.dialled:
            self.forget(entry)
            entry.all_dialled.set()

    def came(self, entry: Open, conn: connection.Client, event: events.DataReceived) -> None:
        """Records data that has come, from either end."""
        if event.connection is conn:
            entry.came = len(event.data)
        entry.unread = http2_bounds.unread(conn)

    def forget(self, entry: Open) -> None:
        """Counts no bytes of this connection any more."""
        self._count(entry, -entry.kept)

    def end(self, entry: Open) -> None:
        """Wakes `drain`, so that mitmproxy sees at once that the connection has ended."""
        entry.all_dialled.set()
        entry.reads.set()

    def set_buffers(self, entry: Open) -> None:
        """Bounds what asyncio reads and keeps for a connection and for its origins'."""
        if entry.conn:
            size = None if entry.is_known else LITTLE
            sockets.set_buffers(self._handler_of(entry.conn.id), size)

    async def drain(self, entry: Open, conn: connection.Client) -> None:
        """Waits before mitmproxy reads more from a socket, so that its buffers stay small.

        mitmproxy calls this in the task that reads the socket, and itself waits only until the
        other sockets have taken what was written.

        mitmproxy keeps all that a client sends while a connection to an origin is being opened:
        400 MB in 3 s, and with a host that is down this takes two minutes. So this method waits
        until all connections are open. Every ten seconds it lets mitmproxy read some more, within
        the client's share: mitmproxy opens five connections at a time, and the data may end a
        stream that waits for its turn.

        mitmproxy also keeps all answers that an HTTP/2 client has not read (RFC 9113 section 5.2).
        So nothing more is read from an origin whose data made the client's backlog too large.
        """
        handler = self._handler_of(conn.id)
        if handler is None:
            return
        backlog_grew = http2_bounds.unread(conn) > entry.unread
        await sockets.drain(handler)
        if not sockets.is_reader_of(handler, conn):
            most = MOST_UNREAD if entry.is_known else LITTLE
            while backlog_grew and not entry.over and http2_bounds.unread(conn) > most:
                entry.reads.clear()
                await entry.reads.wait()
            return
        entry.reads.set()
        bodies = http2_bounds.bodies(conn)
        if entry.dialled:  # in HTTP/2, only bodies wait for a connection: count those alone
            self._count(entry, entry.came if bodies is None else bodies)
        if entry.dialled and entry.kept > (MOST_KEPT if entry.is_known else LITTLE):
            may_keep = self._kept[entry.counted_as] < MOST_KEPT_OF_ONE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT if may_keep else None):
                    await entry.all_dialled.wait()

    def _count(self, entry: Open, size: int) -> None:
        entry.kept += size
        self._kept[entry.counted_as] += size
        if not self._kept[entry.counted_as]:
            del self._kept[entry.counted_as]
