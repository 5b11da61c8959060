"""mitmproxy's own server: where it listens, whose connections it has, and when it connects."""

import os
import socket
from typing import Any, cast

from mitmproxy import ctx
from mitmproxy.options import Options
from mitmproxy.proxy import server

BACKLOG = 4096


def handler_of(conn_id: str) -> server.ConnectionHandler | None:
    """What has the sockets of a client's connection, by mitmproxy's id for it."""
    handler: server.ConnectionHandler | None = _proxyserver().connections.get(conn_id)
    return handler


def own_ports() -> set[int]:
    """Where mitmproxy itself listens."""
    ports = {int(addr[1]) for it in _proxyserver().servers for addr in it.listen_addrs}
    if "web_port" in ctx.options:
        ports.add(ctx.options.web_port)
    return ports


def lengthen_backlog() -> None:
    """Lets more clients wait to be accepted than the 100 that mitmproxy asks for.

    One more than that waits a second, until it sends its SYN again.
    """
    for instance in _proxyserver().servers:
        for listening in getattr(instance, "_servers", ()):
            for transport in getattr(listening, "sockets", ()):
                with socket.socket(fileno=os.dup(transport.fileno())) as same:
                    same.listen(BACKLOG)


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
