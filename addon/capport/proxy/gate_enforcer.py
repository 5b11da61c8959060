"""The enforcer of the layers and the hooks: it decides with the gate of a service."""

from dataclasses import dataclass, field
from typing import override

from mitmproxy import connection
from mitmproxy.proxy import mode_specs

from capport.core.client import Client
from capport.core.decision import HttpRequest, way_of_connect
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import (
    Inspect,
    Intercept,
    Pass,
    Refuse,
    TlsVerdict,
    Tunnel,
    Unavailable,
    Verdict,
)
from capport.front.hello import Hello
from capport.gate import Gate
from capport.proxy.connections import Connections
from capport.proxy.enforcer import Enforcer
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.flows.handshakes import Handshakes, InterceptedHandshake
from capport.proxy.open_connection import Key, key_of
from capport.proxy.request_head import url_of
from capport.service.service import Service
from capport.service.worker_service import WorkerService

type PortalService = Service | WorkerService
"""What the hooks use of the portal: a `WorkerService` in a worker, otherwise a `Service`."""

HELD = "the client has a session, but the kernel's set lacks it; the portal is adding it again"


@dataclass(eq=False)
class GateEnforcer(Enforcer):
    """Decides on what clients send, with the gate of `service`."""

    service: PortalService
    connections: Connections
    marks: FlowMarks
    handshakes: Handshakes
    _handed_on: dict[Key, Verdict] = field(default_factory=dict)

    @property
    def gate(self) -> Gate:
        """Decides which clients may reach which places."""
        return self.service.gate

    @override
    def decide(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
    ) -> Verdict:
        client, logins = self.connections.client_of(conn), self.connections.logins(conn)
        is_connect = request.method == "CONNECT"
        url = None if is_connect else url_of(request.scheme, claim, request.path)
        verdict = self.gate.request(client, request, claim, dialled, url, logins=logins)
        passes = isinstance(verdict, Pass) and verdict.to is None
        return Unavailable(HELD) if passes and self.is_held(conn, client) else verdict

    @override
    def decide_tls(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        try:
            client = self.connections.client_of(conn)
            logins = self.connections.logins(conn)
            verdict = self.gate.handshake(client, sni, dialled, logins=logins)
            match verdict:
                case Inspect() | Tunnel(to=None) if self.is_held(conn, client):
                    return Refuse(HELD)
            return verdict
        except Exception:
            self.marks.fault("decide_tls")
            return Refuse("the portal cannot decide now")

    def is_held(self, conn: connection.Client, client: Client) -> bool:
        """Whether a known client reached mitmproxy only because the kernel's set lacks it."""
        if not isinstance(conn.proxy_mode, mode_specs.TransparentMode):
            return False
        return self.service.is_held(self.connections.peer_of(conn), client)

    @override
    def way_of_connect(self, verdict: Verdict, user_agent: str, port: int) -> Connect:
        return way_of_connect(verdict, self.gate.policy, user_agent, port)

    @override
    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        if isinstance(verdict, Pass):
            self.connections.let_through(conn, verdict.to)
        self._handed_on[key_of(conn)] = verdict

    def handed_on(self, conn: connection.Client) -> Verdict | None:
        """Returns the verdict that `hand_on` kept, once; None if there is none."""
        return self._handed_on.pop(key_of(conn), None)

    @override
    def refused_unread(self, conn: connection.Client, status: int | None, why: str) -> None:
        self.gate.refused_unread(self.connections.client_of(conn))
        self.marks.refused_unread(conn, status, why)

    @override
    def intercepted(
        self, conn: connection.Client, hello: Hello, dialled: Place | None, verdict: Intercept
    ) -> None:
        client = self.connections.client_of(conn)
        trusts_ca = self.gate.policy.trusting.find(client) is not None
        handshake = InterceptedHandshake(client, hello, dialled, verdict.because, trusts_ca)
        self.handshakes.intercepted(conn, handshake)
