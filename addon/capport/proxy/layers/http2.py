"""Adapts mitmproxy's HTTP to unknown clients: bounded, and answered before a body is read.

It serves unknown clients' HTTP/2, and the HTTP/1 requests that `RefusalLayer` forwards.
"""

from dataclasses import replace

from mitmproxy import connection, http
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import HTTPMode

from capport.core.cost import ANSWERS
from capport.proxy.internals.http1_reader import is_interim
from capport.proxy.internals.http_events import SendHttp, messages
from capport.proxy.internals.http_streams import EarlyStream, StreamsLayer
from capport.proxy.layers.lingering import Lingering
from capport.proxy.request_head import redact, restore
from capport.proxy.responses import bare, to_mitmproxy


class BoundStream(EarlyStream):
    """A stream of an unknown client: refused before its body, and shown without its credentials."""

    taken: dict[bytes, list[bytes]]  # the credentials
    answered = False
    interim = True  # whether the client can read interim responses; HTTP/1.0 has none

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Changes what mitmproxy sends: a request to the garden gets its credentials back.

        An HTTP/1 response says that the connection ends after it.
        """
        for command in super().handle_event(event):
            if isinstance(command, SendHttp):
                sent = command.event
                if isinstance(sent, messages.RequestTrailers | messages.ResponseTrailers):
                    if _speaks_http1(command.connection):
                        continue  # RFC 9110 section 6.5.1; mitmproxy's HTTP/1 cannot send any
                elif isinstance(sent, messages.RequestHeaders):
                    sent = replace(sent, request=sent.request.copy())
                    restore(sent.request.headers, self.taken)
                    if _speaks_http1(command.connection):
                        _frame(sent)
                    command = SendHttp(sent, command.connection)
                elif is_interim(sent) and not self.interim:
                    continue
                elif isinstance(sent, messages.ResponseHeaders):
                    self.answered = sent.response.status_code >= 200
                    if self.answered and self.one_request and self.flow.request.method != "CONNECT":
                        sent = replace(sent, response=sent.response.copy())
                        sent.response.headers["connection"] = "close"
                        command = SendHttp(sent, command.connection)
                elif isinstance(sent, messages.ResponseProtocolError) and not self.answered:
                    status = sent.code.http_status_code()
                    if status is not None and command.connection is self.context.client:
                        yield from self._answer_bare(status)
                        if not self.one_request:
                            continue  # only the stream has ended; the connection stays open
            yield command

    def head_has_come(self, request: http.Request) -> None:
        """Removes the credentials before any addon sees them."""
        self.taken = redact(request)

    @property
    def one_request(self) -> bool:
        """Whether the connection ends with this request."""
        return not self.flow.request.is_http2

    def _answer_bare(self, status: int) -> layer.CommandGenerator[None]:
        """Answers without a page: mitmproxy's page has its name, and caches may store it."""
        self.answered = True
        response, client = to_mitmproxy(bare(status)), self.context.client
        if self.one_request:
            response.headers["connection"] = "close"
        yield SendHttp(messages.ResponseHeaders(self.stream_id, response, False), client)
        yield SendHttp(messages.ResponseData(self.stream_id, response.raw_content or b""), client)
        if not self.one_request:
            yield SendHttp(messages.ResponseEndOfMessage(self.stream_id), client)


def _speaks_http1(conn: connection.Connection) -> bool:
    return conn.alpn != b"h2"


def _frame(sent: messages.RequestHeaders) -> None:
    """Makes an HTTP/1 origin read exactly one request on the connection.

    HTTP/2 needs no field that says where a body ends, and mitmproxy adds none. So the origin would
    read the body as a second request, on which the gate has not decided. And after a body that is
    shorter than announced, it would read the next request as the rest of the body: so the
    connection ends with this one.
    """
    headers = sent.request.headers
    headers["connection"] = "close"
    is_framed = "content-length" in headers or "transfer-encoding" in headers
    if not sent.end_stream and not is_framed:
        headers["transfer-encoding"] = "chunked"


class BoundLayer(StreamsLayer):
    """mitmproxy's HTTP for an unknown client: a refused request is answered before its body.

    It takes `ANSWERS` requests. Once they are answered, it sends GOAWAY to an HTTP/2 client, and
    leaves the client some time to read its answers.
    """

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        self.requests = 0
        self.last = 0  # the id of the last stream that was taken
        self.interim = True  # the value that its streams get
        self.lingering: Lingering | None = None

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles an event, and ends the connection once enough requests are answered."""
        if self.lingering:
            yield from self.lingering.handle(event)
            return
        yield from super().handle(event)
        if self.requests >= ANSWERS and not self.is_busy():
            yield from self.send_goaway(self.last)
            self.lingering = Lingering(self.context.client)
            yield from self.lingering.begin(half_close=False)

    def stream_for(self, stream_id: int) -> BoundStream | None:
        """Makes the stream of a request; None for a request beyond `ANSWERS`."""
        if self.requests >= ANSWERS:
            return None
        self.requests += 1
        self.last = stream_id
        stream = BoundStream(self.context.fork(), stream_id)
        stream.interim = self.interim
        return stream
