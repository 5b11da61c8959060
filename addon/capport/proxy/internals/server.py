"""mitmproxy's own server: where it listens, its connections, and when it connects."""

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
    """The handler that has the sockets of a client's connection, by mitmproxy's id for it."""
    handler: server.ConnectionHandler | None = _proxyserver().connections.get(conn_id)
    return handler


def is_serving() -> bool:
    """Whether mitmproxy has started, according to its addon `proxyserver`."""
    proxyserver = _proxyserver()
    return proxyserver is not None and proxyserver.is_running


class OwnPorts(Container[int]):
    """The ports on which mitmproxy itself listens, looked up at each question."""

    def __contains__(self, port: object) -> bool:
        if "web_port" in ctx.options and port == ctx.options.web_port:
            return True
        listening = (addr for it in _proxyserver().servers for addr in it.listen_addrs)
        return any(port == addr[1] for addr in listening)


def frame_of(conn: connection.Client) -> Mac | None:
    """The MAC that a connection's first frame came from (`Peer`). Call it once a connection."""
    handler = handler_of(conn.id)
    io = handler.transports.get(conn) if handler else None
    if io is None or not isinstance(io.writer, asyncio.StreamWriter):
        return None  # UDP, or a connection in tun mode
    return frames.sender(io.writer.get_extra_info("socket"))


def prepare_listeners() -> None:
    """Prepares every listening socket of mitmproxy, now and when its servers change.

    Its queue of connections to accept gets longer than mitmproxy's 100: with a full queue, the next
    client waits a second, until it sends its SYN again. The kernel keeps each SYN (`frames.keep`).
    If no descriptor is left, accepting pauses (`_Patient`).
    """
    _proxyserver().servers.changed.connect(_prepare_all)
    _prepare_all()
    _silence_failed_accepts()


def _prepare_all() -> None:
    for instance in _proxyserver().servers:
        for listening in getattr(instance, "_servers", ()):
            for transport in getattr(listening, "sockets", ()):
                transport._sock.__class__ = _Patient
                with socket.socket(fileno=os.dup(transport.fileno())) as same:
                    same.listen(BACKLOG)
                    frames.keep(same)


def _silence_failed_accepts() -> None:
    """Keeps asyncio from logging each failed accept with a traceback: `_Patient` logs it."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket.accept()" in context.get("message", ""):
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)


class _Patient(socket.socket):
    """A listening socket that accepts about once a second while no descriptor is left.

    After a failed accept, asyncio tries again a hundred times at once (up to CPython 3.13), and
    sets a timer for each attempt, after which it makes as many: soon it does nothing else. So after
    one failure this socket says for a while that no client waits; then asyncio sets one timer. The
    failure is logged once a minute (`accepting.is_scarcity`).
    """

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
    """Sets the name of an open connection, by which mitmproxy finds it for later requests.

    mitmproxy forbids to change the address of an open connection, because that would not redirect
    it. That is not meant here: the connection was opened to an address of this very name.
    """
    object.__setattr__(server, "address", address)


def connect_early(handler: server.ConnectionHandler | None) -> None:
    """Makes mitmproxy connect to the origin before the client has sent anything.

    Known clients use protocols in which the server speaks first (SMTP, SSH). `server_connect`
    decides on this connection as on any other.
    """
    if handler is not None:
        handler.layer.context.options = cast(Options, _Early(handler.layer.context.options))


class _Early:
    """mitmproxy's options, of which one is changed: connect to the origin at once."""

    connection_strategy = "eager"

    def __init__(self, options: Any) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)

    def __contains__(self, name: str) -> bool:
        return name in self._options


def _proxyserver() -> Any:
    return ctx.master.addons.get("proxyserver")
