"""mitmproxy's hooks, in terms of the gate.

mitmproxy logs what a hook raises and lets the flow go on. So each hook denies first and lifts after
(`closed` sees to what is raised between), `server_connect` is the gate proper, and the `Guard`
stands behind it. `Gatekeeper` is installed once and stays, whatever becomes of the script.
"""

import asyncio
from typing import cast

from mitmproxy import connection, ctx, dns, exceptions, http, tcp, tls, udp
from mitmproxy.addonmanager import Loader
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.layers import UDPLayer, modes
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from capport.core.client import Peer, parse_address
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Connect, KnownHttp, KnownTls, UnknownTls
from capport.core.reply import Reply, reply_to
from capport.core.verdict import (
    Inspect,
    Pass,
    Refuse,
    TlsVerdict,
    TooManyRequests,
    Tunnel,
    Unavailable,
    Verdict,
)
from capport.linux.own_addresses import is_own
from capport.policy import policy_file
from capport.proxy import mitmproxy_options
from capport.proxy.connections import MOST_TO_LOGIN, Key, key_of
from capport.proxy.console import Console
from capport.proxy.fail_closed import Guard
from capport.proxy.flow_marks import GARDEN_MARK, KNOWN_MARK, REFUSED_MARK, decided_on, mark
from capport.proxy.hook_errors import closed
from capport.proxy.internals import http1_reader, http2_bounds
from capport.proxy.internals.server import connect_early, frame_of, handler_of, own_ports
from capport.proxy.layers.http1 import RefusalLayer, SilentLayer
from capport.proxy.layers.http2 import BoundLayer
from capport.proxy.layers.tls import Handshakes, HelloLayer, ServerFirst
from capport.proxy.life import HELD, Life
from capport.proxy.request_head import (
    case_of,
    claim_of,
    credentials_in,
    is_plain,
    place_of,
    send_to,
    url_of,
)
from capport.proxy.responses import CLOSED, asked_of, bare, to_mitmproxy
from capport.proxy.upstream import Dialling
from capport.web.vouching import HEADER

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # of an HTTP/2 client, RFC 9113 section 3.4
LATER = 5  # seconds until one of a client's connections to the login server should have ended


def _deny_flow(self: "Gatekeeper", shown: http.HTTPFlow) -> None:
    shown.response = to_mitmproxy(CLOSED)
    shown.response.headers["connection"] = "close"


def _deny_client(self: "Gatekeeper", client: connection.Client) -> None:
    client.error = client.error or "portal: no verdict"


def _deny_layer(self: "Gatekeeper", asked: layer.NextLayer) -> None:
    if not isinstance(asked.layer, SilentLayer):
        asked.layer = SilentLayer(asked.context)


def _deny_nothing[Data](self: "Gatekeeper", data: Data) -> None:
    """For hooks after which nothing is let through."""


class Gatekeeper(Life):
    """Every hook of the portal.

    It has no gate until `start`: until then whatever asks for it raises, and so is denied.
    """

    name = "capport"

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard
        self.handshakes = Handshakes(self.event)
        self.dialling = Dialling(self)
        self._handed_on: dict[Key, Verdict] = {}

    # --- what the layers ask and say -------------------------------------------------------------

    def request_verdict(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None,
    ) -> Verdict:
        """The gate's verdict on a request."""
        client = self.client(conn)
        verdict = self.gate.request(client, request, claim, dialled, url)
        if not isinstance(verdict, Pass):
            return verdict
        if verdict.to is None and self.is_held(conn, client):
            return Unavailable(HELD)
        if not self._may_go(conn, verdict.to):
            return TooManyRequests(self._too_many(conn), LATER)
        return verdict

    def tls_verdict(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """The gate's verdict on a handshake, Refuse where it has none."""
        try:
            client = self.client(conn)
            verdict = self.gate.handshake(client, sni, dialled)
            known = isinstance(verdict, Inspect) or (
                isinstance(verdict, Tunnel) and verdict.to is None
            )
            if known and self.is_held(conn, client):
                return Refuse(HELD)
            if isinstance(verdict, Tunnel) and not self._may_go(conn, verdict.to):
                return Refuse(self._too_many(conn))
            return verdict
        except Exception:
            self.fault("tls_verdict")
            return Refuse("the portal cannot decide now")

    def _may_go(self, conn: connection.Client, place: Place | None) -> bool:
        to_login = place is not None and place in self.gate.policy.login_places
        return not to_login or self.connections.may_log_in(conn)

    def _too_many(self, conn: connection.Client) -> str:
        return f"{self.client(conn)} has {MOST_TO_LOGIN} connections to the login server open"

    def connect_way(self, user_agent: str, port: int) -> Connect:
        """How a CONNECT is refused: `answer` or `alert`.

        Chromium and Firefox hide the answer to a CONNECT behind a dead end. So does undici, which
        opens a tunnel for plain HTTP too: what it asks for in there it does read the answer to.
        """
        way = self.gate.policy.tls.connect
        if way is not Connect.AUTO:
            return way
        reads_inside = user_agent.startswith("Mozilla/") or port == 80
        return Connect.ALERT if reads_inside else Connect.ANSWER

    def let_through(self, conn: connection.Client, place: Place | None) -> None:
        """Something of this connection's goes on; its deadline is lifted."""
        self.connections.let_through(conn, place)

    def hand_on(self, conn: connection.Client, verdict: Verdict) -> None:
        """A request was decided upon, and counted; mitmproxy's HTTP reads it next."""
        if isinstance(verdict, Pass):
            self.let_through(conn, verdict.to)
        self._handed_on[key_of(conn)] = verdict

    def answered(self, conn: connection.Client) -> None:
        """An unknown client had its answer on a connection that stays open."""
        self.connections.answered(conn)

    def lingers(self, conn: connection.Client) -> None:
        """An unknown client had its last answer, and may still be sending."""
        self.connections.lingers(conn)

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether nothing that is sent to a client can reach it any more."""
        return self.connections.is_gone(conn)

    def reset(self, conn: connection.Client) -> None:
        """Ends a connection with RST."""
        self.connections.abort_connection(conn, reset=True)

    # --- hooks: connections ----------------------------------------------------------------------

    @closed(_deny_client)
    def client_connected(self, conn: connection.Client) -> None:
        """Refuses what would loop, starts the deadline of an unknown client."""
        before, conn.error = conn.error, conn.error or "portal: no verdict"
        if isinstance(conn.proxy_mode, mode_specs.TransparentMode | mode_specs.TunMode):
            dialled = place_of(conn.sockname)
            here = dialled and not isinstance(dialled.host, str) and is_own(dialled.host)
            if dialled and dialled.port in own_ports() and here:
                conn.error = "portal: a connection to the proxy itself, which would loop"
                return
        peer = Peer(parse_address(conn.peername[0]), frame_of(conn))
        client = self.gate.client(peer)
        self.connections.opened(conn, client, peer.frame)
        if self.gate.known(client) and not self.is_held(conn, client):
            connect_early(handler_of(conn.id))
        conn.error = before

    @closed(_deny_nothing)
    def client_disconnected(self, conn: connection.Client) -> None:
        """Forgets the connection, and closes what mitmproxy left open."""
        self._handed_on.pop(key_of(conn), None)
        handler = handler_of(conn.id)
        for io in tuple(handler.transports.values()) if handler else ():
            if io.writer and not io.writer.is_closing():
                io.writer.close()
        self.handshakes.closed(conn)
        self.connections.closed(conn)

    @closed(_deny_layer)
    def next_layer(self, asked: layer.NextLayer) -> None:
        """Chooses for every TLS, and for all that an unknown client sends."""
        if asked.layer:
            return  # by another addon of the operator's; server_connect decides on it all the same
        conn, data = asked.context.client, asked.data_client()
        known = self.gate.known(self.client(conn))
        if conn.transport_protocol != "tcp":
            if not known:
                self._next_layer_of_udp(asked)
            elif self.gate.policy.tls.known is KnownTls.TUNNEL and _is_quic(asked):
                asked.layer = UDPLayer(asked.context, ignore=True)
            return
        to_proxy = len(asked.context.layers) == 1 and isinstance(
            asked.context.layers[0], modes.HttpProxy
        )
        if data[:1] == b"\x16" and len(data) < 3 and not known:
            raise exceptions.AddonHalt  # not even the default addon: ask again when there is more
        if starts_like_tls_record(data):
            asked.layer = HelloLayer(asked.context, self, to_proxy=to_proxy)
        elif known:
            return
        elif not data:
            raise exceptions.AddonHalt
        elif PREFACE.startswith(data) and len(data) < len(PREFACE):
            raise exceptions.AddonHalt  # HTTP/2, or a method that begins as its preface does
        elif data.startswith(PREFACE) or conn.alpn == b"h2":
            conn.alpn = b"h2"  # also where nobody negotiated it (RFC 9113 section 3.3)
            mode = HTTPMode.transparent if asked.context.server.address else HTTPMode.regular
            asked.layer = BoundLayer(asked.context, mode)
        else:
            asked.layer = RefusalLayer(asked.context, self)

    def _next_layer_of_udp(self, asked: layer.NextLayer) -> None:
        """An unknown client's UDP: nothing, but for QUIC that is to be intercepted (tun mode)."""
        conn = asked.context.client
        if conn.tls_established and conn.alpn and conn.alpn.startswith(b"h3"):
            asked.layer = BoundLayer(asked.context, HTTPMode.transparent)
        elif self.gate.policy.tls.unknown is not UnknownTls.INTERCEPT or not _is_quic(asked):
            asked.layer = SilentLayer(asked.context)

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        """The gate proper: no connection to an origin is opened but through here.

        The name is resolved here, once, and what was resolved is what is dialled: whoever answers
        DNS otherwise a second time changes nothing.
        """
        before, data.server.error = data.server.error, data.server.error or "portal: no verdict"
        try:
            address = await self.dialling.address_for(data)
        except Exception as error:
            if not isinstance(error, OSError):
                self.fault("server_connect")
            data.server.error = data.server.error if before else f"portal: {error}"
            return
        self.dialling.dial(data.server, address)
        data.server.error = before
        self.guard.approve(data.server)

    @closed(_deny_nothing)
    def server_connected(self, data: ServerConnectionHookData) -> None:
        """The origin is there."""
        self.dialling.connected(data)
        self.alongside.connected(data.server, self.peer(data.client))

    @closed(_deny_nothing)
    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """The login server need not remember for whom that was."""
        self.dialling.ended(data)
        self.alongside.disconnected(data.server)

    @closed(_deny_nothing)
    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """It is not, or may not be reached."""
        self.dialling.failed(data)

    # --- hooks: TLS ------------------------------------------------------------------------------

    @closed(_deny_nothing)
    def tls_established_client(self, data: tls.TlsData) -> None:
        """The client has taken the certificate, or has not looked yet."""
        self.handshakes.established(data.context.client)

    @closed(_deny_nothing)
    def tls_failed_client(self, data: tls.TlsData) -> None:
        """The client has rejected the certificate. RFC 6585 section 7.4."""
        self.handshakes.failed(data.context.client, data.conn.error)

    # --- hooks: HTTP -----------------------------------------------------------------------------

    @closed(_deny_flow)
    def requestheaders(self, shown: http.HTTPFlow) -> None:
        """Decides on each request that mitmproxy's own HTTP has read."""
        if shown.response or shown.error:
            return  # answered: by a layer of ours, another addon, or mitmproxy (400)
        _deny_flow(self, shown)
        self.handshakes.used(shown.client_conn)
        shown.request.headers.pop(HEADER, None)  # only we say who asks
        verdict = self._verdict_on(shown)
        if not isinstance(verdict, Pass):
            self._answer(shown, verdict, reply_to(verdict, asked_of(shown.request)))
            return
        if verdict.to is not None and not is_plain(shown.request):
            self._answer(shown, verdict, bare(400))
            return
        if verdict.to is not None:
            send_to(shown.request, verdict.to)
        mark(shown, GARDEN_MARK if verdict.to else KNOWN_MARK, "Pass", verdict.because)
        beside = shown.request.is_http2 or shown.request.is_http3
        self.connections.let_through(shown.client_conn, verdict.to, beside=beside)
        self._vouch(shown)
        if verdict.to or self.gate.policy.http_known is KnownHttp.STREAM:
            shown.request.stream = True
        shown.response = None

    def _answer(self, shown: http.HTTPFlow, verdict: Verdict, reply: Reply) -> None:
        shown.response = to_mitmproxy(reply)
        shown.request.headers.pop("expect", None)
        if not (shown.request.is_http2 or shown.request.is_http3):
            shown.response.headers["connection"] = "close"
        self.refused(shown, verdict)
        self.answered(shown.client_conn)

    @closed(_deny_flow)
    def http_connect(self, shown: http.HTTPFlow) -> None:
        """Decides on a CONNECT. In a tunnel that leads nowhere, `next_layer` refuses."""
        if shown.response or shown.error:
            return
        _deny_flow(self, shown)
        verdict = self._verdict_on(shown)
        if isinstance(verdict, Pass):
            mark(shown, GARDEN_MARK if verdict.to else KNOWN_MARK, "Pass", verdict.because)
            self.let_through(shown.client_conn, verdict.to)
        elif self._answers_connect(shown.request):
            shown.response = to_mitmproxy(reply_to(verdict, asked_of(shown.request)))
            shown.response.headers["connection"] = "close"
            self.refused(shown, verdict)
            return
        else:
            mark(shown, REFUSED_MARK, type(verdict).__name__, verdict.because)
            if credentials_in(shown.request.headers):
                shown.response = None  # which the tunnel has that leads nowhere
                self.refused(shown, verdict)
        shown.response = None

    @closed(_deny_nothing)
    def http_connect_error(self, shown: http.HTTPFlow) -> None:
        """Ends the connection of a CONNECT that failed: mitmproxy cannot take a second one."""
        if shown.response:
            shown.response.headers["connection"] = "close"
            shown.response.headers["cache-control"] = "no-store"

    def _answers_connect(self, request: http.Request) -> bool:
        agent = request.headers.get("user-agent", "")
        return self.connect_way(agent, request.port) is Connect.ANSWER

    def _verdict_on(self, shown: http.HTTPFlow) -> Verdict:
        handed_on = self._handed_on.pop(key_of(shown.client_conn), None)
        if handed_on is not None:
            return handed_on  # decided, and counted, by the layer that read its head
        request, claim = shown.request, claim_of(shown.request)
        dialled = place_of(shown.server_conn.address)
        url = url_of(request.scheme, claim, request.path)
        return self.request_verdict(shown.client_conn, case_of(request), claim, dialled, url)

    def _vouch(self, shown: http.HTTPFlow) -> None:
        """Tells the login server who asks: all that comes by us has our address."""
        if self.alongside.is_login_server(place_of((shown.request.host, shown.request.port))):
            signed = self.alongside.sign(self.peer(shown.client_conn))
            if signed:
                shown.request.headers[HEADER] = signed

    @closed(_deny_nothing)
    def responseheaders(self, shown: http.HTTPFlow) -> None:
        """Has what an origin sends pass through unbuffered, unless the operator wants to see it."""
        if shown.response is None or decided_on(shown)[0] != "Pass":
            return
        garden = shown.marked == GARDEN_MARK
        if garden or self.gate.policy.http_known is KnownHttp.STREAM:
            shown.response.stream = True

    @closed(_deny_nothing)
    def websocket_message(self, shown: http.HTTPFlow) -> None:
        """Keeps no message for ever, as mitmproxy would."""
        if self.gate.policy.http_known is KnownHttp.STREAM and shown.websocket:
            del shown.websocket.messages[:-1]  # the last is what dumper and others after us read

    @closed(_deny_nothing)
    def tcp_message(self, shown: tcp.TCPFlow) -> None:
        """The same for raw TCP."""
        if self.gate.policy.http_known is KnownHttp.STREAM:
            # mitmproxy sends the last message after this hook, so it is the one that must stay.
            del shown.messages[:-1]

    @closed(_deny_nothing)
    def udp_message(self, shown: udp.UDPFlow) -> None:
        """The same for UDP."""
        if self.gate.policy.http_known is KnownHttp.STREAM:
            del shown.messages[:-1]

    def dns_request(self, shown: dns.DNSFlow) -> None:
        """Refuses an unknown client's DNS, which mitmproxy answers without a connection."""
        before = shown.response
        shown.response = shown.request.fail(5)  # RFC 1035 section 4.1.1: REFUSED
        try:
            client = self.client(shown.client_conn)
            if self.gate.known(client):
                shown.response = before
        except Exception:
            self.fault("dns_request")

    def explain(self, shown: http.HTTPFlow) -> str:
        """What was decided on it; and which rules are asked of one like it now, and which decides.

        What would be decided now is said where it is another verdict.
        """
        request = shown.request
        case = HttpRequest(request.method, request.scheme, request.path)
        dialled = place_of(shown.server_conn.address)
        client = self.client(shown.client_conn)
        steps = self.gate.explain(client, case, claim_of(request), dialled)
        lines = [f"{name}: {said.because if said else 'says nothing'}" for name, said in steps]
        verdict, because = decided_on(shown)
        now = steps[-1][1]
        if verdict and verdict != type(now).__name__:
            lines.insert(0, f"Now {type(now).__name__}, as the rules are asked now:")
        if verdict:
            lines.insert(0, f"Then {verdict}: {because}")
        return "\n".join(lines)


class CaptivePortal:
    """The script's addon: declares our options, and installs what does the work."""

    def load(self, loader: Loader) -> None:
        """The guard first: from here on nothing is let through that nobody approved."""
        guard = ctx.master.addons.get(Guard.name)
        if guard is None:
            guard = Guard()
            ctx.master.addons.add(guard)
        keeper = ctx.master.addons.get(Gatekeeper.name)
        if keeper is None:
            keeper = Gatekeeper(guard)
            _install(keeper)
            ctx.master.addons.add(ServerFirst(), Console(lambda: keeper.gate, keeper.explain))
        self.keeper: Gatekeeper = keeper
        mitmproxy_options.outlive_our_errors()
        mitmproxy_options.log_at_once()
        mitmproxy_options.log_strangers_seldom()
        http1_reader.install()
        http2_bounds.bound()
        try:
            mitmproxy_options.check_deferred(ctx.options)
        except mitmproxy_options.Unusable as error:
            self._cannot(error)
        for name, text in mitmproxy_options.OURS.items():
            loader.add_option(name, cast(type, str | None), None, text)
        mitmproxy_options.force(ctx.options)

    def configure(self, updated: set[str]) -> None:
        """Called by mitmproxy once our options have their values."""
        if self.keeper.started:
            return
        try:
            self.keeper.start()
        except (exceptions.OptionsError, policy_file.PolicyError, OSError) as error:
            self._cannot(error)

    def running(self) -> None:
        """The portal begins, also where the script was added while mitmproxy ran."""
        if not mitmproxy_options.starting():
            self._beginning = asyncio.create_task(self.keeper.running())

    def _cannot(self, error: Exception) -> None:
        if mitmproxy_options.starting():
            mitmproxy_options.stop_the_start(error)
        raise exceptions.OptionsError(str(error))


def _install(keeper: Gatekeeper) -> None:
    """Puts `keeper` where a script would stand: before mitmproxy chooses layers and TLS."""
    manager = ctx.master.addons
    manager.register(keeper)
    names = [getattr(addon, "name", type(addon).__name__.lower()) for addon in manager.chain]
    manager.chain.insert(names.index("scriptloader") + 1, keeper)


def _is_quic(asked: layer.NextLayer) -> bool:
    data = asked.data_client()
    # RFC 9000 section 17.2: a client's first packet has a long header, and is padded to 1200 bytes.
    return len(data) >= 1200 and data[0] & 0xC0 == 0xC0
