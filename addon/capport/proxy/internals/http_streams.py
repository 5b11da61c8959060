"""mitmproxy's HTTP, with a bound on requests, and with answers before a body is read.

It relies on `HttpLayer`, which has each request made a stream by `make_stream`, keeps them in
`streams` and both ends in `connections`; and on `HttpStream`, whose method in `client_state` is
called with what comes of a request, and which sends an addon's response by `send_response`.
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
    """Makes mitmproxy read HTTP/2, also where nobody negotiated it (RFC 9113 section 3.3)."""
    conn.alpn = b"h2"


def set_destination(request: http.Request, host: str, port: int, authority: bytes) -> None:
    """Sets where a request goes. The setters of mitmproxy's change its Host field as well."""
    request.data.host, request.data.port, request.data.authority = host, port, authority


class EarlyStream(HttpStream):
    """A stream that is answered as soon as its head is there, where `requestheaders` says so."""

    def head_has_come(self, headers: http.Headers) -> None:
        """Called with the header fields of a request before any hook sees them. To be defined."""
        raise NotImplementedError

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]:
        """A tunnel's events. mitmproxy lets one through that no layer in the tunnel can take.

        That the client has gone, where it goes between the CONNECT and its answer.
        """
        if isinstance(event, RequestProtocolError):
            event = RequestEndOfMessage(self.stream_id)
        yield from super().passthrough(event)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        """Answers as soon as the head is there, where `requestheaders` has set a response."""
        self.head_has_come(event.request.headers)
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


class StreamsLayer(HttpLayer):
    """mitmproxy's HTTP, whose events go to `handle`, and whose streams `stream_for` makes."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.handle(event)

    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handles one event as mitmproxy does."""
        yield from super()._handle_event(event)

    def stream_for(self, stream_id: int) -> HttpStream | None:
        """The stream of a request that has come; None for one that is refused. To be defined."""
        raise NotImplementedError

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """A stream of ours for each request, and none for one too many."""
        stream = self.stream_for(stream_id)
        if stream is None:
            yield from self._refuse(stream_id)
            return
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _refuse(self, stream_id: int) -> layer.CommandGenerator[None]:
        """RFC 9113 section 8.7: it may be sent again, on another connection."""
        if server := self._http2_server():
            server.streams.pop(stream_id, None)
            with contextlib.suppress(StreamClosedError, NoSuchStreamError):  # reset by its client
                server.h2_conn.reset_stream(stream_id, REFUSED_STREAM)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())

    def has_more_to_say(self) -> bool:
        """Whether streams are open, or answers wait for the client to open its window."""
        server = self._http2_server()
        return bool(self.streams or (server and any(server.h2_conn.stream_buffers.values())))

    def say_goodbye(self, last: int) -> layer.CommandGenerator[None]:
        """Tells an HTTP/2 client that `last` was the last stream (RFC 9113 section 6.8)."""
        if server := self._http2_server():
            server.h2_conn.close_connection(NO_ERROR, last_stream_id=last)
            yield commands.SendData(self.context.client, server.h2_conn.data_to_send())

    def _http2_server(self) -> Http2Server | None:
        server = self.connections.get(self.context.client)
        return server if isinstance(server, Http2Server) else None
