"""Closing a connection whose client still sends, so that it can read what it was answered.

RFC 9112 section 9.6: what is closed on while there is something to read is reset, and the reset
takes the answer with it, which a client that sends first and reads then (urllib, Java) never sees.
So our half is closed, and what comes is read and thrown away, in stages, while enough comes.
"""

from typing import Final

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer

STAGE: Final = 2.0  # seconds for a client to read its answer, and to hang up or send more
STAGES: Final = 15  # in all: half a minute, as nginx takes
LEAST: Final = 16 * 1024  # bytes that make another stage of it: one that drips is not uploading
MOST: Final = 24 * 1024 * 1024  # bytes in all, where nobody knows how many are to come
DECLARED: Final = 256 * 1024 * 1024  # the same for a body of which the head says how long it is


class Lingering:
    """The end of a client's connection: `begin`, then every event of the layer's to `handle`.

    `patience` is how long each stage takes, `declared` how long the body is, if its head says so.
    A longer one is not read to its end, which would not come in time.
    """

    def __init__(self, client: connection.Client, patience: float, declared: int = 0) -> None:
        self.client = client
        self.patience = patience
        self.most = DECLARED if declared <= DECLARED and declared else MOST
        self.heard = 0  # bytes in this stage
        self.stages = 0
        self.stage: commands.RequestWakeup | None = None

    def begin(self, *, half_close: bool) -> layer.CommandGenerator[None]:
        """Closes our half, where the connection has one, and begins to wait."""
        if half_close:
            yield commands.CloseTcpConnection(self.client, half_close=True)
        yield from self._wait()

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Throws away what comes, and closes the connection when it is time."""
        if isinstance(event, events.DataReceived) and event.connection is self.client:
            self.heard += len(event.data)
            self.most -= len(event.data)
            if self.most < 0:
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.Wakeup) and event.command is self.stage:
            if self.heard >= LEAST and self.stages < STAGES:
                yield from self._wait()
            else:
                yield commands.CloseConnection(self.client)
        elif isinstance(event, events.ConnectionClosed) and event.connection is self.client:
            yield commands.CloseConnection(self.client)

    def _wait(self) -> layer.CommandGenerator[None]:
        self.heard = 0
        self.stages += 1
        self.stage = commands.RequestWakeup(self.patience)
        yield self.stage
