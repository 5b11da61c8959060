"""Layers of our own among mitmproxy's.

They rely on `Layer.handle_event`, which calls `_handle_event` for each event, on the list
`Context.layers`, and on the attribute `child_layer` of the layers for TLS.
"""

from mitmproxy import connection
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer


class OwnLayer(layer.Layer):
    """A layer whose events go to `handle`."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.handle(event)

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles one event. To be defined."""
        raise NotImplementedError

    def leave_stack(self) -> None:
        """Takes this layer out of those that its child sees below itself."""
        self.context.layers.remove(self)

    def lead_to(self, host: str, port: int) -> connection.Server:
        """Makes a server at this place the other end; returns the one before."""
        before, self.context.server = (
            self.context.server,
            connection.Server(address=(host, port)),
        )
        return before


def intercepting(ctx: context.Context) -> layer.Layer:
    """Mitmproxy's own TLS, with the client and with the origin."""
    server_tls = ServerTLSLayer(ctx)
    server_tls.child_layer = ClientTLSLayer(ctx)
    return server_tls
