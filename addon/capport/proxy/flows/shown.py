"""Shows in mitmproxy what the front has refused, and which certificates clients have rejected."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import h11
from mitmproxy import connection, http, tcp
from mitmproxy.flow import Error
from mitmproxy.proxy.layers import tcp as tcp_layers

from capport import lasting
from capport.core.client import Client
from capport.core.cost import LINE
from capport.core.place import Place
from capport.front.conversation import Alert, Answer, Refused
from capport.front.display_limit import DisplayLimit
from capport.gate import Gate
from capport.proxy.flows.flow_marks import SHORT_CAVEAT, FlowMarks, mark_tls
from capport.proxy.flows.handshakes import EventFields
from capport.proxy.internals import http1_reader
from capport.proxy.internals.addons import fire
from capport.proxy.internals.http_events import OF_AN_ANSWER, OF_CONNECT, HookClasses
from capport.proxy.request_head import Head
from capport.proxy.responses import response

logger = logging.getLogger(__name__)

REPORT = 60.0
"""Seconds between two lines in the log about what was not shown."""


class Shown:
    """Reports each refusal of the front, and shows as many as the limit allows."""

    def __init__(self, marks: FlowMarks, gate: Gate) -> None:
        self.limit = DisplayLimit(0)
        self._marks = marks
        self._gate = gate
        self._report: asyncio.TimerHandle | None = None
        self.intercepting = False  # whether a person wants to stop any requests

    def refused(self, act: Refused, shown_as: Callable[[], connection.Client]) -> None:
        """Writes the event, and shows the flow. Never raises. `shown_as` makes its connection."""
        try:
            watched = act.client in self._gate.events.watched
            shows = self.limit.may_show(act.client, time.monotonic(), watched=watched)
            if shows and not watched and isinstance(act, Answer) and len(act.head) > LINE:
                shows = False  # mitmproxy would keep such a large head several times
            if shows or watched:
                self._show(act, shown_as(), shows=shows)
            else:
                self._marks.refused_unshown(act)
            if not shows and self._report is None and self.limit.a_second:
                self._report = asyncio.get_running_loop().call_later(REPORT, self._log_hidden)
        except Exception:  # the client gets its answer even if the refusal cannot be reported
            self._marks.fault("the report of a refusal")

    def rejected(self, conn: connection.Client, client: Client, fields: EventFields) -> None:
        """Shows an intercepted handshake in which the client rejected the certificate."""
        if self.may_show(client):
            how = str(fields["alert"] or "it hung up")
            stream = tcp.TCPFlow(conn, _server(None), live=True)
            mark_tls(stream, "Rejected", how, fields, caveat=SHORT_CAVEAT)
            lasting.start(_show_handshake(stream, f"the client rejected the certificate: {how}"))

    def may_show(self, client: Client) -> bool:
        """Whether to show a refusal of this client. It then counts as shown."""
        watched = client in self._gate.events.watched
        return self.limit.may_show(client, time.monotonic(), watched=watched)

    def follow(self, options: Any, a_second: int) -> None:
        """Applies how many refusals a second are shown, and mitmproxy's option `intercept`."""
        self.limit.set_rate(a_second)
        self.intercepting = "intercept" in options and bool(options.intercept)

    def _show(self, act: Refused, conn: connection.Client, *, shows: bool) -> None:
        """Marks and reports a flow. Shows it too, or only writes an event with its details."""
        if isinstance(act, Alert):
            stream = tcp.TCPFlow(conn, _server(act.dialled), live=True)
            self._marks.refused_tls(stream, act.hello, act.dialled, act.verdict)
            if shows:
                lasting.start(_show_handshake(stream, f"TLS refused: {act.verdict.because}"))
            return
        flow = http.HTTPFlow(conn, _server(act.dialled), live=True)
        flow.request = _request(act)
        if act.tunnels:  # its event has no status: the client gets the tunnel
            self._marks.tunnelled(flow, act.verdict)
            flow.response = _response(act.data)
        else:
            flow.response = _response(act.data)
            self._marks.refused(flow, act.verdict)
        if shows:
            lasting.start(_show_request(flow, OF_CONNECT if act.tunnels else OF_AN_ANSWER))

    def _log_hidden(self) -> None:
        self._report = None
        hidden = self.limit.take_hidden()
        if hidden:
            most, count = hidden.most_common(1)[0]
            logger.info(
                f"{hidden.total()} refusals of {len(hidden)} clients were not shown in the last"
                f" minute, {count} of them of {most} (portal_shown={self.limit.a_second});"
                " `portal.watch CLIENT` shows more of one client"
            )


async def _show_request(flow: http.HTTPFlow, hooks: HookClasses) -> None:
    for hook in hooks:
        await fire(hook(flow))
    flow.live = False


async def _show_handshake(flow: tcp.TCPFlow, error: str) -> None:
    await fire(tcp_layers.TcpStartHook(flow))
    flow.error = Error(error)
    await fire(tcp_layers.TcpErrorHook(flow))
    flow.live = False


def _server(dialled: Place | None) -> connection.Server:
    address = (str(dialled.host), dialled.port) if dialled else None
    return connection.Server(address=address)


def _request(act: Answer) -> http.Request:
    """The request as the layers show it: as h11 reads it, without credentials."""
    parser = http1_reader.reader()
    parser.receive_data(act.head)
    head = parser.next_event()
    assert isinstance(head, h11.Request)
    return Head(head, explicit=act.dialled is None, scheme="http").to_mitmproxy(act.dialled)


def _response(data: bytes) -> http.Response:
    head, _, body = data.partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    _, status, reason = start.split(b" ", 2)
    fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    return response(int(status), reason, fields, body)
