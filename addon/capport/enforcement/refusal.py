"""The layers that answer unknown clients, and name no server.

`RefusalLayer` speaks HTTP/1 to them itself: it reads a head within bounds, has it decided, answers,
and never buffers a body. What may go on (to the login server, the garden) it hands to a
`BoundLayer`, one request a connection, written anew from what was parsed, so that nobody downstream
reads it otherwise than we did. `BoundLayer` is also what unknown clients' HTTP/2 and HTTP/3 gets.
"""

import functools
import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
from mitmproxy import connection, http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers import modes, tls
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._events import (
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from capport.core.decision import HttpRequest
from capport.core.place import Place, parse_authority, parse_host
from capport.core.policy import Connect
from capport.core.reply import Asked, Reply, reply_to
from capport.core.verdict import HeaderFieldsTooLarge, Pass, Refusal, Verdict

if TYPE_CHECKING:
    from capport.enforcement.mitm import Gatekeeper
    from capport.enforcement.tls import HelloLayer

logger = logging.getLogger(__name__)

HEAD: Final = 64 * 1024  # bytes of a request line and its header section
FIELDS: Final = 500  # header fields in one head
ANSWERS: Final = 100  # on one connection
LINGER: Final = 2.0  # seconds for a client to read its answer while it still sends
LEFTOVER: Final = 1024 * 1024  # bytes of a body that are read, and thrown away, meanwhile

_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

REDACTED: Final = b"[redacted]"
CREDENTIALS: Final = (b"cookie", b"authorization", b"proxy-authorization")
# RFC 9110 section 7.6.1, and what only a proxy may see or say.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
# What says where the body ends is never dropped, whatever a Connection field says.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})

CLOSED: Final = Reply(
    503,
    "Service Unavailable",
    (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Length", "39"),
    ),
    b"The captive portal cannot decide now.\r\n",
)
"""What everybody gets where there is no verdict: the gate fails closed."""


def place_of(address: connection.Address | None) -> Place | None:
    """`address` as mitmproxy has it, as a place; None where it has none, or none we can read."""
    if address is None:
        return None
    try:
        return Place(parse_host(address[0]), address[1])
    except ValueError:
        return None


def bare(status: int) -> Reply:
    """An answer without a page: to what is not HTTP, and where an origin did not answer."""
    reason = HTTPStatus(status).phrase
    body = f"{status} {reason}\r\n".encode()
    fields = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Length", str(len(body))),
    )
    return Reply(status, reason, fields, body)


def to_mitmproxy(reply: Reply) -> http.Response:
    """`reply` as a response of mitmproxy's."""
    now = time.time()
    return http.Response(
        b"HTTP/1.1",
        reply.status,
        reply.reason.encode("ascii"),
        http.Headers([(name.encode(), value.encode("latin-1")) for name, value in reply.fields]),
        reply.body,
        None,
        now,
        now,
    )


def redact(headers: http.Headers) -> dict[bytes, list[bytes]]:
    """Takes the credentials out of `headers`, and returns them by name (RFC 6585 section 7.4)."""
    taken: dict[bytes, list[bytes]] = {}
    fields = []
    for name, value in headers.fields:
        if name.lower() in CREDENTIALS:
            taken.setdefault(name.lower(), []).append(value)
            fields.append((name, REDACTED))
        else:
            fields.append((name, value))
    headers.fields = tuple(fields)
    return taken


def restore(headers: http.Headers, taken: dict[bytes, list[bytes]]) -> None:
    """Puts back what `redact` took, but for what was meant for a proxy."""
    left = {name: iter(values) for name, values in taken.items()}
    fields = []
    for name, value in headers.fields:
        if value == REDACTED and name.lower() in left:
            if name.lower() != b"proxy-authorization":
                fields.append((name, next(left[name.lower()], b"")))
        else:
            fields.append((name, value))
    headers.fields = tuple(fields)


class BoundStream(HttpStream):
    """A stream of an unknown client's: refused before its body, its credentials never shown."""

    taken: dict[bytes, list[bytes]]
    answered = False

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The same, but what goes to a garden host bears the client's own credentials.

        What comes back by HTTP/1 says that there is no second request on this connection.
        """
        for command in super().handle_event(event):
            if isinstance(command, http_layers.SendHttp):
                sent = command.event
                if isinstance(sent, RequestHeaders):
                    sent.request = sent.request.copy()
                    restore(sent.request.headers, self.taken)
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
            # once dropped, later data of the stream is thrown away (MITMPROXY.md, section 3).
            self.client_state = self.state_done
            self.flow.request.data.content = b""
            self.flow.request.timestamp_end = time.time()
            yield HttpRequestHook(self.flow)
            yield HttpResponseHeadersHook(self.flow)
            yield from self.send_response()
            self.client_state = self.state_errored


class BoundLayer(HttpLayer):
    """mitmproxy's HTTP for an unknown client: what it may not do is answered before its body."""

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """A stream of ours for each request."""
        self.streams[stream_id] = BoundStream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class SilentLayer(layer.Layer):
    """Ends the connection, and says nothing: for what is neither HTTP nor TLS, and for faults."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived | events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


def ends_on_faults[Handler: "RefusalLayer | HelloLayer"](
    handle: Callable[[Handler, events.Event], layer.CommandGenerator[None]],
) -> Callable[[Handler, events.Event], layer.CommandGenerator[None]]:
    """A layer's events, of which one that raises ends the connection.

    mitmproxy logs it as a crash of its own, and leaves the client waiting.
    """

    @functools.wraps(handle)
    def wrapped(self: Handler, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from handle(self, event)
        except Exception:
            self.keeper.fault(type(self).__name__)
            yield commands.CloseConnection(self.context.client)

    return wrapped


class RefusalLayer(layer.Layer):
    """HTTP/1 with an unknown client, by h11, which is strict about what a head may be."""

    def __init__(self, ctx: context.Context, keeper: "Gatekeeper") -> None:
        self.explicit = isinstance(ctx.layers[0], modes.HttpProxy) and not ctx.server.address
        # Inside TLS or a tunnel there is no half of a connection to close.
        self.plain = not any(isinstance(it, tls.TLSLayer | HttpLayer) for it in ctx.layers)
        super().__init__(ctx)
        self.keeper = keeper
        self.dialled = place_of(ctx.server.address)
        self.scheme = "https" if ctx.client.tls_established and not self.explicit else "http"
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        self.method = b""  # of the request that is being answered, once it is known
        self.answers = 0
        self.leftover: int | None = None  # bytes read since the last answer
        self.linger: commands.RequestWakeup | None = None
        self.onward: Onward | None = None

    @ends_on_faults
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self.linger:
            yield commands.CloseConnection(self.context.client)
        elif self.leftover is not None:
            yield from self._throw_away(event)
        elif self.onward:
            yield from self.onward.handle_event(event)
        elif isinstance(event, events.DataReceived):
            self.keeper.handshakes.used(self.context.client)
            self.parser.receive_data(event.data)
            yield from self._read_heads()
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)

    def _read_heads(self) -> layer.CommandGenerator[None]:
        while self.leftover is None and not self.onward:
            self.method = b""
            try:
                head = self.parser.next_event()
                if not isinstance(head, h11.Request):
                    return
                self.method = head.method
                first = self.parser.next_event()
            except h11.RemoteProtocolError as error:
                status = 431 if error.error_status_hint == 431 else 400
                yield from self._refuse_unread(status, str(error))
                return
            yield from self._request(head, first)

    def _request(self, head: h11.Request, first: object) -> layer.CommandGenerator[None]:
        raw = head.headers.raw_items()
        size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in raw)
        if size > HEAD or len(raw) > FIELDS:
            yield from self._refuse_unread(431, f"{len(raw)} header fields, {size} bytes")
            return
        if _is_framed_twice(head):
            yield from self._refuse_unread(400, "Content-Length and Transfer-Encoding, or HTTP/1.0")
            return
        asked = Head(head, explicit=self.explicit, scheme=self.scheme)
        request = asked.to_mitmproxy(self.dialled)
        taken = redact(request.headers)
        try:
            verdict = self.keeper.request_verdict(
                self.context.client, asked.as_case(size), asked.claim, self.dialled, asked.url
            )
            onward = self._onward(asked, verdict)
            if onward:
                self.keeper.hand_on(self.context.client, onward.verdict)
        except Exception:
            self.keeper.fault("a request")
            verdict, onward = None, None
        if onward:
            self.onward = onward
            yield from onward.start(self, head, first)
            return
        yield from self._answer(request, verdict, taken, bodyless=type(first) is h11.EndOfMessage)

    def _onward(self, asked: "Head", verdict: Verdict) -> "Onward | None":
        """Where the request may go on, if anywhere: for what may not there is an answer."""
        tunnels = asked.method == "CONNECT" and self.explicit
        if isinstance(verdict, Pass):
            place = verdict.to or (asked.claim if self.explicit else self.dialled)
            # mitmproxy takes "connect" for CONNECT; in a tunnel already, neither means anything.
            if place is None or asked.has_controls or tunnels < (asked.method.upper() == "CONNECT"):
                return None
            return Onward(asked, place, verdict)
        if tunnels and asked.claim and self.keeper.connect_way(asked.user_agent) is Connect.ALERT:
            return Onward(asked, asked.claim, verdict)
        return None

    def _answer(
        self,
        request: http.Request,
        verdict: Verdict | None,
        taken: dict[bytes, list[bytes]],
        *,
        bodyless: bool,
    ) -> layer.CommandGenerator[None]:
        reply = CLOSED
        if verdict is not None and not isinstance(verdict, Pass):
            reply = self._reply_to(verdict, asked_of(request))
        elif verdict is not None:  # let through, and it does not say where to
            reply = bare(400)
        shown = http.HTTPFlow(self.context.client, self.context.server, live=True)
        shown.request, shown.response = request, to_mitmproxy(reply)
        try:
            self.keeper.refused(shown, verdict, taken)
        except Exception:  # what cannot be told is refused all the same
            self.keeper.fault("telling of a refusal")
        yield HttpRequestHeadersHook(shown)
        yield HttpRequestHook(shown)
        yield HttpResponseHeadersHook(shown)
        yield HttpResponseHook(shown)
        shown.live = False
        self.answers += 1
        last = self.answers >= ANSWERS or self.method == b"CONNECT" or reply.status == 400
        ends = last or not bodyless
        yield from self._send(reply, close=ends)

    def _reply_to(self, verdict: Refusal, asked: Asked) -> Reply:
        try:
            return reply_to(verdict, asked)
        except Exception:
            self.keeper.fault("a reply")
            return CLOSED

    def _refuse_unread(self, status: int, why: str) -> layer.CommandGenerator[None]:
        """Answers what could not be read as a request. It is too broken to be shown as a flow."""
        try:
            self.keeper.refused_unread(self.context.client, status, why)
        except Exception:
            self.keeper.fault("telling of a refusal")
        reply = bare(status)
        if status == 431:
            asked = Asked(self.method.decode("ascii", "replace"))
            reply = self._reply_to(HeaderFieldsTooLarge(why), asked)
        yield from self._send(reply, close=True)

    def _send(self, reply: Reply, *, close: bool) -> layer.CommandGenerator[None]:
        fields = list(reply.fields)
        if close:
            fields.append(("Connection", "close"))
        response = h11.Response(
            status_code=reply.status, headers=fields, reason=reply.reason.encode("ascii")
        )
        data = self.parser.send(response) or b""
        if reply.body and self.method != b"HEAD":
            data += self.parser.send(h11.Data(data=reply.body)) or b""
        data += self.parser.send(h11.EndOfMessage()) or b""
        yield commands.SendData(self.context.client, data)
        if self.parser.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self.parser.start_next_cycle()
            self.keeper.answered(self.context.client)
            return
        # RFC 9112 section 9.6: close at once, and the client loses the answer to the reset that
        # what it still sends will draw. So: our half, a while for it to read, then the rest.
        self.leftover = 0
        if self.plain:
            yield commands.CloseTcpConnection(self.context.client, half_close=True)
        self.linger = commands.RequestWakeup(LINGER)
        yield self.linger

    def _throw_away(self, event: events.Event) -> layer.CommandGenerator[None]:
        assert self.leftover is not None
        if isinstance(event, events.DataReceived):
            self.leftover += len(event.data)
        if isinstance(event, events.ConnectionClosed) or self.leftover > LEFTOVER:
            yield commands.CloseConnection(self.context.client)


def _is_framed_twice(head: h11.Request) -> bool:
    """Whether its body's end is a matter of opinion (RFC 9112 sections 6.1 and 6.3)."""
    names = {name for name, _ in head.headers}
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or head.http_version < b"1.1"


class Head:
    """A request's head as h11 read it, and the place it names."""

    def __init__(self, head: h11.Request, *, explicit: bool, scheme: str) -> None:
        self.method = head.method.decode("ascii", "replace")
        self.target = head.target.decode("ascii", "replace")
        self.fields = head.headers.raw_items()
        self.scheme = scheme
        self.version = head.http_version
        self.host = self.field(b"host")
        default = 443 if scheme == "https" else 80
        self.path, self.claim = self.target, self._place(self.host, default)
        if self.method == "CONNECT":
            self.claim = self._place(self.target, None) if explicit else None
        elif not self.target.startswith("/"):
            # RFC 9112 section 3.2.2: the target's own authority, and the Host field is ignored.
            named, slashes, rest = self.target.partition("://")
            cut = next((at for at, c in enumerate(rest) if c in "/?#"), len(rest))
            is_http = bool(slashes) and named.lower() == scheme
            self.claim = self._place(rest[:cut], default) if is_http else None
            self.path = rest[cut:] or "/"
            if not self.path.startswith("/"):
                self.path = f"/{self.path}"

    @property
    def url(self) -> str | None:
        """What it asked for, as a URL; None for CONNECT and for what names no place."""
        if self.claim is None or self.method == "CONNECT":
            return None
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{self.claim.authority(default)}{self.path}"

    @property
    def user_agent(self) -> str:
        """Its User-Agent, which only the way of refusing a CONNECT may hang on."""
        return self.field(b"user-agent")

    @property
    def has_controls(self) -> bool:
        """Whether a value has a control character, which h11 takes and RFC 9110 5.5 does not."""
        return any(_CONTROLS.search(value) for _, value in self.fields)

    def field(self, name: bytes) -> str:
        """The first value of the field `name`, empty where there is none."""
        for found, value in self.fields:
            if found.lower() == name:
                return value.decode("latin-1")
        return ""

    @property
    def connection_options(self) -> frozenset[bytes]:
        """The fields that it says are for this hop alone (RFC 9110 section 7.6.1)."""
        said = b",".join(value for name, value in self.fields if name.lower() == b"connection")
        return frozenset(option.strip().lower() for option in said.split(b","))

    def as_case(self, size: int) -> HttpRequest:
        """The same for the core."""
        fields = tuple((n.lower().decode("ascii"), len(n) + len(v)) for n, v in self.fields)
        return HttpRequest(self.method, self.scheme, self.path, fields, size)

    def to_mitmproxy(self, dialled: Place | None) -> http.Request:
        """The same for mitmproxy to show."""
        place = self.claim or dialled
        now = time.time()
        return http.Request(
            host=str(place.host) if place else "",
            port=place.port if place else 0,
            method=self.method.encode(),
            scheme=self.scheme.encode(),
            authority=self.target.encode() if self.method == "CONNECT" else b"",
            path=self.path.encode(),
            http_version=b"HTTP/" + self.version,
            headers=http.Headers(self.fields),
            content=b"",
            trailers=None,
            timestamp_start=now,
            timestamp_end=now,
        )

    @staticmethod
    def _place(authority: str, default_port: int | None) -> Place | None:
        try:
            return parse_authority(authority, default_port)
        except ValueError:
            return None


class Onward:
    """One request that goes on: to `place` alone, by a `BoundLayer` that reads what we write.

    A `verdict` other than Pass opens a tunnel that leads nowhere, for what is inside to be refused.
    """

    def __init__(self, asked: Head, place: Place, verdict: Verdict) -> None:
        self.asked = asked
        self.place = place
        self.verdict = verdict
        self.child: BoundLayer
        self.parser: h11.Connection | None = None

    def start(
        self, parent: RefusalLayer, head: h11.Request, first: object
    ) -> layer.CommandGenerator[None]:
        """Hands the head on, and what has come of the body."""
        self.client = parent.context.client
        self.child = BoundLayer(parent.context, HTTPMode.regular)
        yield from self.child.handle_event(events.Start())
        if self.asked.method == "CONNECT":
            early, _ = parent.parser.trailing_data
            yield from self._write(self._connect_head() + early)
            return
        self.parser = parent.parser
        self.writer = h11.Connection(h11.CLIENT)
        yield from self._write(self.writer.send(self._request_head()) or b"")
        if self.parser.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            yield commands.SendData(self.client, self.parser.send(go_on) or b"")
        yield from self._pass_body(first)

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """What comes after the head: the body as h11 frames it, a tunnel's bytes as they are."""
        if (
            self.parser is None
            or not isinstance(event, events.DataReceived)
            or event.connection is not self.client
        ):
            yield from self.child.handle_event(event)
        elif self.parser.their_state is h11.SEND_BODY:
            self.parser.receive_data(event.data)
            yield from self._pass_body()
        # What follows the one request is for nobody: its answer says Connection: close.

    def _pass_body(self, part: object = None) -> layer.CommandGenerator[None]:
        assert self.parser
        while True:
            try:
                part = part or self.parser.next_event()
            except h11.RemoteProtocolError as error:
                logger.info(f"A body for {self.place} is not what its head says: {error}")
                yield commands.CloseConnection(self.client)
                return
            if isinstance(part, h11.Data):
                yield from self._write(self.writer.send(part) or b"")
            elif isinstance(part, h11.EndOfMessage):
                # Without its trailers: mitmproxy's HTTP/1 cannot take any (MITMPROXY.md, trap 29).
                yield from self._write(self.writer.send(h11.EndOfMessage()) or b"")
                return
            else:
                return
            part = None

    def _write(self, data: bytes) -> layer.CommandGenerator[None]:
        if data:
            yield from self.child.handle_event(events.DataReceived(self.client, data))

    def _request_head(self) -> h11.Request:
        names_it = self.place
        if not isinstance(self.place.host, str) and self.asked.claim:
            # It dialled an address of the garden, and may call it by a name.
            names_it = self.asked.claim
        host = names_it.authority(443 if self.asked.scheme == "https" else 80)
        dropped = (_HOP_BY_HOP | self.asked.connection_options) - _FRAMING
        fields = [(b"Host", host.encode()), (b"Connection", b"close")]
        for name, value in self.asked.fields:
            if name.lower() not in dropped:
                fields.append((name, value))
        target = f"{self.asked.scheme}://{self.place}{self.asked.path}"
        return h11.Request(method=self.asked.method, target=target, headers=fields)

    def _connect_head(self) -> bytes:
        agent = self.asked.user_agent.encode("latin-1")
        return (
            f"CONNECT {self.place} HTTP/1.1\r\nHost: {self.place}\r\n".encode()
            + (b"User-Agent: " + agent + b"\r\n" if agent else b"")
            + b"\r\n"
        )


def asked_of(request: http.Request) -> Asked:
    """What a reply hangs on."""
    return Asked(
        request.data.method.decode("ascii", "replace"),  # `request.method` takes head for HEAD
        request.headers.get("accept", ""),
        request.headers.get("accept-language", ""),
    )
