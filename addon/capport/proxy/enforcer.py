"""What the layers ask: one Protocol, for verdicts and for reports of what they did."""

from typing import Protocol

from mitmproxy import connection

from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import Intercept, TlsVerdict, Verdict
from capport.front.hello import Hello
from capport.proxy.connections import Connections
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.flows.handshakes import Handshakes


class Enforcer(Protocol):
    """Decides on what clients send, and has what the layers report to."""

    connections: Connections
    marks: FlowMarks
    handshakes: Handshakes

    def decide(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
    ) -> Verdict:
        """Returns the verdict on a request. If it raises, the layer denies the request."""

    def decide_tls(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """Returns the verdict on a TLS handshake. Never raises."""

    def way_of_connect(self, verdict: Verdict, user_agent: str, port: int) -> Connect:
        """How a CONNECT is refused: `answer` (with 511) or `alert` (in a tunnel to nowhere)."""

    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        """Keeps the verdict on a request for the hooks, which get the same request next."""

    def refused_unread(self, conn: connection.Client, status: int | None, why: str) -> None:
        """Counts and reports an answer to what is no request, or a request that is too large."""

    def intercepted(
        self, conn: connection.Client, hello: Hello, dialled: Place | None, verdict: Intercept
    ) -> None:
        """Reports that mitmproxy will show a certificate of its own in a handshake."""
