"""Closes a connection whose client still sends, in such a way that the client can read its answer.

RFC 9112 section 9.6: if a server closes a connection with unread data, TCP resets it, and the
client may lose the answer. A client that sends everything before it reads (urllib, Java) never
sees it. So this closes our half, then reads and drops what comes, in stages: there is another stage
as long as enough data comes.
"""

from typing import Final

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer

STAGE: Final = 2.0  # seconds in a stage: for a client to read its answer, and close or send more
STAGES: Final = 15  # at most: half a minute in all, as in nginx
LEAST: Final = 16 * 1024  # bytes in a stage that lead to another; fewer are no real upload
MOST: Final = 24 * 1024 * 1024  # bytes in all, if the length of the body is unknown
DECLARED: Final = 256 * 1024 * 1024  # bytes in all, if the head says how long the body is


class Lingering:
    """Ends a client's connection: a layer calls `begin`, then passes every event to `handle`.

    Each stage takes `patience` seconds. `declared` is the length of the body, 0 if it is unknown.
    A body longer than `DECLARED` could not end in time, so only `MOST` bytes of it are read.
    """

    def __init__(self, client: connection.Client, patience: float, declared: int = 0) -> None:
        self.client = client
        self.patience = patience
        self.most = DECLARED if declared <= DECLARED and declared else MOST
        self.received = 0  # bytes in this stage
        self.stages = 0
        self.stage: commands.RequestWakeup | None = None

    def begin(self, *, half_close: bool) -> layer.CommandGenerator[None]:
        """Begins the first stage. With `half_close`, closes our half first."""
        if half_close:
            yield commands.CloseTcpConnection(self.client, half_close=True)
        yield from self._begin_stage()

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Drops what comes, and closes the connection after the last stage."""
        if isinstance(event, events.DataReceived) and event.connection is self.client:
            self.received += len(event.data)
            self.most -= len(event.data)
            if self.most < 0:
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.Wakeup) and event.command is self.stage:
            if self.received >= LEAST and self.stages < STAGES:
                yield from self._begin_stage()
            else:
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.ConnectionClosed) and event.connection is self.client:
            yield commands.CloseConnection(self.client)

    def _begin_stage(self) -> layer.CommandGenerator[None]:
        self.received = 0
        self.stages += 1
        self.stage = commands.RequestWakeup(self.patience)
        yield self.stage
