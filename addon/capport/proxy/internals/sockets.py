"""One client's connection in mitmproxy: its layers, its sockets, and when it reads on.

It relies on mitmproxy's ConnectionHandler: it passes each event to its `layer`, awaits its
`drain_writers` before it reads on, and keeps each of its sockets in `transports`, with the task
that reads it as `handler`. And on two bounds of asyncio's: `max_size` of a transport is what it
reads at once, `_limit` of a reader half of what it keeps. Each function takes the handler that
`server.handler_of` has found, or None for a connection that has ended.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from mitmproxy import connection
from mitmproxy.proxy import context, events, layer, server

type Handler = server.ConnectionHandler | None

RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: close(2) sends RST
READER_LIMIT: Final = 64 * 1024  # asyncio's own


class Watched:
    """A connection's layers, less the data that comes when it is over; it stands for the first.

    What was let through is not asked about again with each segment: `goes_on` compares two numbers.
    """

    def __init__(self, inner: layer.Layer, goes_on: Callable[[events.DataReceived], bool]) -> None:
        self._inner = inner
        self._goes_on = goes_on

    @property
    def context(self) -> context.Context:
        """What mitmproxy and its addons look at from outside."""
        return self._inner.context

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The same, but for data that is too late, from either side."""
        if isinstance(event, events.DataReceived) and not self._goes_on(event):
            return _nothing()
        return self._inner.handle_event(event)


def _nothing() -> layer.CommandGenerator[None]:
    yield from ()


def watch(
    handler: Handler,
    goes_on: Callable[[events.DataReceived], bool],
    drain: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Asks `goes_on` before a layer sees what has come; awaits `drain` before more is read."""
    if handler:
        handler.layer = cast(layer.Layer, Watched(handler.layer, goes_on))
        handler.drain_writers = drain  # type: ignore[method-assign]


async def drain(handler: server.ConnectionHandler) -> None:
    """Waits until everything can be written, as mitmproxy does."""
    await type(handler).drain_writers(handler)


def is_reader_of(handler: server.ConnectionHandler, conn: connection.Client) -> bool:
    """Whether the current task is the one that reads what the client sends."""
    io = handler.transports.get(conn)
    return io is not None and io.handler is asyncio.current_task()


def is_gone(handler: Handler, conn: connection.Client) -> bool:
    """Whether nothing that is sent to a client can reach it any more."""
    io = handler.transports.get(conn) if handler else None
    return io is None or io.writer is None or io.writer.is_closing()


def close(handler: Handler, conn: connection.Client | None = None) -> None:
    """Closes the client's socket, or all, once what was written has been sent."""
    for of, io in tuple(handler.transports.items()) if handler else ():
        if conn in (None, of) and io.writer and not io.writer.is_closing():
            io.writer.close()


def abort(handler: Handler, *, reset: bool = False) -> None:
    """Closes all sockets at once. With `reset`, the other ends get RST, not FIN."""
    for io in tuple(handler.transports.values()) if handler else ():
        if isinstance(io.writer, asyncio.StreamWriter):
            sock = io.writer.get_extra_info("socket")
            if reset and sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            io.writer.transport.abort()
        elif io.writer is not None:  # mitmproxy_rs: UDP, and what comes by tun
            io.writer.close()


def set_buffers(handler: Handler, size: int | None) -> None:
    """Bounds what asyncio reads at once, and keeps, of each socket; None for its own bounds.

    By itself it reads 256 KiB at once, goes on until it has kept 128, and takes 64 to be sent.
    """
    for io in tuple(handler.transports.values()) if handler else ():
        if isinstance(io.writer, asyncio.StreamWriter):
            transport: Any = io.writer.transport
            transport.max_size = size or type(transport).max_size
            transport.set_write_buffer_limits(size)
            cast(Any, io.reader)._limit = size or READER_LIMIT
