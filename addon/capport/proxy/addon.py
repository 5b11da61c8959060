"""Every hook of mitmproxy that the portal has: each asks the gate and carries out its verdict.

If a hook raises, mitmproxy logs the exception and forwards the flow. So each hook denies first and
permits last; the decorator `closed` denies when a hook raises. `server_connect` decides on every
connection to an origin, and the `Guard` refuses a connection that `server_connect` did not approve.
`Hooks` is installed once and stays, even if the script is edited or deleted.
"""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection, contentviews, ctx, dns, exceptions, http, tcp, tls, udp
from mitmproxy.addonmanager import Loader
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.layers import UDPLayer, modes
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from capport.core.client import Peer, parse_address
from capport.core.explanation import Explanation
from capport.core.policy import Connect, KnownHttp, KnownTls
from capport.core.reach import Machine
from capport.core.reply import Reply, reply_to
from capport.core.verdict import Pass, Verdict
from capport.gate import Gate
from capport.linux.own_addresses import OWN
from capport.metrics import Metrics
from capport.policy.policy_file import PolicyError
from capport.proxy import mitmproxy_options
from capport.proxy.connections import Connections
from capport.proxy.console import Console
from capport.proxy.fail_closed import (
    NO_VERDICT,
    Guard,
    NotStarted,
    closed,
    deny_dns,
    deny_flow,
    deny_layer,
)
from capport.proxy.flows.flow_marks import GARDEN_MARK, FlowMarks, decided_on
from capport.proxy.flows.handshakes import Handshakes
from capport.proxy.flows.refusal_view import RefusalContentview
from capport.proxy.flows.shown import Shown
from capport.proxy.front_protocol import Front, leads_back
from capport.proxy.gate_enforcer import GateEnforcer, PortalService
from capport.proxy.internals import http1_reader, http2_bounds, sockets
from capport.proxy.internals.addons import before_failures, put_where_scripts_stand
from capport.proxy.internals.http2_bounds import PREFACE
from capport.proxy.internals.http_events import RefusedHead
from capport.proxy.internals.http_streams import speak_http2
from capport.proxy.internals.listeners import Listeners, NotTakenOver
from capport.proxy.internals.server import OwnPorts, connect_early, frame_of, handler_of, is_serving
from capport.proxy.layers.http1 import RefusalLayer
from capport.proxy.layers.http2 import BoundLayer
from capport.proxy.layers.tls import HelloLayer, ServerFirst
from capport.proxy.request_head import case_of, claim_of, is_plain, place_of, send_to
from capport.proxy.resolver import SystemResolver
from capport.proxy.responses import asked_of, bare, to_mitmproxy
from capport.proxy.upstream import Dialling
from capport.service.service import Service
from capport.service.settings import SettingError, Settings
from capport.web.vouching import HEADER

SILENT = "portal: UDP of an unknown client is not answered"
DROPPED = "portal: this client was refused too often (limits.drop_after)"


@dataclass(eq=False)
class Hooks:
    """Every hook of the portal. `service` has the gate, the policy and the sessions."""

    name = "capport"

    service: PortalService
    connections: Connections
    marks: FlowMarks
    enforcer: GateEnforcer
    dialling: Dialling
    front: Front
    shown: Shown
    guard: Guard
    _beginning: asyncio.Future[None] | None = None

    @property
    def gate(self) -> Gate:
        """Decides which clients may reach which places."""
        return self.service.gate

    # --- hooks: the portal itself ----------------------------------------------------------------

    def configure(self, updated: set[str]) -> None:
        """Applies a change of our options at run time.

        `mitmproxy_options` checks the changes of mitmproxy's own options.
        """
        for name in ("portal_sessions", "portal_api", "portal_metrics"):
            if name in updated:
                raise mitmproxy_options.Unusable(f"{name} cannot be changed while the portal runs")
        self.shown.follow(ctx.options, mitmproxy_options.shown_a_second(ctx.options))
        wanted = mitmproxy_options.settings_of(ctx.options)
        try:
            if "portal_events" in updated:
                self.service.write_events_to(wanted.events)
            if "portal_policy" in updated:
                self.service.follow_policy_file(wanted.policy)
        except (PolicyError, SettingError) as error:
            raise exceptions.OptionsError(str(error)) from None

    async def running(self) -> None:
        """Returns once the portal serves. mitmproxy and the script may both call this."""
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._begin())
        await self._beginning

    async def _begin(self) -> None:
        """Starts what needs the event loop."""
        try:
            self.front.open()
            self._listeners = Listeners(self.front.accepted)
            before_failures(ctx.master.addons, self.front.ends.turn)
            await self.service.start(self.connections)
            gc.freeze()  # all that is loaded: a full collection would hold everybody up for 70 ms
        except (NotTakenOver, OSError, SettingError) as error:
            mitmproxy_options.stop_the_start(error)

    async def done(self) -> None:
        """Stops the front, then the service."""
        self.front.close()
        await self.service.stop()

    # --- hooks: connections ----------------------------------------------------------------------

    @closed
    def client_connected(self, conn: connection.Client) -> None:
        """Refuses a connection to the proxy itself; starts the deadline of an unknown client."""
        before, conn.error = conn.error, conn.error or NO_VERDICT
        if isinstance(conn.proxy_mode, mode_specs.TransparentMode | mode_specs.TunMode):
            dialled = place_of(conn.sockname)
            if dialled and leads_back(dialled, self.gate.machine):
                conn.error = "portal: a connection to the proxy itself, which would loop"
                return
        client = self.connections.handed_over(conn)
        if client is None:
            peer = Peer(parse_address(conn.peername[0]), frame_of(conn))
            client = self.gate.client(peer)
            if self.gate.is_dropped(self.gate.standing(client)):
                conn.error = DROPPED
                self.connections.abort_connection(conn, reset=True)
                return
            if _is_silent(conn) and not self.gate.known(client):
                conn.error = SILENT
                return
            self.connections.opened(conn, client, peer.frame)
        if self.gate.known(client) and not self.enforcer.is_held(conn, client):
            connect_early(handler_of(conn.id))
        conn.error = before

    @closed
    def client_disconnected(self, conn: connection.Client) -> None:
        """Forgets the connection, and closes the sockets that mitmproxy left open."""
        self.enforcer.handed_on(conn)
        sockets.close(handler_of(conn.id))
        self.enforcer.handshakes.closed(conn)
        self.connections.closed(conn)

    @closed
    def next_layer(self, asked: layer.NextLayer) -> None:
        """Chooses the layer for every TLS connection, and for all bytes of an unknown client."""
        if asked.layer:
            return  # another addon chose it; server_connect still decides
        conn, data = asked.context.client, asked.data_client()
        if conn.state is connection.ConnectionState.CLOSED:
            deny_layer(asked)  # the client has gone, and mitmproxy's TLS layers would raise
            return
        known = self.gate.known(self.connections.client_of(conn))
        if conn.transport_protocol != "tcp":
            if not known:  # UDP, and so QUIC (tun mode): nothing of it is read
                deny_layer(asked)
            elif self.gate.policy.tls.known is KnownTls.TUNNEL and _is_quic(asked):
                asked.layer = UDPLayer(asked.context, ignore=True)
            return
        outermost = len(asked.context.layers) == 1
        to_proxy = outermost and isinstance(asked.context.layers[0], modes.HttpProxy)
        if not known and data and self.connections.speaks_http1(conn, in_tunnel=not outermost):
            asked.layer = RefusalLayer(asked.context, self.enforcer)
            return
        if data[:1] == b"\x16" and len(data) < 3 and not known:
            raise exceptions.AddonHalt  # no addon may choose yet: mitmproxy asks again on more data
        if starts_like_tls_record(data):
            asked.layer = HelloLayer(asked.context, self.enforcer, to_proxy=to_proxy)
        elif known:
            return
        elif not data:
            raise exceptions.AddonHalt
        elif PREFACE.startswith(data) and len(data) < len(PREFACE):
            raise exceptions.AddonHalt  # HTTP/2, or a method that begins like its preface
        elif data.startswith(PREFACE) or conn.alpn == b"h2":
            speak_http2(conn)
            mode = HTTPMode.transparent if asked.context.server.address else HTTPMode.regular
            asked.layer = BoundLayer(asked.context, mode)
        else:
            asked.layer = RefusalLayer(asked.context, self.enforcer)

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        """Decides on every connection to an origin; none is opened without this hook.

        The name is resolved here, once, and mitmproxy dials the resulting address. So a DNS server
        that gives another answer to a second query changes nothing.
        """
        before, data.server.error = data.server.error, data.server.error or NO_VERDICT
        try:
            address = await self.dialling.address_for(data)
        except Exception as error:
            if not isinstance(error, OSError):
                self.marks.fault("server_connect")
            data.server.error = data.server.error if before else f"portal: {error}"
            return
        self.dialling.dial(data.server, address)
        data.server.error = before
        self.guard.approve(data.server)

    @closed
    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Records that the connection is open; tells the login server which client it is for."""
        self.dialling.connected(data)
        login, server = self.service.login, data.server
        if login and server.sockname and server.peername:
            peer = self.connections.peer_of(data.client)
            try:
                login.connected(server.sockname, server.peername, peer)
            except OSError:
                self.connections.abort_connection(data.client)
                raise

    @closed
    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """Records that the connection has ended; the login server may forget its client."""
        self.connections.hung_up(data.client, data.server.id)
        if self.service.login and data.server.sockname:
            self.service.login.disconnected(data.server.sockname)

    @closed
    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Records that the connection could not be opened, or was denied."""
        self.dialling.failed(data)

    # --- hooks: TLS ------------------------------------------------------------------------------

    @closed
    def tls_established_client(self, data: tls.TlsData) -> None:
        """Records that the handshake is done. The client may not have checked the certificate."""
        self.enforcer.handshakes.established(data.context.client)

    @closed
    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Reports that the client rejected the certificate (RFC 6585 section 7.4)."""
        self.enforcer.handshakes.failed(data.context.client, data.conn.error)

    # --- hooks: HTTP -----------------------------------------------------------------------------

    @closed
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decides on each request that mitmproxy's own HTTP layer has read."""
        if flow.response or flow.error:
            return  # one of our layers, another addon, or mitmproxy (400) has answered
        deny_flow(flow)
        self.enforcer.handshakes.used(flow.client_conn)
        flow.request.headers.pop(HEADER, None)  # only the portal may name the client
        verdict = self._verdict_on(flow)
        if not isinstance(verdict, Pass):
            self._answer(flow, verdict, reply_to(verdict, asked_of(flow.request)))
            return
        if verdict.to is not None and not is_plain(flow.request):
            self._answer(flow, verdict, bare(400))
            return
        if verdict.to is not None:
            send_to(flow.request, verdict.to)
        self.marks.forwarded(flow, verdict)
        beside = flow.request.is_http2 or flow.request.is_http3
        self.connections.let_through(flow.client_conn, verdict.to, beside=beside)
        self._vouch(flow)
        if verdict.to or self.gate.policy.http_known is KnownHttp.STREAM:
            flow.request.stream = True
        flow.response = None

    def _answer(self, flow: http.HTTPFlow, verdict: Verdict, reply: Reply) -> None:
        flow.response = to_mitmproxy(reply)
        flow.request.headers.pop("expect", None)
        if not (flow.request.is_http2 or flow.request.is_http3):
            flow.response.headers["connection"] = "close"
        elif reply.status == 431:
            http2_bounds.say_goodbye(flow.client_conn)
        self.marks.refused(flow, verdict)
        self.connections.answered(flow.client_conn)

    @closed
    def head_refused(self, head: RefusedHead) -> None:
        """Counts and reports a head that mitmproxy's own readers refused."""
        self.enforcer.refused_unread(head.client, head.status, head.why)

    @closed
    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Decides on a CONNECT.

        A refused client may get a tunnel that leads nowhere: `next_layer` then refuses what is
        sent in it, because browsers do not show the answer to a CONNECT.
        """
        if flow.response or flow.error:
            return
        deny_flow(flow)
        verdict = self._verdict_on(flow)
        if isinstance(verdict, Pass):
            self.marks.forwarded(flow, verdict)
            self.connections.let_through(flow.client_conn, verdict.to)
        elif self._answers_connect(verdict, flow.request):
            self._answer(flow, verdict, reply_to(verdict, asked_of(flow.request)))
            return
        else:
            flow.response = None  # the client gets the tunnel
            self.marks.tunnelled(flow, verdict)
        flow.response = None

    @closed
    def http_connected(self, flow: http.HTTPFlow) -> None:
        """Reports the tunnel."""
        self.marks.passed(flow)

    @closed
    def error(self, flow: http.HTTPFlow) -> None:
        """Reports a request that was forwarded and got no answer."""
        if flow.response is None:
            self.marks.passed(flow)

    @closed
    def http_connect_error(self, flow: http.HTTPFlow) -> None:
        """Ends the connection after a failed CONNECT: mitmproxy cannot read a second one on it."""
        if flow.response:
            flow.response.headers["connection"] = "close"
            flow.response.headers["cache-control"] = "no-store"

    def _answers_connect(self, verdict: Verdict, request: http.Request) -> bool:
        agent = request.headers.get("user-agent", "")
        return self.enforcer.way_of_connect(verdict, agent, request.port) is Connect.ANSWER

    def _verdict_on(self, flow: http.HTTPFlow) -> Verdict:
        handed_on = self.enforcer.handed_on(flow.client_conn)
        if handed_on is not None:
            return handed_on  # the layer that read the head has asked for and counted the verdict
        request, claim = flow.request, claim_of(flow.request)
        dialled = place_of(flow.server_conn.address)
        return self.enforcer.decide(flow.client_conn, case_of(request), claim, dialled)

    def _vouch(self, flow: http.HTTPFlow) -> None:
        """Names the client to the login server, which sees only the proxy's address."""
        login = self.service.login
        if login and login.is_at(place_of((flow.request.host, flow.request.port))):
            flow.request.headers[HEADER] = login.sign(self.connections.peer_of(flow.client_conn))

    @closed
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Streams the origin's response, unless the operator wants mitmproxy to keep it."""
        if flow.response is None or decided_on(flow)[0] != "Pass":
            return
        garden = flow.marked == GARDEN_MARK
        if garden or self.gate.policy.http_known is KnownHttp.STREAM:
            flow.response.stream = True
        self.marks.passed(flow)

    @closed
    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Drops old messages, which mitmproxy would keep in memory until the flow ends."""
        if self.gate.policy.http_known is KnownHttp.STREAM and flow.websocket:
            del flow.websocket.messages[:-1]  # later addons (dumper) read the last one

    @closed
    def tcp_message(self, flow: tcp.TCPFlow | udp.UDPFlow) -> None:
        """Drops old messages of raw TCP and UDP, as `websocket_message` does."""
        if self.gate.policy.http_known is KnownHttp.STREAM:
            # mitmproxy sends the last message after this hook, so that one must stay.
            del flow.messages[:-1]

    udp_message = tcp_message

    @closed
    def dns_request(self, flow: dns.DNSFlow) -> None:
        """Refuses an unknown client's DNS query: mitmproxy would answer it without connecting."""
        if not self.gate.known(self.connections.client_of(flow.client_conn)):
            deny_dns(flow)

    def explanation(self, flow: http.HTTPFlow) -> Explanation:
        """Explains the verdict that a request like this one would get now."""
        request = flow.request
        dialled = place_of(flow.server_conn.address)
        client = self.connections.client_of(flow.client_conn)
        return self.gate.explain(client, case_of(request), claim_of(request), dialled, request.url)

    def explain(self, flow: http.HTTPFlow) -> str:
        """Says what was decided on this flow, and what each rule says about the same request now.

        If the verdict would be another one now, a line says so.
        """
        steps = self.explanation(flow).decisive
        lines = [f"{name}: {said.because if said else 'says nothing'}" for name, said in steps]
        verdict, because = decided_on(flow)
        now = steps[-1][1]
        if verdict and verdict != type(now).__name__:
            lines.insert(0, f"Now {type(now).__name__} would be the verdict, by these rules:")
        if verdict:
            lines.insert(0, f"Then {verdict}: {because}")
        return "\n".join(lines)


type OpenService = Callable[[Settings, SystemResolver, Metrics], PortalService]
"""Opens what the hooks use. Raises PolicyError, SettingError or OSError."""


def open_service(settings: Settings, resolver: SystemResolver, metrics: Metrics) -> Service:
    """A service with everything, in this process."""
    return Service(settings, resolver, machine=Machine(OWN, OwnPorts()), metrics=metrics)


class CaptivePortal:
    """The script's addon: declares our options, then installs the `Guard` and the `Hooks`."""

    def __init__(self, open_service: OpenService = open_service) -> None:
        self._open_service = open_service

    def load(self, loader: Loader) -> None:
        """Installs the guard first: from here on, no connection is opened without approval."""
        if ctx.master.addons.get(Guard.name) is None:
            ctx.master.addons.add(Guard())
            put_where_scripts_stand(NotStarted())
        http1_reader.install()
        http2_bounds.bound()
        try:
            mitmproxy_options.declare(loader)
        except mitmproxy_options.Unusable as error:
            self._cannot(error)

    def configure(self, updated: set[str]) -> None:
        """Starts the service and replaces `NotStarted` by the hooks, once.

        mitmproxy calls this when our options have their values.
        """
        not_started = ctx.master.addons.get(Hooks.name)
        if isinstance(not_started, Hooks):
            return
        try:
            mitmproxy_options.hold(ctx.options)
            hooks = compose(ctx.master.addons.get(Guard.name), self._open_service)
        except (exceptions.OptionsError, PolicyError, SettingError, OSError) as error:
            self._cannot(error)
        else:
            ctx.master.addons.remove(not_started)
            put_where_scripts_stand(hooks)
            ctx.master.addons.add(ServerFirst(), Console(hooks.service, hooks.explain))
            contentviews.add(RefusalContentview(hooks.explain))

    def running(self) -> None:
        """Starts the hooks, also when the script is added to a mitmproxy that already runs."""
        hooks = ctx.master.addons.get(Hooks.name)
        if isinstance(hooks, Hooks) and is_serving():
            self._beginning = asyncio.create_task(hooks.running())

    def _cannot(self, error: Exception) -> None:
        if not is_serving():
            mitmproxy_options.stop_the_start(error)
        raise exceptions.OptionsError(str(error))


def compose(guard: Guard, open_service: OpenService) -> Hooks:
    """Opens a service with the values of mitmproxy's options, and makes the hooks.

    Raises OptionsError, PolicyError, SettingError, or OSError.
    """
    resolver = SystemResolver()
    settings, metrics = mitmproxy_options.settings_of(ctx.options), Metrics(denied=guard.denied)
    service = open_service(settings, resolver, metrics)
    connections = Connections(service.gate, handler_of)
    marks = FlowMarks(service.gate, connections)
    shown = Shown(marks, service.gate)
    handshakes = Handshakes(marks.event, shown.rejected)
    enforcer = GateEnforcer(service, connections, marks, handshakes)
    dialling = Dialling(enforcer, resolver)
    shown.follow(ctx.options, mitmproxy_options.shown_a_second(ctx.options))
    front = Front(service.gate, connections, marks, shown)
    return Hooks(service, connections, marks, enforcer, dialling, front, shown, guard)


def _is_silent(conn: connection.Client) -> bool:
    """Whether an unknown client gets no answer on this connection, not even that of `dns_request`.

    mitmproxy makes a connection for each port that datagrams come from. 500 with layers take 70 MB.
    """
    udp = conn.transport_protocol != "tcp"
    return udp and not isinstance(conn.proxy_mode, mode_specs.DnsMode)


def _is_quic(asked: layer.NextLayer) -> bool:
    data = asked.data_client()
    # RFC 9000 section 17.2: a client's first packet has a long header, and is padded to 1200 bytes.
    return len(data) >= 1200 and data[0] & 0xC0 == 0xC0
