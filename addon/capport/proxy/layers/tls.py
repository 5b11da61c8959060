"""TLS: a ClientHello read, the verdict on it carried out, and what section 7.4 warns of reported.

RFC 6585 section 7.4: a portal that answers inside TLS draws a certificate error.
"""

import logging
from typing import Final

from mitmproxy import connection, flow, tcp, tls
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, TCPLayer
from mitmproxy.proxy.layers import tcp as tcp_layers

from capport.core.place import Place, parse_host
from capport.core.verdict import Drop, Inspect, Intercept, Refuse, TlsVerdict, Tunnel
from capport.front.hello import Hello, HelloReader
from capport.proxy.enforcer import Enforcer
from capport.proxy.internals.layers import OwnLayer, intercepting
from capport.proxy.layers.lingering import STAGE, Lingering
from capport.proxy.layers.silent import ends_on_faults
from capport.proxy.request_head import place_of

logger = logging.getLogger(__name__)

ACCESS_DENIED: Final = 49  # RFC 8446 section 6.2
CAVEAT: Final = (
    "RFC 6585 section 7.4: the certificate was not the origin's, so whoever checks certificates"
    " saw an error"
)
OUTER: Final = (
    "RFC 9849: the hello has encrypted_client_hello, so its SNI may be the outer name, and the name"
    " that is meant is hidden"
)


def alert_record(description: int, version: bytes = b"\x03\x03") -> bytes:
    """A fatal alert as one TLS record (RFC 8446 sections 5.1 and 6)."""
    return b"\x15" + version + b"\x00\x02\x02" + bytes([description])


class ServerFirst:
    """Has TLS begin with the origin first where its connection is open already.

    That is so for known clients, whose protocol may wait for the server to speak. mitmproxy expects
    it only of its own strategy, which is lazy here, and would write to a TLS that never began. It
    sets what this sets for each handshake, so this stands behind it in the chain.
    """

    name = "capport-server-first"

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Runs for handshakes that mitmproxy carries out itself."""
        if data.context.server.connected:
            data.establish_server_tls_first = True


class HelloLayer(OwnLayer):
    """Reads a ClientHello, in however many pieces it comes, and carries out the verdict.

    It answers no part of the handshake itself: what may go on becomes a tunnel that is not opened,
    or mitmproxy's own TLS. `to_proxy` is TLS to mitmproxy itself (`https://` in a client's proxy
    settings): there is nothing to decide yet.
    """

    def __init__(self, ctx: context.Context, enforcer: Enforcer, *, to_proxy: bool = False) -> None:
        super().__init__(ctx)
        self.plain = len(ctx.layers) == 2  # on the wire itself, not in a tunnel
        self.enforcer = enforcer
        self.to_proxy = to_proxy
        self.dialled = place_of(ctx.server.address)
        self.reader = HelloReader()
        self.child: layer.Layer | None = None
        self.left: connection.Server | None = None  # what it leads to no more
        self.lingering: Lingering | None = None

    @ends_on_faults
    def handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Reads the hello; then passes events on to what the connection has become."""
        if self.lingering:
            yield from self.lingering.handle(event)
        elif isinstance(event, events.ConnectionEvent) and event.connection is self.left:
            pass
        elif self.child:
            yield from self.child.handle_event(event)
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(event.connection)
        elif isinstance(event, events.DataReceived):
            yield from self._read(event.data)

    def _read(self, data: bytes) -> layer.CommandGenerator[None]:
        try:
            hello = self.reader.feed(data)
        except ValueError as error:
            yield from self._no_hello(f"it is no ClientHello: {error}")
            return
        if hello is None:
            return
        if self.to_proxy:
            # By the layers below its TLS mitmproxy knows that this is TLS to itself, and offers
            # http/1.1 alone in ALPN.
            self.leave_stack()
            self.enforcer.takes_tls(self.context.client)
            yield from self._go_on(ClientTLSLayer(self.context))
            return
        claim = self._claim(hello)
        verdict = self.enforcer.decide_tls(self.context.client, claim, self._asked_for(claim))
        yield from self._carry_out(hello, verdict)

    def _no_hello(self, why: str) -> layer.CommandGenerator[None]:
        """Not TLS after all: nothing, but for who may send whatever it likes."""
        verdict = self.enforcer.decide_tls(self.context.client, None, self.dialled)
        if isinstance(verdict, Tunnel) and verdict.to is None and not self.to_proxy:
            yield from self._carry_out(Hello(), verdict)
        else:
            yield from self._refuse(Hello(), Refuse(why))

    def _claim(self, hello: Hello) -> Place | None:
        """The place that its SNI names, if it names one."""
        if hello.server_name is None or not self.dialled:
            return None
        try:
            return Place(parse_host(hello.server_name), self.dialled.port)
        except ValueError:  # an SNI that is no name claims nothing
            return None

    def _asked_for(self, claim: Place | None) -> Place | None:
        """The place to decide on. In a tunnel to a name, the SNI must be one that may be reached.

        Else a garden's name in the CONNECT would open whatever else its servers serve, with another
        SNI or with none.
        """
        return claim if self.dialled and isinstance(self.dialled.host, str) else self.dialled

    def _carry_out(self, hello: Hello, verdict: TlsVerdict) -> layer.CommandGenerator[None]:
        client = self.context.client
        match verdict:
            case Tunnel(to=place):
                self.enforcer.let_through(client, place)
                if place is not None and place != self.dialled:
                    yield from self._lead_to(place)
                yield from self._go_on(TCPLayer(self.context, ignore=True))
            case Inspect():
                self.enforcer.let_through(client, None)
                yield from self._go_on(intercepting(self.context))
            case Intercept():
                self.enforcer.takes_tls(client)
                caveat = f"{CAVEAT}; {OUTER}" if hello.has_ech else CAVEAT
                self.enforcer.intercepted(client, hello.sni, self.dialled, verdict.because, caveat)
                yield from self._go_on(intercepting(self.context))
            case Refuse() | Drop():
                yield from self._refuse(hello, verdict)

    def _lead_to(self, place: Place) -> layer.CommandGenerator[None]:
        """Leads to `place`, not to where the client dialled, be it open there already.

        That is so for known clients, and a connection that is open cannot have another address.
        """
        self.left = self.lead_to(str(place.host), place.port)
        if self.left.connected:
            yield commands.CloseConnection(self.left)

    def _go_on(self, child: layer.Layer) -> layer.CommandGenerator[None]:
        self.child = child
        yield from child.handle_event(events.Start())
        data, self.reader.raw = bytes(self.reader.raw), bytearray()
        yield from child.handle_event(events.DataReceived(self.context.client, data))

    def _refuse(self, hello: Hello, verdict: Refuse | Drop) -> layer.CommandGenerator[None]:
        client = self.context.client
        drops = isinstance(verdict, Drop)
        shown = tcp.TCPFlow(client, self.context.server, live=True)
        caveat = OUTER if hello.has_ech else None
        self.enforcer.refused_tls(shown, hello.sni, self.dialled, verdict, caveat)
        yield tcp_layers.TcpStartHook(shown)
        shown.error = flow.Error(f"TLS refused: {verdict.because}")
        yield tcp_layers.TcpErrorHook(shown)
        shown.live = False
        self.lingering = Lingering(client, STAGE)
        if drops:
            self.enforcer.reset(client)
            yield commands.CloseConnection(client)
            return
        # The alert in the version that the client's own record has (RFC 8446 appendix D).
        yield commands.SendData(client, alert_record(ACCESS_DENIED, bytes(self.reader.raw[1:3])))
        self.reader.raw.clear()
        if self.plain:
            self.enforcer.lingers(client)
            yield from self.lingering.begin(half_close=True)
        else:
            yield commands.CloseConnection(client)
