"""What denies where nothing decides: hooks that raise, a portal that has not started, other addons.

mitmproxy logs what a hook raises, and goes on. So a hook of ours that raises has denied (`closed`).
The `Guard` stands behind all hooks: should the gate's own not run, raise, or be overruled by
another addon, no connection to an origin is opened.
"""

import functools
from collections.abc import Callable
from typing import Protocol

from mitmproxy import connection, dns, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.hooks import Hook
from mitmproxy.proxy import layer
from mitmproxy.proxy.server_hooks import ServerConnectHook

from capport.proxy.internals.addons import after_each_hook
from capport.proxy.layers.silent import SilentLayer
from capport.proxy.responses import CLOSED, to_mitmproxy

DENIED = "portal: this connection was not approved"
NO_VERDICT = "portal: no verdict"


class Guard:
    """Denies every connection that was not approved by exactly the address it is opened to.

    It is no hook but stands behind all of them: an addon that comes later in the chain could change
    the address after a hook, and one that comes earlier could end the chain (`AddonHalt`).
    """

    name = "capport-guard"

    def __init__(self) -> None:
        self._approved: dict[str, connection.Address | None] = {}

    def load(self, loader: Loader) -> None:
        """Takes its place behind all hooks."""
        after_each_hook(loader.master.addons, self._decide)

    def approve(self, server: connection.Server) -> None:
        """`server` may be connected to, once, at the address it has now."""
        self._approved[server.id] = server.address

    def _decide(self, event: Hook) -> None:
        if not isinstance(event, ServerConnectHook):
            return
        server = event.data.server
        approved = self._approved.pop(server.id, None)
        if approved is None or approved != server.address:
            server.error = server.error or DENIED


class Faults(Protocol):
    """Where a fault is reported."""

    def fault(self, where: str) -> None:
        """Reports that something was denied by a fault of ours."""


class Hooked(Protocol):
    """An object with hooks."""

    @property
    def marks(self) -> Faults:
        """Where it reports what its hooks raise."""


def closed[Self: Hooked, Data](
    deny: Callable[[Data], None],
) -> Callable[[Callable[[Self, Data], None]], Callable[[Self, Data], None]]:
    """A hook that denies with `deny` when it raises."""

    def wrap(hook: Callable[[Self, Data], None]) -> Callable[[Self, Data], None]:
        @functools.wraps(hook)
        def wrapped(self: Self, data: Data) -> None:
            try:
                hook(self, data)
            except exceptions.AddonHalt:
                raise
            except Exception:
                deny(data)
                self.marks.fault(hook.__name__)

        return wrapped

    return wrap


def deny_client(client: connection.Client) -> None:
    """Closes a connection that has just been opened."""
    client.error = client.error or NO_VERDICT


def deny_layer(asked: layer.NextLayer) -> None:
    """Ends a connection, whatever comes on it."""
    if not isinstance(asked.layer, SilentLayer):
        asked.layer = SilentLayer(asked.context)


def deny_flow(shown: http.HTTPFlow) -> None:
    """Answers a request with 503."""
    shown.response = to_mitmproxy(CLOSED)
    shown.response.headers["connection"] = "close"


def deny_dns(shown: dns.DNSFlow) -> None:
    """Refuses a question, which mitmproxy would answer without a connection."""
    shown.response = shown.request.fail(5)  # RFC 1035 section 4.1.1: REFUSED


def deny_nothing[Data](data: Data) -> None:
    """For hooks after which nothing is let through."""


class NotStarted:
    """Stands where the hooks will, until the portal has started: it denies everything."""

    name = "capport"

    client_connected = staticmethod(deny_client)
    next_layer = staticmethod(deny_layer)
    requestheaders = http_connect = staticmethod(deny_flow)
    dns_request = staticmethod(deny_dns)
