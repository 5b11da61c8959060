"""The interface by which the layers ask the portal for verdicts and report to it."""

from typing import Protocol

from mitmproxy import connection, http, tcp

from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import Intercept, TlsVerdict, Verdict
from capport.front.hello import Hello


class Enforcer(Protocol):
    """Decides on what clients send, and takes reports of what the layers did."""

    def decide(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None,
    ) -> Verdict:
        """Returns the verdict on a request. If it raises, the layer denies the request."""

    def decide_tls(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """Returns the verdict on a TLS handshake."""

    def way_of_connect(self, verdict: Verdict, user_agent: str, port: int) -> Connect:
        """How a CONNECT is refused: `answer` (with 511) or `alert` (in a tunnel to nowhere)."""

    def let_through(self, conn: connection.Client, place: Place | None) -> None:
        """Records that this connection may go to `place`, or anywhere if that is None."""

    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        """Keeps the verdict on a request for the hooks, which get the same request next."""

    def refused(self, shown: http.HTTPFlow, verdict: Verdict | None) -> None:
        """Reports that a request was answered in the origin's place."""

    def refused_unread(self, conn: connection.Client, status: int | None, why: str) -> None:
        """Reports an answer to something that is no request, or a request that is too large."""

    def refused_tls(
        self, shown: tcp.TCPFlow, hello: Hello, dialled: Place | None, verdict: TlsVerdict
    ) -> None:
        """Reports that a handshake was refused before any certificate was shown."""

    def passed_tls(
        self, conn: connection.Client, hello: Hello, dialled: Place | None, verdict: TlsVerdict
    ) -> None:
        """Reports that a handshake was let through."""

    def answers(self, conn: connection.Client) -> int:
        """How many requests of a connection were answered before mitmproxy had it."""

    def answered(self, conn: connection.Client) -> None:
        """Reports that an unknown client has its answer, on a connection that stays open."""

    def lingers(self, conn: connection.Client) -> None:
        """Reports that an unknown client has its last answer, and may still be sending."""

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether the client's socket is closed, so that nothing sent can reach the client."""

    def reset(self, conn: connection.Client) -> None:
        """Ends a connection with RST."""

    def takes_tls(self, conn: connection.Client) -> None:
        """Reports that mitmproxy's own TLS begins on a connection, which takes more memory."""

    def intercepted(
        self, conn: connection.Client, hello: Hello, dialled: Place | None, verdict: Intercept
    ) -> None:
        """Reports that mitmproxy will show a certificate of its own in a handshake."""

    def used(self, conn: connection.Client) -> None:
        """Reports that a client sent data: if its TLS is intercepted, it took the certificate."""

    def fault(self, where: str) -> None:
        """Reports that a fault of the portal denied something. Call it in the `except` block."""
