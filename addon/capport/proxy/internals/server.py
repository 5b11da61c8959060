"""mitmproxy's own server: where it listens, its connections, and when it connects."""

import asyncio
from collections.abc import Collection, Iterator
from typing import Any, cast

from mitmproxy import connection, ctx
from mitmproxy.options import Options
from mitmproxy.proxy import server

from capport.core.client import Mac
from capport.linux import frames


def handler_of(conn_id: str) -> server.ConnectionHandler | None:
    """The handler that has the sockets of a client's connection, by mitmproxy's id for it."""
    handler: server.ConnectionHandler | None = _proxyserver().connections.get(conn_id)
    return handler


def is_serving() -> bool:
    """Whether mitmproxy has started, according to its addon `proxyserver`."""
    proxyserver = _proxyserver()
    return proxyserver is not None and proxyserver.is_running


class OwnPorts(Collection[int]):
    """The ports on which mitmproxy itself listens, looked up at each question."""

    def __contains__(self, port: object) -> bool:
        return any(port == own for own in self)

    def __iter__(self) -> Iterator[int]:
        if "web_port" in ctx.options:
            yield ctx.options.web_port
        yield from (addr[1] for it in _proxyserver().servers for addr in it.listen_addrs)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def frame_of(conn: connection.Client) -> Mac | None:
    """The MAC that a connection's first frame came from (`Peer`). Call it once a connection."""
    handler = handler_of(conn.id)
    io = handler.transports.get(conn) if handler else None
    if io is None or not isinstance(io.writer, asyncio.StreamWriter):
        return None  # UDP, or a connection in tun mode
    return frames.sender(io.writer.get_extra_info("socket"))


def name_again(server: connection.Server, address: connection.Address) -> None:
    """Sets the name of an open connection, by which mitmproxy finds it for later requests.

    mitmproxy forbids changing the address of an open connection, because that would not redirect
    it. Nothing is to be redirected here: the connection was opened to an address of this very name.
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
