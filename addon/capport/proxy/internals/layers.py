"""The base of our own protocol layers, and mitmproxy's layers that intercept TLS.

It relies on `Layer.handle_event`, which calls `_handle_event` for each event, on the list
`Context.layers`, and on the attribute `child_layer` of the TLS layers.
"""

from mitmproxy import connection
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer


class OwnLayer(layer.Layer):
    """A layer that passes each event to `handle`."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.handle(event)

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles one event. Subclasses define this."""
        raise NotImplementedError

    def leave_stack(self) -> None:
        """Hides this layer from its child, which looks at the layers below itself."""
        self.context.layers.remove(self)

    def lead_to(self, host: str, port: int) -> connection.Server:
        """Makes the server at this place the connection's origin; returns the former origin."""
        before = self.context.server
        self.context.server = connection.Server(address=(host, port))
        return before


def intercepting(ctx: context.Context) -> layer.Layer:
    """Makes mitmproxy's own TLS layers, for the client and for the origin."""
    server_tls = ServerTLSLayer(ctx)
    server_tls.child_layer = ClientTLSLayer(ctx)
    return server_tls
