"""The base of the layers that decide: how they deal with a fault, and with their last answer."""

from mitmproxy.proxy import commands, context, events, layer

from capport.proxy.enforcer import Enforcer
from capport.proxy.internals.layers import OwnLayer
from capport.proxy.layers.lingering import Lingering
from capport.proxy.request_head import place_of


class DecidingLayer(OwnLayer):
    """Passes each event to `take`. If that raises, reports the fault and ends the connection.

    Otherwise mitmproxy would log a crash of its own, and leave the client waiting.
    """

    def __init__(self, ctx: context.Context, enforcer: Enforcer) -> None:
        super().__init__(ctx)
        self.enforcer = enforcer
        self.dialled = place_of(ctx.server.address)
        self.plain = len(ctx.layers) == 2  # directly on TCP, where it can close its half alone
        self.lingering: Lingering | None = None  # set after the last answer

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles one event. After the last answer, drops what comes."""
        try:
            if self.lingering:
                yield from self.lingering.handle(event)
            else:
                yield from self.take(event)
        except Exception:
            self.enforcer.marks.fault(type(self).__name__)
            yield commands.CloseConnection(self.context.client)

    def take(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles an event before the last answer. Subclasses define this."""
        raise NotImplementedError
