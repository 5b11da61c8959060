"""mitmproxy's own server: where it listens, whose connections it has, and when it connects."""

import asyncio
import os
import socket
import time
from collections.abc import Container
from typing import Any, cast
from weakref import WeakKeyDictionary

from mitmproxy import connection, ctx
from mitmproxy.options import Options
from mitmproxy.proxy import server

from capport.core.client import Mac
from capport.linux import frames
from capport.web import accepting

BACKLOG = 4096


def handler_of(conn_id: str) -> server.ConnectionHandler | None:
    """What has the sockets of a client's connection, by mitmproxy's id for it."""
    handler: server.ConnectionHandler | None = _proxyserver().connections.get(conn_id)
    return handler


def is_serving() -> bool:
    """Whether mitmproxy has started, by its addon `proxyserver`."""
    proxyserver = _proxyserver()
    return proxyserver is not None and proxyserver.is_running


def own_ports() -> set[int]:
    """Where mitmproxy itself listens."""
    ports = {int(addr[1]) for it in _proxyserver().servers for addr in it.listen_addrs}
    if "web_port" in ctx.options:
        ports.add(ctx.options.web_port)
    return ports


class OwnPorts(Container[int]):
    """The same, whenever it is asked."""

    def __contains__(self, port: object) -> bool:
        return port in own_ports()


def frame_of(conn: connection.Client) -> Mac | None:
    """The MAC that a connection's first frame came from (`Peer`); to be asked once."""
    handler = handler_of(conn.id)
    io = handler.transports.get(conn) if handler else None
    if io is None or not isinstance(io.writer, asyncio.StreamWriter):
        return None  # UDP, and what comes by tun
    return frames.sender(io.writer.get_extra_info("socket"))


def prepare_listeners() -> None:
    """Makes each listening socket, now and later, fit for what is asked of it.

    More clients may wait to be accepted than the 100 that mitmproxy asks for: one more than that
    waits a second, until it sends its SYN again. And the kernel keeps each SYN.
    """
    _proxyserver().servers.changed.connect(_prepare)
    _prepare()
    _wait_where_no_descriptor_is_left()


def _prepare() -> None:
    for instance in _proxyserver().servers:
        for listening in getattr(instance, "_servers", ()):
            for transport in getattr(listening, "sockets", ()):
                transport._sock.__class__ = _Patient
                with socket.socket(fileno=os.dup(transport.fileno())) as same:
                    same.listen(BACKLOG)
                    frames.keep(same)


def _wait_where_no_descriptor_is_left() -> None:
    """Tries to accept once a second where no descriptor is left, and logs that once a minute.

    asyncio tries a hundred times though the first has failed (up to CPython 3.13), logs each with a
    traceback, and sets a timer for each, after which there are more: soon that is all it does.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket.accept()" in context.get("message", ""):
            return  # `_Patient` has logged it
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)


class _Patient(socket.socket):
    """A listening socket that raises once, for asyncio to wait, and then says that nobody waits."""

    __slots__ = ()

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < _paused.get(self, 0.0):
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if accepting.is_scarcity(error, self):
                _paused[self] = time.monotonic() + accepting.AGAIN / 2  # asyncio waits for 1 s
            raise


_paused: WeakKeyDictionary[socket.socket, float] = WeakKeyDictionary()


def name_again(server: connection.Server, address: connection.Address) -> None:
    """Sets the address of a connection that is open: by it mitmproxy finds it for the next request.

    mitmproxy forbids this, because the connection cannot be redirected. It is not: it was opened to
    an address that this name has.
    """
    object.__setattr__(server, "address", address)


def connect_early(handler: server.ConnectionHandler | None) -> None:
    """Known clients' protocols may wait for the server to speak first (SMTP, SSH).

    `server_connect` decides on that connection as on any other.
    """
    if handler is not None:
        handler.layer.context.options = cast(Options, _Early(handler.layer.context.options))


class _Early:
    """mitmproxy's options, but for one: connect to the origin at once."""

    connection_strategy = "eager"

    def __init__(self, options: Any) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)

    def __contains__(self, name: str) -> bool:
        return name in self._options


def _proxyserver() -> Any:
    return ctx.master.addons.get("proxyserver")
