"""Asks the gate for verdicts on behalf of the layers and the hooks, and takes their reports."""

from mitmproxy import connection, http
from mitmproxy.proxy import mode_specs

from capport.core.client import Client
from capport.core.decision import HttpRequest, way_of_connect
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import Inspect, Pass, Refuse, TlsVerdict, Tunnel, Unavailable, Verdict
from capport.proxy.connections import Connections, Key, key_of
from capport.proxy.flow_marks import FlowMarks
from capport.proxy.handshakes import Handshake, Handshakes
from capport.service.service import Service
from capport.service.worker_service import WorkerService

type PortalService = Service | WorkerService
"""The gate, and all that follows it or that it follows; a worker has the second."""

HELD = "the client has a session, but the kernel's set lacks it; the portal is adding it again"


class Enforcer:
    """Decides on what clients send, and takes reports of what the layers did.

    `connections`, `marks` and `handshakes` take the reports that need nothing else.
    """

    def __init__(
        self,
        service: PortalService,
        connections: Connections,
        marks: FlowMarks,
        handshakes: Handshakes,
    ) -> None:
        self.gate = service.gate
        self.connections = connections
        self.marks = marks
        self.handshakes = handshakes
        self._service = service
        self._handed_on: dict[Key, Verdict] = {}

    def decide(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None,
    ) -> Verdict:
        """The gate's verdict on a request. If it raises, the layer denies the request."""
        client = self.connections.client_of(conn)
        logins = self.connections.logins(conn)
        verdict = self.gate.request(client, request, claim, dialled, url, logins=logins)
        passes = isinstance(verdict, Pass) and verdict.to is None
        return Unavailable(HELD) if passes and self.is_held(conn, client) else verdict

    def decide_tls(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """The gate's verdict on a handshake; Refuse if the gate raises."""
        try:
            client = self.connections.client_of(conn)
            logins = self.connections.logins(conn)
            verdict = self.gate.handshake(client, sni, dialled, logins=logins)
            known = isinstance(verdict, Inspect) or (
                isinstance(verdict, Tunnel) and verdict.to is None
            )
            if known and self.is_held(conn, client):
                return Refuse(HELD)
            return verdict
        except Exception:
            self.fault("decide_tls")
            return Refuse("the portal cannot decide now")

    def is_held(self, conn: connection.Client, client: Client) -> bool:
        """Whether a known client reached mitmproxy only because the kernel's set lacks it."""
        if not isinstance(conn.proxy_mode, mode_specs.TransparentMode):
            return False
        return self._service.is_held(self.connections.peer_of(conn), client)

    def way_of_connect(self, verdict: Verdict, user_agent: str, port: int) -> Connect:
        """How a CONNECT is refused: `answer` (with 511) or `alert` (in a tunnel to nowhere)."""
        return way_of_connect(verdict, self.gate.policy, user_agent, port)

    def let_through(self, conn: connection.Client, place: Place | None) -> None:
        """Records that this connection may go to `place`, or anywhere if that is None."""
        self.connections.let_through(conn, place)

    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        """Keeps the verdict until mitmproxy's HTTP has read the request (`handed_on`)."""
        if isinstance(verdict, Pass):
            self.let_through(conn, verdict.to)
        self._handed_on[key_of(conn)] = verdict

    def handed_on(self, conn: connection.Client) -> Verdict | None:
        """Returns the verdict that `hand_on` kept, once; None if there is none."""
        return self._handed_on.pop(key_of(conn), None)

    def refused(self, shown: http.HTTPFlow, verdict: Verdict | None) -> None:
        """Reports that a request was answered in the origin's place."""
        self.marks.refused(shown, verdict)

    def refused_unread(self, conn: connection.Client, status: int, why: str) -> None:
        """Reports an answer to something that is no request, or a request that is too large."""
        self.gate.refused_unread(self.connections.client_of(conn))
        self.marks.refused_unread(conn, status, why)

    def answers(self, conn: connection.Client) -> int:
        """How many requests of a connection were answered before mitmproxy had it."""
        return self.connections.answers(conn)

    def answered(self, conn: connection.Client) -> None:
        """Reports that an unknown client has its answer, on a connection that stays open."""
        self.connections.answered(conn)

    def lingers(self, conn: connection.Client) -> None:
        """Reports that an unknown client has its last answer, and may still be sending."""
        self.connections.lingers(conn)

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether the client's socket is closed, so that nothing sent can reach the client."""
        return self.connections.is_gone(conn)

    def reset(self, conn: connection.Client) -> None:
        """Ends a connection with RST."""
        self.connections.abort_connection(conn, reset=True)

    def intercepted(
        self,
        conn: connection.Client,
        sni: str | None,
        dialled: Place | None,
        because: str,
        caveat: str,
    ) -> None:
        """Waits until the client has taken or rejected the certificate, and reports it then."""
        client, destination = self.connections.client_of(conn), str(dialled) if dialled else None
        trusts_ca = self.gate.policy.trusting.find(client) is not None
        self.handshakes.intercepted(
            conn, Handshake(client, sni, destination, because, caveat, trusts_ca)
        )

    def used(self, conn: connection.Client) -> None:
        """Reports that a client sent data: if its TLS is intercepted, it took the certificate."""
        self.handshakes.used(conn)

    def fault(self, where: str) -> None:
        """Reports that a fault of the portal denied something. Call it in the `except` block."""
        self.marks.fault(where)
