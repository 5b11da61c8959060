"""Takes over mitmproxy's TCP listeners, accepts connections itself, and hands them over.

mitmproxy makes a handler and two tasks for each connection as soon as it is accepted. A client that
opens and closes thousands of connections would make everybody wait until all of these have run. So
the portal accepts, and decides which connections get a handler.

It relies on the `_servers` of mitmproxy's server instances, which have `sockets` and `close`, and
on `handle_stream`, which each accepted connection is given to. mitmproxy's port may be open before
the portal is loaded. Connections that it has accepted by then have a handler, and the hooks decide
on them.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import mitmproxy_rs
from mitmproxy import ctx, platform
from mitmproxy.connection import Address
from mitmproxy.proxy.mode_servers import ServerInstance

from capport.front.turns import Turns
from capport.linux import frames, scarcity
from capport.proxy.internals import sockets

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that wait to be accepted. mitmproxy has 100; with a full queue, the next client waits
for a second, until it sends its SYN again."""
AT_ONCE = 64
"""Connections that are accepted before the event loop does something else."""
ENDS = 8
"""Connections whose end mitmproxy hears of before the event loop does something else."""
PIECE = 32 * 1024
"""Bytes that mitmproxy reads from a client at once, and holds until it reads more. With its own
64 KiB, a large head is in memory twice, and an upload takes a fifth less of the processor."""

type Instance = ServerInstance[Any]
type Accepted = Callable[[Instance, list[tuple[socket.socket, Address]]], None]
"""Takes new connections: which of mitmproxy's servers they are for, their sockets and peers."""


class NotTakenOver(Exception):
    """The portal cannot take over a listener. The message is one line that says which."""


class Listeners:
    """Every TCP listener of mitmproxy, now and after its modes have changed."""

    def __init__(self, accepted: Accepted) -> None:
        """Takes over the listeners that are open. Raises NotTakenOver, or OSError."""
        self._accepted = accepted
        servers = ctx.master.addons.get("proxyserver").servers
        servers.changed.connect(self._changed)  # mitmproxy keeps a weak reference
        self._take_over()

    def _changed(self) -> None:
        try:
            self._take_over()
        except (NotTakenOver, OSError) as error:
            logger.error(f"{error}; it is closed")

    def _take_over(self) -> None:
        for instance in ctx.master.addons.get("proxyserver").servers:
            servers: list[Any] = getattr(instance, "_servers", [])
            for server in servers[:]:
                if not isinstance(server, Listener | mitmproxy_rs.udp.UdpServer):
                    servers.remove(server)
                    servers.append(self._taken_over(instance, server))

    def _taken_over(self, instance: Instance, server: Any) -> "Listener":
        theirs = getattr(server, "sockets", ())
        ours = [socket.socket(fileno=os.dup(one.fileno())) for one in theirs]
        server.close()
        if not ours:
            mode = instance.mode.full_spec
            raise NotTakenOver(f"mode {mode}: the portal cannot accept its connections: {server}")
        return Listener(instance, ours, self._accepted)


class Listener:
    """Listening sockets that stand in for one of mitmproxy's servers (`asyncio.Server`).

    The kernel keeps each SYN that comes to them (`frames.keep`). Without a free descriptor,
    accepting pauses.
    """

    def __init__(
        self, instance: Instance, sockets: list[socket.socket], accepted: Accepted
    ) -> None:
        self.sockets = tuple(sockets)
        self._instance = instance
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(BACKLOG)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # for all connections
            frames.keep(listening)
            self._resume(listening)

    def close(self) -> None:
        """Stops listening. Connections that were accepted stay open."""
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self.sockets = ()

    def _resume(self, listening: socket.socket) -> None:
        if listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        connected: list[tuple[socket.socket, Address]] = []
        try:
            while len(connected) < AT_ONCE:
                connected.append(listening.accept())
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            if not scarcity.is_scarcity(error, listening):
                raise
            self._loop.remove_reader(listening)
            self._loop.call_later(scarcity.AGAIN, self._resume, listening)
        finally:
            self._accepted(self._instance, connected)


def destination_of(sock: socket.socket) -> Address:
    """Which address the client of an accepted connection dialled. Raises what mitmproxy raises."""
    assert platform.original_addr is not None
    return platform.original_addr(sock)


class Ends:
    """Lets connections end in turn by client, a few in each pass of the event loop.

    An end costs mitmproxy a third of a millisecond, and a client may end five hundred at once.
    """

    def __init__(self) -> None:
        self._turns = Turns[object, Callable[[], object]]()

    def add(self, client: object, end: Callable[[], object]) -> None:
        """Calls `end` in the client's turn."""
        self._turns.add(client, end)
        if len(self._turns) == 1:
            asyncio.get_running_loop().call_soon(self._some)

    async def turn(self, client: object) -> None:
        """Waits for the client's turn."""
        come = asyncio.Event()
        self.add(client, come.set)
        await come.wait()

    def _some(self) -> None:
        try:
            for _ in range(min(ENDS, len(self._turns))):
                self._turns.next()()
        finally:
            if self._turns:
                asyncio.get_running_loop().call_soon(self._some)


class _Skipping(asyncio.StreamWriter):
    """Drops the first `skip` bytes that are written; then `protocol` passes on what it keeps."""

    skip: int
    protocol: "_HandedOver"

    def write(self, data: bytes) -> None:  # type: ignore[override]
        dropped = min(self.skip, len(data))
        self.skip -= dropped
        super().write(data[dropped:])
        if not self.skip:
            self.protocol.let_go()


class _HandedOver(asyncio.StreamReaderProtocol):
    """Reads a connection for mitmproxy. Until `kept` is None, it keeps what the client sends."""

    attached: Callable[[asyncio.Transport], None]
    in_turn: Callable[[Callable[[], object]], None]
    transport: asyncio.Transport
    kept: bytes | None = None
    ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.attached(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.kept is None:
            super().data_received(data)
        else:
            self.kept += data
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = self.kept is not None
        if not self.ended:
            self.in_turn(super().eof_received)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.in_turn(partial(super().connection_lost, exc))

    def let_go(self) -> None:
        """Passes on what was kept."""
        data, self.kept = self.kept, None
        if data is not None:
            self.transport.resume_reading()  # first: the reader may pause it again
            super().data_received(data)
        if self.ended:
            self.eof_received()


class _Pieces(asyncio.BufferedProtocol):
    """Reads for `inner` no more at once than its reader may keep.

    uvloop knows no other bound, and reads 256 kB. All connections share the room, because each
    piece is taken out of it at once.
    """

    _room = memoryview(bytearray(sockets.READER_LIMIT))

    def __init__(self, inner: _HandedOver, reader: asyncio.StreamReader) -> None:
        self._inner, self._reader = inner, cast(Any, reader)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[: self._reader._limit]

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.data_received(bytes(self._room[:nbytes]))

    def eof_received(self) -> bool:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Reader(asyncio.StreamReader):
    """Gives at once no more than asyncio may keep, because mitmproxy holds it until it reads more.

    `sockets.set_buffers` sets `_limit`.
    """

    async def read(self, n: int = -1) -> bytes:
        """The next bytes, at most `n`; nothing at the end."""
        return await super().read(min(n, cast(Any, self)._limit, PIECE))


async def hand_over(
    instance: Instance,
    sock: socket.socket,
    data: bytes,
    *,
    limit: int,
    in_turn: Callable[[Callable[[], object]], None],
    attached: Callable[[asyncio.Transport, Callable[[], None]], None],
    answered: tuple[bytes, bytes] | None = None,
) -> None:
    """Gives a connection to mitmproxy, as if it had just been accepted.

    Once it has a transport, `attached` gets that, and calls its second argument to let mitmproxy
    begin. mitmproxy then reads `data`, and whatever comes later. Of that, asyncio keeps about twice
    `limit` bytes. `in_turn` calls what is to be done at the end. If a request has been `answered`,
    mitmproxy reads that first; the same answer, which the client has already, is dropped, and only
    then does mitmproxy read `data`, as if the client had waited for it.
    """
    loop = asyncio.get_running_loop()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        if answered:
            writer.__class__ = _Skipping
            skipping = cast(_Skipping, writer)
            skipping.skip, skipping.protocol = len(answered[1]), protocol
        return instance.handle_stream(reader, writer)

    def begin() -> None:
        nonlocal data
        # The connection keeps this function to its end, so `data` would stay in memory too.
        first, data = answered[0] if answered else data, b""
        asyncio.StreamReaderProtocol.connection_made(protocol, protocol.transport)
        if first:
            asyncio.StreamReaderProtocol.data_received(protocol, first)

    reader = _Reader(limit, loop)
    protocol = _HandedOver(reader, handle, loop=loop)
    protocol.attached = lambda transport: attached(transport, begin)
    protocol.in_turn = in_turn
    protocol.kept = data if answered else None
    sock.setblocking(False)
    await loop.connect_accepted_socket(lambda: _Pieces(protocol, reader), sock)
