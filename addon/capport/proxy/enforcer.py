"""What the layers ask and report: the one thing that they know of the portal."""

from typing import Protocol

from mitmproxy import connection, http, tcp

from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import TlsVerdict, Verdict


class Enforcer(Protocol):
    """Decides on what clients send, and is told what became of it."""

    def decide(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None,
    ) -> Verdict:
        """The verdict on a request. It may raise: then the request is denied."""

    def decide_tls(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """The verdict on a handshake."""

    def way_of_connect(self, user_agent: str, port: int) -> Connect:
        """How a CONNECT is refused: `answer` or `alert`."""

    def let_through(self, conn: connection.Client, place: Place | None) -> None:
        """Something of this connection's goes on, to `place` or wherever it wants."""

    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        """A request was decided upon, and counted; mitmproxy's HTTP reads it next."""

    def refused(self, shown: http.HTTPFlow, verdict: Verdict | None) -> None:
        """A request was answered in the origin's place."""

    def refused_unread(self, conn: connection.Client, status: int, why: str) -> None:
        """Something was answered that is no request, or too much of one."""

    def refused_tls(
        self,
        shown: tcp.TCPFlow,
        sni: str | None,
        dialled: Place | None,
        verdict: TlsVerdict,
        caveat: str | None,
    ) -> None:
        """A handshake was refused before any certificate."""

    def answered(self, conn: connection.Client) -> None:
        """An unknown client had its answer on a connection that stays open."""

    def lingers(self, conn: connection.Client) -> None:
        """An unknown client had its last answer, and may still be sending."""

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether nothing that is sent to a client can reach it any more."""

    def reset(self, conn: connection.Client) -> None:
        """Ends a connection with RST."""

    def takes_tls(self, conn: connection.Client) -> None:
        """A connection begins to speak mitmproxy's own TLS."""

    def intercepted(
        self,
        conn: connection.Client,
        sni: str | None,
        dialled: Place | None,
        because: str,
        caveat: str,
    ) -> None:
        """A certificate of mitmproxy's will be shown in a handshake."""

    def used(self, conn: connection.Client) -> None:
        """A client has sent a request: in an intercepted handshake, it took the certificate."""

    def fault(self, where: str) -> None:
        """Something was denied by a fault of ours. Called where the exception is handled."""
