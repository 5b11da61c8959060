"""Closes a connection whose client still sends, in such a way that the client can read its answer.

It closes our half, then reads and drops what comes, for as long as `front/half_close.py` says.
"""

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer

from capport.front.half_close import STAGE, Stages


class Lingering:
    """Ends a client's connection: a layer calls `begin`, then passes every event to `handle`.

    `declared` is the length of the body, 0 if it is unknown.
    """

    def __init__(self, client: connection.Client, declared: int = 0) -> None:
        self.client = client
        self.stages = Stages(declared)
        self.stage: commands.RequestWakeup | None = None

    def begin(self, *, half_close: bool) -> layer.CommandGenerator[None]:
        """Begins the first stage. With `half_close`, closes our half first."""
        if half_close:
            yield commands.CloseTcpConnection(self.client, half_close=True)
        yield from self._begin_stage()

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Drops what comes, and closes the connection after the last stage."""
        if isinstance(event, events.DataReceived) and event.connection is self.client:
            if not self.stages.takes(len(event.data)):
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.Wakeup) and event.command is self.stage:
            if self.stages.go_on():
                yield from self._begin_stage()
            else:
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.ConnectionClosed) and event.connection is self.client:
            yield commands.CloseConnection(self.client)

    def _begin_stage(self) -> layer.CommandGenerator[None]:
        self.stage = commands.RequestWakeup(STAGE)
        yield self.stage
