"""Ends a connection without an answer, also when a layer raises."""

import functools
from collections.abc import Callable
from typing import Protocol

from mitmproxy.proxy import commands, context, events, layer

from capport.proxy.enforcer import Enforcer
from capport.proxy.internals.layers import OwnLayer


class SilentLayer(OwnLayer):
    """Ends the connection without an answer: for unknown clients' UDP, and when nothing decides."""

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Closes the connection, whatever comes."""
        if isinstance(event, events.DataReceived | events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


class Decides(Protocol):
    """A layer that has an enforcer."""

    context: context.Context
    enforcer: Enforcer


def ends_on_faults[Handler: Decides](
    handle: Callable[[Handler, events.Event], layer.CommandGenerator[None]],
) -> Callable[[Handler, events.Event], layer.CommandGenerator[None]]:
    """Decorates a layer's `handle`: if it raises, the fault is reported and the connection ends.

    Otherwise mitmproxy would log a crash of its own, and leave the client waiting.
    """

    @functools.wraps(handle)
    def wrapped(self: Handler, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from handle(self, event)
        except Exception:
            self.enforcer.fault(type(self).__name__)
            yield commands.CloseConnection(self.context.client)

    return wrapped
