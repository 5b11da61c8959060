"""mitmproxy's HTTP layer, which may refuse a stream, and answers before a body is read.

It relies on `HttpLayer`, which calls `make_stream` for each request, and keeps its streams in
`streams` and its connections to both ends in `connections`. It also relies on `HttpStream`, which
passes each event of a request to the method in `client_state`, and sends an addon's response by
`send_response`.
"""

import contextlib
import time
from typing import Final

from h2.exceptions import NoSuchStreamError, StreamClosedError
from mitmproxy import connection, http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.layers.http._events import (
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook, HttpResponseHeadersHook
from mitmproxy.proxy.layers.http._http2 import Http2Server

NO_ERROR: Final = 0  # RFC 9113 section 7
REFUSED_STREAM: Final = 7


def speak_http2(conn: connection.Client) -> None:
    """Makes mitmproxy read HTTP/2, also without ALPN (RFC 9113 section 3.3)."""
    conn.alpn = b"h2"


def set_destination(request: http.Request, host: str, port: int, authority: bytes) -> None:
    """Sets where a request goes. mitmproxy's own setters would change its Host field too."""
    request.data.host, request.data.port, request.data.authority = host, port, authority


class EarlyStream(HttpStream):
    """A stream that is answered before its body, if `requestheaders` sets a response."""

    def head_has_come(self, request: http.Request) -> None:
        """Gets a request's head before any hook sees it. Subclasses define this."""
        raise NotImplementedError

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Passes a tunnel's events to the layer inside, except one that no layer can handle.

        If the client disconnects between its CONNECT and the answer, mitmproxy passes on a
        RequestProtocolError. The layer gets the end of the request instead.
        """
        if isinstance(event, RequestProtocolError):
            event = RequestEndOfMessage(self.stream_id)
        yield from super().passthrough(event)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        """Answers as soon as the head has come, if `requestheaders` has set a response."""
        self.head_has_come(event.request)
        yield from super().state_wait_for_request_headers(event)
        response = getattr(self, "flow", None) and self.flow.response
        if (
            response
            and self.client_state == self.state_consume_request_body
            and not event.end_stream
        ):
            # The rest does what mitmproxy does to send an addon's response, but without reading the
            # body: in `state_errored`, mitmproxy drops later data of the stream.
            self.client_state = self.state_done
            self.flow.request.data.content = b""
            self.flow.request.timestamp_end = time.time()
            yield HttpRequestHook(self.flow)
            yield HttpResponseHeadersHook(self.flow)
            yield from self.send_response()
            self.client_state = self.state_errored


class StreamsLayer(HttpLayer):
    """mitmproxy's HTTP layer: calls `handle` for each event, `stream_for` for each request."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.handle(event)

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles one event as mitmproxy does."""
        yield from super()._handle_event(event)

    def stream_for(self, stream_id: int) -> HttpStream | None:
        """Makes the stream of a new request; None refuses it. Subclasses define this."""
        raise NotImplementedError

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Adds the stream that `stream_for` makes, or refuses the request."""
        stream = self.stream_for(stream_id)
        if stream is None:
            yield from self._refuse(stream_id)
            return
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _refuse(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Resets an HTTP/2 stream; the client may send the request again (RFC 9113 section 8.7)."""
        if server := self._http2_server():
            server.streams.pop(stream_id, None)
            with contextlib.suppress(StreamClosedError, NoSuchStreamError):  # reset by its client
                server.h2_conn.reset_stream(stream_id, REFUSED_STREAM)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())

    def is_busy(self) -> bool:
        """Whether streams are open, or answers wait for the client to open its window."""
        server = self._http2_server()
        return bool(self.streams or (server and any(server.h2_conn.stream_buffers.values())))

    def send_goaway(self, last: int) -> layer.CommandGenerator[None]:
        """Tells an HTTP/2 client that `last` was the last stream (RFC 9113 section 6.8)."""
        if server := self._http2_server():
            server.h2_conn.close_connection(NO_ERROR, last_stream_id=last)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())

    def _http2_server(self) -> Http2Server | None:
        server = self.connections.get(self.context.client)
        return server if isinstance(server, Http2Server) else None
