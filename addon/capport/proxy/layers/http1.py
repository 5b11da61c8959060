"""HTTP/1 with unknown clients: reads each request, answers it, and forwards what is permitted.

`RefusalLayer` speaks HTTP/1 with the client. It reads a head within bounds, asks for a verdict,
answers, and never buffers a body. It gives a permitted request (to the login server or the garden)
to a `BoundLayer`, one request for each connection. The request is written again from its parsed
parts, so that no server reads it in another way than we did.
"""

import logging
from typing import Final

import h11
from mitmproxy import connection, http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HTTPMode

from capport.core.cost import ANSWERS
from capport.core.http import CREDENTIALS
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.reply import Asked, Reply, reply_to
from capport.core.verdict import Imitated, Pass, Refusal, Verdict
from capport.log_limits import QUOTED
from capport.proxy.enforcer import Enforcer
from capport.proxy.internals import http1_reader
from capport.proxy.internals.http_events import OF_AN_ANSWER
from capport.proxy.layers.deciding import DecidingLayer
from capport.proxy.layers.http2 import BoundLayer
from capport.proxy.layers.lingering import Lingering
from capport.proxy.request_head import Head, authority_for, is_framed_twice, redacted
from capport.proxy.responses import CLOSED, asked_of, bare, fields_of, to_mitmproxy

logger = logging.getLogger(__name__)

HALF_CLOSED: Final = 10.0  # seconds for an origin to begin its answer after a client's half-close

# RFC 9110 section 7.6.1, and the fields that only a proxy may read or write.
_HOP_BY_HOP: Final = frozenset(
    b"connection expect host http2-settings keep-alive proxy-authorization proxy-connection te"
    b" trailer upgrade".split()
)
# These say where the body ends. They stay even if the Connection field lists them.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class RefusalLayer(DecidingLayer):
    """Speaks HTTP/1 with an unknown client. It uses h11, which rejects invalid heads."""

    def __init__(self, ctx: context.Context, enforcer: Enforcer) -> None:
        self.explicit = isinstance(ctx.layers[0], modes.HttpProxy) and not ctx.server.address
        super().__init__(ctx, enforcer)
        self.scheme = "https" if ctx.client.tls_established and not self.explicit else "http"
        self.parser = http1_reader.reader()
        self.method = b""  # of the request that is being answered; empty until it is known
        self.answers = enforcer.connections.answers(ctx.client)
        self.declared = 0  # the Content-Length of that request
        self.onward: Onward | None = None  # the request that is forwarded, if one is

    def take(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Reads and answers requests, until one is forwarded or the last one is answered."""
        if self.onward:
            yield from self.onward.handle_event(event)
        elif isinstance(event, events.DataReceived):
            self.enforcer.handshakes.used(self.context.client)
            self.parser.receive_data(event.data)
            yield from self._read_heads()
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)

    def _read_heads(self) -> layer.CommandGenerator[None]:
        client = self.context.client
        while not (self.lingering or self.onward or self.enforcer.connections.is_gone(client)):
            self.method = b""
            try:
                head = self.parser.next_event()
                if not isinstance(head, h11.Request):
                    return
                self.method = head.method
                first = self.parser.next_event()
            except h11.RemoteProtocolError as error:
                error.with_traceback(None)  # it refers to all that h11 has read
                status = 431 if error.error_status_hint == 431 else 400
                if status == 431:  # the head was too large to parse, so it is still in the buffer
                    self.method = self.method or http1_reader.refused_method(self.parser)
                yield from self._refuse_unread(status, str(error)[:QUOTED])
                return
            yield from self._request(head, first)

    def _request(self, head: h11.Request, first: object) -> layer.CommandGenerator[None]:
        if is_framed_twice(head):
            yield from self._refuse_unread(400, "Content-Length and Transfer-Encoding, or HTTP/1.0")
            return
        asked = Head(head, explicit=self.explicit, scheme=self.scheme)
        self.declared = int(asked.field(b"content-length") or 0)
        request = asked.to_mitmproxy(self.dialled)
        try:
            case = asked.as_case()
            verdict = self.enforcer.decide(self.context.client, case, asked.claim, self.dialled)
            onward = self._onward(asked, verdict)
            if onward:
                self.enforcer.hand_on(self.context.client, onward.verdict)
        except Exception:
            self.enforcer.marks.fault("a request")
            verdict, onward = None, None
        if onward:
            self.onward = onward
            yield from onward.start(self, first)
            return
        yield from self._answer(request, verdict, bodyless=type(first) is h11.EndOfMessage)

    def _onward(self, asked: Head, verdict: Verdict) -> "Onward | None":
        """Makes an `Onward` for the request; None if the request gets an answer instead."""
        tunnels = asked.method == "CONNECT" and self.explicit
        if isinstance(verdict, Pass):
            place = verdict.to or (asked.claim if self.explicit else self.dialled)
            # mitmproxy reads "connect" as CONNECT; inside a tunnel, neither is valid.
            if place is None or asked.has_controls or tunnels < (asked.method.upper() == "CONNECT"):
                return None
            return Onward(asked, place, verdict)
        if tunnels and asked.claim:
            way = self.enforcer.way_of_connect(
                verdict, asked.field(b"user-agent"), asked.claim.port
            )
            return Onward(asked, asked.claim, verdict) if way is Connect.ALERT else None
        return None

    def _answer(
        self, request: http.Request, verdict: Verdict | None, *, bodyless: bool
    ) -> layer.CommandGenerator[None]:
        reply = CLOSED
        if verdict is not None and not isinstance(verdict, Pass):
            reply = self._reply_to(verdict, asked_of(request))
        elif verdict is not None:  # it is permitted, but cannot be forwarded (`_onward`)
            reply = bare(400)
        flow = http.HTTPFlow(self.context.client, self.context.server, live=True)
        resets = isinstance(verdict, Imitated) and verdict.status is None
        flow.request, flow.response = request, None if resets else to_mitmproxy(reply)
        try:
            self.enforcer.marks.refused(flow, verdict)
        except Exception:  # the client gets its answer even if the refusal cannot be reported
            self.enforcer.marks.fault("the report of a refusal")
        if resets:
            self.enforcer.connections.abort_connection(self.context.client, reset=True)
            yield commands.CloseConnection(self.context.client)
            return
        for hook in OF_AN_ANSWER:
            yield hook(flow)
        flow.live = False
        self.answers += 1
        last = self.answers >= ANSWERS or self.method == b"CONNECT" or reply.status in (400, 431)
        ends = last or not bodyless
        yield from self._send(reply, close=ends)

    def _reply_to(self, verdict: Refusal, asked: Asked) -> Reply:
        try:
            return reply_to(verdict, asked)
        except Exception:
            self.enforcer.marks.fault("a reply")
            return CLOSED

    def _refuse_unread(self, status: int, why: str) -> layer.CommandGenerator[None]:
        """Answers what cannot be read as a request, and so cannot be shown as a flow."""
        try:
            self.enforcer.refused_unread(self.context.client, status, why)
        except Exception:
            self.enforcer.marks.fault("the report of a refusal")
        reply = bare(status)
        if status == 431:
            method, head = self.method.decode("ascii", "replace"), self.parser.trailing_data[0]
            reply = self._reply_to(*http1_reader.too_large(why, method, head))
        yield from self._send(reply, close=True)

    def _send(self, reply: Reply, *, close: bool) -> layer.CommandGenerator[None]:
        fields = list(fields_of(reply))
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
            self.enforcer.connections.answered(self.context.client)
            return
        del self.parser  # with what it has read
        self.enforcer.connections.lingers(self.context.client)
        self.lingering = Lingering(self.context.client, self.declared)
        yield from self.lingering.begin(half_close=self.plain)


class Onward:
    """Forwards one request to `place` alone, by a `BoundLayer` that reads the request we write.

    If `verdict` is not Pass, it opens a tunnel that leads nowhere, and what the client sends inside
    is refused.
    """

    def __init__(self, asked: Head, place: Place, verdict: Verdict) -> None:
        self.asked = asked
        self.place = place
        self.verdict = verdict
        self.child: BoundLayer
        self.parser: h11.Connection | None = None
        self.half_closed: commands.RequestWakeup | None = None
        self.answer_began = False  # after the client closed its half

    def start(self, parent: RefusalLayer, first: object) -> layer.CommandGenerator[None]:
        """Forwards the head, and the part of the body that has come."""
        self.client = parent.context.client
        self.is_gone = parent.enforcer.connections.is_gone
        self.child = BoundLayer(parent.context, HTTPMode.regular)
        self.child.interim = self.asked.version > b"1.0"
        yield from self.child.handle_event(events.Start())
        self.writer = h11.Connection(h11.CLIENT)
        if self.asked.method == "CONNECT":
            early, _ = parent.parser.trailing_data
            yield from self._write((self.writer.send(self._connect_head()) or b"") + early)
            return
        self.parser = parent.parser
        yield from self._write(self.writer.send(self._request_head()) or b"")
        if self.parser.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            yield commands.SendData(self.client, self.parser.send(go_on) or b"")
        yield from self._pass_body(first)

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Forwards what follows the head: a body in h11's framing, a tunnel's bytes as they are."""
        if isinstance(event, events.ConnectionClosed) and self._sent_whole_request(event):
            # RFC 9293 section 3.6: the client may still read the answer. Or it has disconnected,
            # which looks the same until something is sent to it.
            self.half_closed = commands.RequestWakeup(HALF_CLOSED)
            yield self.half_closed
        elif self.half_closed and self._has_gone(event):
            self.half_closed = None
            yield from self.child.handle_event(events.ConnectionClosed(self.client))
        elif isinstance(event, events.Wakeup) and event.command is self.half_closed:
            pass
        elif (
            self.parser is None
            or not isinstance(event, events.DataReceived)
            or event.connection is not self.client
        ):
            yield from self.child.handle_event(event)
        elif self.parser.their_state is h11.SEND_BODY:
            self.parser.receive_data(event.data)
            yield from self._pass_body()
        # What follows the one request is dropped: the answer says Connection: close.

    def _sent_whole_request(self, event: events.ConnectionClosed) -> bool:
        """Whether the client has closed its half after a whole request, and may read the answer.

        mitmproxy would end the connection at once.
        """
        whole = self.parser and self.parser.their_state in {h11.DONE, h11.MUST_CLOSE}
        half = event.connection.state is connection.ConnectionState.CAN_WRITE
        mine = event.connection is self.client and not self.is_gone(self.client)
        return mine and half and bool(whole)

    def _has_gone(self, event: events.Event) -> bool:
        """Whether to give up on a client that has closed its half.

        That is so if its socket is closed, or if no answer has begun within `HALF_CLOSED`.
        """
        if isinstance(event, events.DataReceived):
            self.answer_began = True
        waited = isinstance(event, events.Wakeup) and event.command is self.half_closed
        return self.is_gone(self.client) or (waited and not self.answer_began)

    def _pass_body(self, part: object = None) -> layer.CommandGenerator[None]:
        assert self.parser
        while True:
            try:
                part = part or self.parser.next_event()
            except h11.RemoteProtocolError as error:
                logger.info(
                    f"A request body for {self.place} is not framed as its head says: {error}",
                    extra={"client": self.client.peername},
                )
                yield commands.CloseConnection(self.client)
                return
            if isinstance(part, h11.Data):
                yield from self._write(self.writer.send(part) or b"")
            elif isinstance(part, h11.EndOfMessage):
                # Trailers are dropped: mitmproxy's HTTP/1 raises an exception over them, and hangs.
                yield from self._write(self.writer.send(h11.EndOfMessage()) or b"")
                return
            else:
                return
            part = None

    def _write(self, data: bytes) -> layer.CommandGenerator[None]:
        if data:
            yield from self.child.handle_event(events.DataReceived(self.client, data))

    def _request_head(self) -> h11.Request:
        host = authority_for(self.place, self.asked.claim, self.asked.scheme)
        dropped = (_HOP_BY_HOP | self.asked.connection_options) - _FRAMING
        fields = [(b"Host", host.encode()), (b"Connection", b"close")]
        for name, value in self.asked.fields:
            if name.lower() not in dropped:
                fields.append((name, value))
        path = self.asked.path
        target = path if path == "*" else f"{self.asked.scheme}://{self.place}{path}"
        return h11.Request(method=self.asked.method, target=target, headers=fields)

    def _connect_head(self) -> h11.Request:
        place = str(self.place)
        fields = [(b"Host", place.encode())]
        for name, value in self.asked.fields:
            if name.lower() == b"user-agent":
                fields.append((name, value))
            elif name.lower() in CREDENTIALS and not isinstance(self.verdict, Pass):
                # So the flow shows that the client sent them. The tunnel leads nowhere.
                fields.append((name, redacted(name, value)))
        return h11.Request(method="CONNECT", target=place, headers=fields)
