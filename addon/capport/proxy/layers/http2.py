"""mitmproxy's HTTP for unknown clients: within bounds, and answered before a body is read."""

import contextlib
import time
from typing import Final

from h2.exceptions import NoSuchStreamError, StreamClosedError
from mitmproxy import connection
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._events import (
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook, HttpResponseHeadersHook
from mitmproxy.proxy.layers.http._http2 import Http2Server

from capport.proxy.internals.http1_reader import is_interim
from capport.proxy.layers.lingering import STAGE, Lingering
from capport.proxy.request_head import redact, restore
from capport.proxy.responses import bare, to_mitmproxy

ANSWERS: Final = 100  # on one connection
NO_ERROR: Final = 0  # RFC 9113 section 7
REFUSED_STREAM: Final = 7


class BoundStream(HttpStream):
    """A stream of an unknown client's: refused before its body, its credentials never shown."""

    taken: dict[bytes, list[bytes]]
    answered = False
    interim = True  # whether the client can read interim responses: HTTP/1.0 has none

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The same, but what goes to a garden host bears the client's own credentials.

        What comes back by HTTP/1 says that there is no second request on this connection.
        """
        for command in super().handle_event(event):
            if isinstance(command, http_layers.SendHttp):
                sent = command.event
                if isinstance(sent, RequestTrailers | ResponseTrailers):
                    if _speaks_http1(command.connection):
                        continue  # RFC 9110 section 6.5.1; mitmproxy's HTTP/1 cannot send any
                elif isinstance(sent, RequestHeaders):
                    sent.request = sent.request.copy()
                    restore(sent.request.headers, self.taken)
                    if _speaks_http1(command.connection):
                        _frame(sent)
                elif is_interim(sent) and not self.interim:
                    continue
                elif isinstance(sent, ResponseHeaders):
                    self.answered = sent.response.status_code >= 200
                    if self.answered and self.one_request and self.flow.request.method != "CONNECT":
                        sent.response = sent.response.copy()
                        sent.response.headers["connection"] = "close"
                elif isinstance(sent, ResponseProtocolError) and not self.answered:
                    status = sent.code.http_status_code()
                    if status is not None and command.connection is self.context.client:
                        yield from self._answer_bare(status)
                        if not self.one_request:
                            continue  # the stream has ended; the connection goes on
            yield command

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]:
        """A tunnel's events. mitmproxy lets one through that no layer in the tunnel can take.

        That the client has gone, where it goes between the CONNECT and its answer.
        """
        if isinstance(event, RequestProtocolError):
            event = RequestEndOfMessage(self.stream_id)
        yield from super().passthrough(event)

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
        yield http_layers.SendHttp(ResponseHeaders(self.stream_id, response, False), client)
        yield http_layers.SendHttp(
            ResponseData(self.stream_id, response.raw_content or b""), client
        )
        if not self.one_request:
            yield http_layers.SendHttp(ResponseEndOfMessage(self.stream_id), client)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        """Answers as soon as the head is there, where `requestheaders` has set a response."""
        self.taken = redact(event.request.headers)
        yield from super().state_wait_for_request_headers(event)
        response = getattr(self, "flow", None) and self.flow.response
        if (
            response
            and self.client_state == self.state_consume_request_body
            and not event.end_stream
        ):
            # From here it is mitmproxy's own way of sending an addon's response, less the body:
            # once dropped, later data of the stream is thrown away.
            self.client_state = self.state_done
            self.flow.request.data.content = b""
            self.flow.request.timestamp_end = time.time()
            yield HttpRequestHook(self.flow)
            yield HttpResponseHeadersHook(self.flow)
            yield from self.send_response()
            self.client_state = self.state_errored


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


class BoundLayer(HttpLayer):
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

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.lingering:
            yield from self.lingering.handle(event)
            return
        yield from super()._handle_event(event)
        if self.requests >= ANSWERS and not self.streams and not self._has_more_to_say():
            yield from self._say_goodbye()

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """A stream of ours for each request, and none for one too many."""
        if self.requests >= ANSWERS:
            yield from self._refuse(stream_id)
            return
        self.requests += 1
        self.last = stream_id
        self.streams[stream_id] = stream = BoundStream(self.context.fork(), stream_id)
        stream.interim = self.interim
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def _refuse(self, stream_id: int) -> layer.CommandGenerator[None]:
        """RFC 9113 section 8.7: it may be sent again, on another connection."""
        server = self.connections[self.context.client]
        if isinstance(server, Http2Server):
            server.streams.pop(stream_id, None)
            with contextlib.suppress(StreamClosedError, NoSuchStreamError):  # reset by its client
                server.h2_conn.reset_stream(stream_id, REFUSED_STREAM)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())

    def _has_more_to_say(self) -> bool:
        """Whether answers wait for the client to open its window (RFC 9113 section 5.2)."""
        server = self.connections[self.context.client]
        return isinstance(server, Http2Server) and any(server.h2_conn.stream_buffers.values())

    def _say_goodbye(self) -> layer.CommandGenerator[None]:
        server = self.connections[self.context.client]
        if isinstance(server, Http2Server):
            server.h2_conn.close_connection(NO_ERROR, last_stream_id=self.last)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())
        self.lingering = Lingering(self.context.client, STAGE)
        yield from self.lingering.begin(half_close=False)
