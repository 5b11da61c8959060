"""The layers and sockets of one client's connection in mitmproxy, and when more is read from them.

It relies on mitmproxy's ConnectionHandler, which passes each event to its `layer`, awaits its
`drain_writers` before it reads more, and keeps its sockets in `transports`, each with the task that
reads it as `handler`. Layers keep each other in attributes, in lists and dicts, and in their
context. It also relies on two bounds of asyncio: a transport reads at most `max_size` bytes at once
(uvloop: as many as the kernel keeps), and a reader keeps at most twice its `_limit`. Each function
takes the handler that `server.handler_of` has found, or None for a connection that has ended.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, cast

from mitmproxy import connection
from mitmproxy.proxy import context, events, layer, server

type Handler = server.ConnectionHandler | None

RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: close(2) sends RST
READER_LIMIT: Final = 64 * 1024  # asyncio's default
SMALL_BUFFER: Final = 64 * 1024  # less than the kernel gives a new connection
LARGE_BUFFER: Final = 4 * 1024 * 1024  # the kernel takes net.core.rmem_max, if that is less


class LateDataFilter:
    """Replaces the first layer of a connection: drops data that comes too late, passes on the rest.

    `is_in_time` is called for every segment, so it must be cheap.
    """

    def __init__(
        self, inner: layer.Layer, is_in_time: Callable[[events.DataReceived], bool]
    ) -> None:
        self.context = inner.context  # mitmproxy and its addons read it
        self._inner: layer.Layer | None = inner
        self._is_in_time = is_in_time

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Passes an event to the layer; drops data from either end that is too late."""
        late = isinstance(event, events.DataReceived) and not self._is_in_time(event)
        if late or self._inner is None:
            return _nothing()
        return self._inner.handle_event(event)

    def end(self) -> None:
        """Takes the layers apart, once mitmproxy is done with the connection.

        They refer to each other. So they, and OpenSSL's memory, would stay until the next full
        garbage collection: that of a thousand connections, 80 MB.
        """
        todo: list[Any] = [self._inner]
        self._inner = None
        while todo:
            match todo.pop():
                case layer.Layer() as it:
                    todo += vars(it).values()
                    vars(it).clear()
                case context.Context(layers=found) | list(found):
                    todo += found
                case dict(found):
                    todo += found.values()


def _nothing() -> layer.CommandGenerator[None]:
    yield from ()


def watch(
    handler: Handler,
    is_in_time: Callable[[events.DataReceived], bool],
    drain: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Calls `is_in_time` before a layer gets data; awaits `drain` before more is read.

    Call it in the task that serves the connection.
    """
    if handler:
        late_filter = LateDataFilter(handler.layer, is_in_time)
        handler.layer = cast(layer.Layer, late_filter)
        handler.drain_writers = drain  # type: ignore[method-assign]
        if serving := asyncio.current_task():
            serving.add_done_callback(lambda _: late_filter.end())


async def drain(handler: server.ConnectionHandler) -> None:
    """Waits until all sockets have taken what was written, as mitmproxy does."""
    await type(handler).drain_writers(handler)


def is_reader_of(handler: server.ConnectionHandler, conn: connection.Client) -> bool:
    """Whether the current task is the one that reads the client's socket."""
    io = handler.transports.get(conn)
    return io is not None and io.handler is asyncio.current_task()


def is_gone(handler: Handler, conn: connection.Client) -> bool:
    """Whether the client's socket is closed, so that nothing sent can reach the client."""
    io = handler.transports.get(conn) if handler else None
    return io is None or io.writer is None or io.writer.is_closing()


def close(handler: Handler) -> None:
    """Closes all sockets after everything that was written has been sent."""
    for io in tuple(handler.transports.values()) if handler else ():
        if io.writer and not io.writer.is_closing():
            io.writer.close()


def finish(transport: asyncio.WriteTransport) -> None:
    """Closes our half of the client's connection; all of it, if something is still unsent.

    It bypasses asyncio's `write_eof`, after which an answer that comes late would be an error.
    """
    if transport.get_write_buffer_size():
        transport.close()
    elif not transport.is_closing():
        with (
            suppress(OSError),  # the client has reset the connection
            transport.get_extra_info("socket").dup() as sock,  # uvloop's own has no shutdown()
        ):
            sock.shutdown(socket.SHUT_WR)


def reset_at_close(sock: socket.socket) -> None:
    """Makes the kernel send RST, not FIN, when this socket is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


class Handled:
    """The sockets that mitmproxy's handler has for one connection (`open_connection.Line`)."""

    def __init__(self, handler_of: Callable[[str], Handler], conn: connection.Client) -> None:
        self._handler_of = handler_of
        self._conn = conn

    def abort(self, *, reset: bool = False) -> None:
        """Closes the client's socket and those to its origins at once. With `reset`, sends RST."""
        handler = self._handler_of(self._conn.id)
        for io in tuple(handler.transports.values()) if handler else ():
            if isinstance(io.writer, asyncio.StreamWriter):
                sock = io.writer.get_extra_info("socket")
                if reset and sock is not None:
                    reset_at_close(sock)
                io.writer.transport.abort()
            elif io.writer is not None:  # a writer of mitmproxy_rs: UDP, or tun mode
                io.writer.close()

    def finish(self) -> None:
        """Ends the client's connection after everything that was written has been sent."""
        handler = self._handler_of(self._conn.id)
        io = handler.transports.get(self._conn) if handler else None
        if io and isinstance(io.writer, asyncio.StreamWriter):
            finish(io.writer.transport)
        elif io and io.writer:
            io.writer.close()

    def lingers(self) -> bool:
        """No: its layer closes it (`Lingering`)."""
        return False


def set_buffers(handler: Handler, size: int | None) -> None:
    """Bounds what asyncio reads at once, and keeps, for each socket. None: asyncio's own bounds.

    Those are 256 KiB in one read, 128 KiB kept after reading, and 64 KiB that wait to be sent.
    """
    for io in tuple(handler.transports.values()) if handler else ():
        if isinstance(io.writer, asyncio.StreamWriter):
            set_transport_buffers(io.writer.transport, size)
            cast(Any, io.reader)._limit = size or READER_LIMIT


def set_transport_buffers(transport: asyncio.WriteTransport, size: int | None) -> None:
    """Bounds what is read at once from one socket, and what waits to be sent on it.

    What is read from a client at once, `listeners` bounds: with uvloop, `max_size` does not exist.
    So that uvloop reads little from an origin, the kernel's buffer is made small. What is closed
    needs no bounds: a client may end while its connection to an origin opens.
    """
    if transport.is_closing():
        return  # uvloop raises RuntimeError for one that is closed
    transport.set_write_buffer_limits(size)
    if hasattr(transport, "max_size"):
        cast(Any, transport).max_size = size or type(transport).max_size
        return
    sock = transport.get_extra_info("socket")
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * size)  # the kernel doubles it
    elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= SMALL_BUFFER:
        # Only if it was bounded before: the kernel does not adjust a buffer that was set.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGE_BUFFER)
