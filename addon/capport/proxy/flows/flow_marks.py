"""Reports what was decided: marks on mitmproxy's flows; events on requests and handshakes."""

import contextlib
import logging
import time
from typing import Any, Final

from mitmproxy import connection, http, tcp
from mitmproxy.flow import Flow

from capport.core.client import Client
from capport.core.place import Place
from capport.core.verdict import Inspect, Pass, Refuse, TlsVerdict, Verdict
from capport.events import OF_HTTP, OF_TLS
from capport.front.conversation import Alert, Refused
from capport.front.hello import Hello
from capport.gate import Gate
from capport.log_limits import FAULTS, Seldom
from capport.proxy.connections import Connections
from capport.proxy.flows.flow_details import details_of, request_fields
from capport.proxy.flows.handshakes import OUTER, EventFields, fields_of
from capport.proxy.request_head import credentials_in

logger = logging.getLogger(__name__)

REFUSED_MARK: Final = ":no_entry:"
GARDEN_MARK: Final = ":seedling:"
KNOWN_MARK: Final = ":white_check_mark:"
SHORT_CAVEAT: Final = "the certificate was not the origin's (RFC 6585 section 7.4)"

# How mitmproxy shows each verdict: in words, because some fonts have no emoji, and by a marker. For
# requests the words are the status.
_SHOWN: Final = {
    "Pass": ("passed", KNOWN_MARK),
    "SignIn": (302, ":key:"),
    "BadRequest": (400, REFUSED_MARK),
    "PreconditionRequired": (428, ":construction:"),
    "TooManyRequests": (429, ":hourglass:"),
    "HeaderFieldsTooLarge": (431, ":straight_ruler:"),
    "Closed": (502, ":lock:"),
    "NetworkAuthenticationRequired": (511, REFUSED_MARK),
    "Refuse": ("TLS refused", REFUSED_MARK),
    "Drop": ("TLS dropped", REFUSED_MARK),
    "Rejected": ("certificate rejected", ":name_badge:"),
}


class FlowMarks:
    """Shows verdicts in mitmproxy, and writes them as events."""

    def __init__(self, gate: Gate, connections: Connections) -> None:
        self._gate = gate
        self._connections = connections
        self._faults = Seldom(FAULTS)

    def event(self, event: str, client: Client | None = None, **fields: Any) -> None:
        """Writes one event. Never raises: the verdict holds even if it cannot be reported."""
        try:
            self._gate.events.write(event, client, **fields)
        except Exception:
            logger.exception(f"Cannot write the event {event!r}")

    def fault(self, where: str) -> None:
        """Reports that a fault of the portal denied something. Call it in the `except` block."""
        self._gate.metrics.denied[where] += 1
        if self._faults.is_due(time.monotonic(), where):
            # At most once a minute: a client that can cause a fault can repeat it at any rate.
            logger.exception(f"No verdict in {where}; it is denied")
        with contextlib.suppress(Exception):  # nothing above the caller handles an exception
            self.event("fault", what=where)

    def refused(self, flow: http.HTTPFlow, verdict: Verdict | None) -> None:
        """Marks and reports a request that was answered in the origin's place.

        One that is permitted was answered 400, because it cannot be forwarded as it is written.
        """
        because = verdict.because if verdict else "the portal cannot decide now"
        name = type(verdict).__name__ if verdict else "NoVerdict"
        if isinstance(verdict, Pass):
            name, because = "BadRequest", f"it cannot be forwarded as written, although {because}"
        # A request inside TLS: the client continued although the certificate is not the origin's.
        inside = verdict is not None and flow.client_conn.tls_established
        mark(flow, name, because, caveat=SHORT_CAVEAT if inside else None)
        credentials = credentials_in(flow.request)
        if credentials:
            flow.metadata["portal"]["credentials"] = credentials
        client = self._connections.client_of(flow.client_conn)
        details = details_of(flow) if self._gate.events.watches(client) else {}
        self.event("refused", client, **request_fields(flow), **details, because=because)

    def tunnelled(self, flow: http.HTTPFlow, verdict: Verdict) -> None:
        """Marks a refused CONNECT that gets a tunnel to nowhere. Credentials in it are reported."""
        if credentials_in(flow.request):
            self.refused(flow, verdict)
        else:
            mark(flow, type(verdict).__name__, verdict.because)

    def forwarded(self, flow: http.HTTPFlow, verdict: Pass) -> None:
        """Marks a request that is forwarded, and notes what will answer it."""
        mark(flow, "Pass", verdict.because)
        if verdict.to:
            flow.marked = GARDEN_MARK
        login = verdict.to in self._gate.policy.login_places
        answers = "login server" if login else "garden" if verdict.to else "origin"
        flow.metadata["portal"]["answered_by"] = answers

    def passed(self, flow: http.HTTPFlow) -> None:
        """Reports the answer to a watched client's request that was forwarded."""
        verdict, because = decided_on(flow)
        client = self._connections.client_of(flow.client_conn)
        if verdict != "Pass" or not self._gate.events.watches(client):
            return
        self.event("passed", client, **request_fields(flow), **details_of(flow), because=because)

    def refused_unread(self, conn: connection.Client, status: int | None, why: str) -> None:
        """Reports an answer to something that is no request, or a request that is too large."""
        self.event(
            "refused", self._connections.client_of(conn), status=status, because=f"not read: {why}"
        )

    def refused_tls(
        self, flow: tcp.TCPFlow, hello: Hello, dialled: Place | None, verdict: TlsVerdict
    ) -> None:
        """Marks and reports a handshake that was refused before any certificate was shown."""
        caveat = OUTER if hello.has_ech else None
        fields = _of_refusal(hello, dialled, verdict)
        mark_tls(flow, type(verdict).__name__, verdict.because, fields)
        client = self._connections.client_of(flow.client_conn)
        self.event("tls", client, **fields, caveat=caveat, because=verdict.because)

    def refused_unshown(self, act: Refused) -> None:
        """Reports a refusal by the front that is not shown as a flow."""
        if isinstance(act, Alert):
            event, names, caveat = "tls", OF_TLS, OUTER if act.hello.has_ech else None
            values = (*_of_refusal(act.hello, act.dialled, act.verdict).values(), None)  # no alert
        else:
            event, names, caveat = "refused", OF_HTTP, None
            asked, tunnels = act.request, act.tunnels
            if tunnels and not (asked.cookies or asked.authorizations):
                return  # the event will be about what the client sends in the tunnel
            values = (
                None if tunnels else act.status,
                str(asked.claim.host),
                asked.case.method,
                asked.cookies or None,
                asked.authorizations or None,
            )
        events = self._gate.events
        if not events.repeats(event, act.client, *values):
            fields = dict(zip(names, values, strict=True))
            events.write(event, act.client, **fields, caveat=caveat, because=act.verdict.because)

    def passed_tls(
        self, conn: connection.Client, hello: Hello, dialled: Place | None, verdict: TlsVerdict
    ) -> None:
        """Reports a watched client's handshake that was let through."""
        client = self._connections.client_of(conn)
        if self._gate.events.watches(client):
            action = "inspect" if isinstance(verdict, Inspect) else "tunnel"
            fields = fields_of(hello, dialled, action, "passed")
            self.event("tls", client, **fields, because=verdict.because)


def _of_refusal(hello: Hello, dialled: Place | None, verdict: TlsVerdict) -> EventFields:
    how = ("refuse", "refused") if isinstance(verdict, Refuse) else ("drop", "dropped")
    return fields_of(hello, dialled, *how)


def mark(flow: Flow, verdict: str, because: str, *, caveat: str | None = None) -> None:
    """Writes a verdict on a flow: mitmproxy shows it in its lists and details, and saves it.

    `verdict` is the name of its class.
    """
    words, marker = _SHOWN.get(verdict, ("no verdict", REFUSED_MARK))
    flow.marked = marker
    flow.comment = f"{words}: {because}{f'; {caveat}' if caveat else ''}"
    flow.metadata["portal"] = {"verdict": verdict, "because": because}


def mark_tls(
    flow: tcp.TCPFlow, verdict: str, because: str, fields: EventFields, *, caveat: str | None = None
) -> None:
    """Writes a verdict on the flow of a handshake. `fields` are those of its event."""
    to = f"TLS for {fields['sni'] or fields['destination'] or 'no name'}"
    mark(flow, verdict, f"{to}: {because}", caveat=caveat)
    flow.metadata["portal"]["tls"] = {k: v for k, v in fields.items() if v is not None}


def decided_on(flow: Flow) -> tuple[str, str]:
    """The name and the reason of the verdict that `mark` wrote; both are empty if it did not."""
    marked = flow.metadata.get("portal")
    said = [marked.get(name) if isinstance(marked, dict) else "" for name in ("verdict", "because")]
    verdict, because = (text if isinstance(text, str) else "" for text in said)
    return verdict, because
