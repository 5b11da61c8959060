"""mitmproxy's HTTP for unknown clients: within bounds, and answered before a body is read."""

from dataclasses import replace
from typing import Final

from mitmproxy import connection, http
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import HTTPMode

from capport.proxy.internals.http1_reader import is_interim
from capport.proxy.internals.http_events import (
    RequestHeaders,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
    SendHttp,
)
from capport.proxy.internals.http_streams import EarlyStream, StreamsLayer
from capport.proxy.layers.lingering import STAGE, Lingering
from capport.proxy.request_head import redact, restore
from capport.proxy.responses import bare, to_mitmproxy

ANSWERS: Final = 100  # on one connection


class BoundStream(EarlyStream):
    """A stream of an unknown client's: refused before its body, its credentials never shown."""

    taken: dict[bytes, list[bytes]]
    answered = False
    interim = True  # whether the client can read interim responses: HTTP/1.0 has none

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The same, but what goes to a garden host bears the client's own credentials.

        What comes back by HTTP/1 says that there is no second request on this connection.
        """
        for command in super().handle_event(event):
            if isinstance(command, SendHttp):
                sent = command.event
                if isinstance(sent, RequestTrailers | ResponseTrailers):
                    if _speaks_http1(command.connection):
                        continue  # RFC 9110 section 6.5.1; mitmproxy's HTTP/1 cannot send any
                elif isinstance(sent, RequestHeaders):
                    sent = replace(sent, request=sent.request.copy())
                    restore(sent.request.headers, self.taken)
                    if _speaks_http1(command.connection):
                        _frame(sent)
                    command = SendHttp(sent, command.connection)
                elif is_interim(sent) and not self.interim:
                    continue
                elif isinstance(sent, ResponseHeaders):
                    self.answered = sent.response.status_code >= 200
                    if self.answered and self.one_request and self.flow.request.method != "CONNECT":
                        sent = replace(sent, response=sent.response.copy())
                        sent.response.headers["connection"] = "close"
                        command = SendHttp(sent, command.connection)
                elif isinstance(sent, ResponseProtocolError) and not self.answered:
                    status = sent.code.http_status_code()
                    if status is not None and command.connection is self.context.client:
                        yield from self._answer_bare(status)
                        if not self.one_request:
                            continue  # the stream has ended; the connection goes on
            yield command

    def head_has_come(self, headers: http.Headers) -> None:
        """Takes the credentials out."""
        self.taken = redact(headers)

    @property
    def one_request(self) -> bool:
        """Whether the connection ends with this request."""
        return not (self.flow.request.is_http2 or self.flow.request.is_http3)

    def _answer_bare(self, status: int) -> layer.CommandGenerator[None]:
        """In place of mitmproxy's own page, which bears its name and may be stored."""
        self.answered = True
        response, client = to_mitmproxy(bare(status)), self.context.client
        if self.one_request:
            response.headers["connection"] = "close"
        yield SendHttp(ResponseHeaders(self.stream_id, response, False), client)
        yield SendHttp(ResponseData(self.stream_id, response.raw_content or b""), client)
        if not self.one_request:
            yield SendHttp(ResponseEndOfMessage(self.stream_id), client)


def _speaks_http1(conn: connection.Connection) -> bool:
    return conn.alpn != b"h2" and not (conn.alpn or b"").startswith(b"h3")


def _frame(sent: RequestHeaders) -> None:
    """Has an HTTP/1 origin read one request alone, and all of it as that.

    HTTP/2 needs no field that says where a body ends. mitmproxy sends it on as it is, and its first
    bytes would be a second request, of which nobody has decided; so would the next request's be the
    body that one of another length has announced.
    """
    headers = sent.request.headers
    headers["connection"] = "close"
    is_framed = "content-length" in headers or "transfer-encoding" in headers
    if not sent.end_stream and not is_framed:
        headers["transfer-encoding"] = "chunked"


class BoundLayer(StreamsLayer):
    """mitmproxy's HTTP for an unknown client: what it may not do is answered before its body.

    It takes so many requests; once they are answered, an HTTP/2 client is told that this was all
    (GOAWAY; mitmproxy's HTTP/3 has no such word), and has a while to read it.
    """

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        self.requests = 0
        self.last = 0  # stream that was taken
        self.interim = True  # as its streams have it
        self.lingering: Lingering | None = None

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles an event, and ends the connection once enough requests are answered."""
        if self.lingering:
            yield from self.lingering.handle(event)
            return
        yield from super().handle(event)
        if self.requests >= ANSWERS and not self.has_more_to_say():
            yield from self.say_goodbye(self.last)
            self.lingering = Lingering(self.context.client, STAGE)
            yield from self.lingering.begin(half_close=False)

    def stream_for(self, stream_id: int) -> BoundStream | None:
        """A stream for each request, and none for one too many."""
        if self.requests >= ANSWERS:
            return None
        self.requests += 1
        self.last = stream_id
        stream = BoundStream(self.context.fork(), stream_id)
        stream.interim = self.interim
        return stream
