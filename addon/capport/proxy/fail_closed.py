"""Denies traffic when nothing has decided on it: a hook raises, or the portal has not started.

If a hook raises, mitmproxy logs the exception and forwards the flow. So `closed` makes our hooks
deny when they raise. The `Guard` runs after all hooks: if the hook that decides does not run,
raises, or is overruled by another addon, no connection to an origin is opened.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from mitmproxy import connection, dns, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.hooks import Hook
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.server_hooks import ServerConnectHook

from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.internals.addons import after_each_hook
from capport.proxy.internals.layers import OwnLayer
from capport.proxy.responses import CLOSED, to_mitmproxy

DENIED = "portal: this connection was not approved"
NO_VERDICT = "portal: no verdict"


class Guard:
    """Denies every connection to an address that was not approved for exactly this connection.

    It is no hook, but runs after all of them: an addon later in the chain could change the address
    after our hook, and an addon earlier in the chain could end it before our hook (`AddonHalt`).
    """

    name = "capport-guard"

    def __init__(self) -> None:
        self.denied = Counter[str]()
        self._approved: dict[str, connection.Address | None] = {}

    def load(self, loader: Loader) -> None:
        """Makes mitmproxy call the guard after all hooks."""
        after_each_hook(loader.master.addons, self._decide)

    def approve(self, server: connection.Server) -> None:
        """Permits one connection to `server`, at the address that it has now."""
        self._approved[server.id] = server.address

    def _decide(self, event: Hook) -> None:
        if not isinstance(event, ServerConnectHook):
            return
        server = event.data.server
        approved = self._approved.pop(server.id, None)
        if (approved is None or approved != server.address) and not server.error:
            server.error = DENIED
            self.denied["the guard"] += 1


class Hooked(Protocol):
    """An object with hooks. `marks` reports what they raise."""

    marks: FlowMarks


class SilentLayer(OwnLayer):
    """Ends the connection without an answer: for unknown clients' UDP, and when nothing decides."""

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Closes the connection, whatever comes."""
        if isinstance(event, events.DataReceived | events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


def deny_client(client: connection.Client) -> None:
    """Closes a connection that has just been opened."""
    client.error = client.error or NO_VERDICT


def deny_layer(asked: layer.NextLayer) -> None:
    """Ends a connection as soon as anything comes on it."""
    if not isinstance(asked.layer, SilentLayer):
        asked.layer = SilentLayer(asked.context)


def deny_flow(flow: http.HTTPFlow) -> None:
    """Answers a request with 503."""
    flow.response = to_mitmproxy(CLOSED)
    flow.response.headers["connection"] = "close"


def deny_dns(flow: dns.DNSFlow) -> None:
    """Refuses a DNS query, which mitmproxy would answer without opening a connection."""
    flow.response = flow.request.fail(5)  # RFC 1035 section 4.1.1: REFUSED


class NotStarted:
    """Denies everything until the portal has started; then `Hooks` takes its place."""

    name = "capport"

    client_connected = staticmethod(deny_client)
    next_layer = staticmethod(deny_layer)
    requestheaders = http_connect = staticmethod(deny_flow)
    dns_request = staticmethod(deny_dns)


def closed[Self: Hooked, Data](hook: Callable[[Self, Data], None]) -> Callable[[Self, Data], None]:
    """Decorates a hook: if it raises, it denies what `NotStarted` would deny in its place.

    `NotStarted` has no such hook if no traffic is forwarded as the result of it.
    """
    deny: Callable[[Data], None] | None = getattr(NotStarted, hook.__name__, None)

    @functools.wraps(hook)
    def wrapped(self: Self, data: Data) -> None:
        try:
            hook(self, data)
        except exceptions.AddonHalt:
            raise
        except Exception:
            if deny:
                deny(data)
            self.marks.fault(hook.__name__)

    return wrapped
