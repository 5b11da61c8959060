"""TLS: reads a ClientHello, and carries out the verdict on it.

RFC 6585 section 7.4: a client gets a certificate error if a portal answers inside TLS. So the
events that report this have a caveat.
"""

from mitmproxy import connection, tcp, tls
from mitmproxy.flow import Error
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, TCPLayer
from mitmproxy.proxy.layers import tcp as tcp_layers
from mitmproxy.proxy.layers.tls import TLSLayer

from capport.core.place import Place
from capport.core.verdict import Drop, Inspect, Intercept, Refuse, TlsVerdict, Tunnel
from capport.front.hello import Hello, HelloReader, asked_for, claim_of
from capport.proxy.enforcer import Enforcer
from capport.proxy.internals.layers import intercepting
from capport.proxy.layers.deciding import DecidingLayer
from capport.proxy.layers.lingering import Lingering


class ServerFirst:
    """Begins TLS with the origin before TLS with the client, if the origin is already connected.

    For known clients the portal connects to the origin early, because the server may speak first.
    mitmproxy expects an open connection only if its option connection_strategy is eager. Here it is
    lazy, so mitmproxy would write to the origin before TLS with it has begun. mitmproxy's own addon
    sets `establish_server_tls_first` for each handshake, so this addon comes after it in the chain.
    """

    name = "capport-server-first"

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Runs for handshakes that mitmproxy carries out itself."""
        if data.context.server.connected:
            data.establish_server_tls_first = True


class HelloLayer(DecidingLayer):
    """Reads a ClientHello, in any number of pieces, and carries out the verdict.

    It answers no part of the handshake itself. A permitted connection becomes a tunnel, in which
    TLS is not decrypted, or mitmproxy's own TLS. `to_proxy` means TLS to mitmproxy itself
    (`https://` in a client's proxy settings): there is nothing to decide yet.
    """

    def __init__(self, ctx: context.Context, enforcer: Enforcer, *, to_proxy: bool = False) -> None:
        super().__init__(ctx, enforcer)
        self.to_proxy = to_proxy
        self.reader = HelloReader()
        self.child: layer.Layer | None = None
        self.left: connection.Server | None = None  # a former origin, of which events are ignored

    def take(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Reads the hello; then passes events to the layer that carries out the verdict."""
        if isinstance(event, events.ConnectionEvent) and event.connection is self.left:
            pass
        elif self.child:
            yield from self.child.handle_event(event)
            if self._gave_up(event):
                yield commands.CloseConnection(self.context.client)
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(event.connection)
        elif isinstance(event, events.DataReceived):
            yield from self._read(event.data)

    def _gave_up(self, event: events.Event) -> bool:
        """Whether the client has gone in the middle of a handshake with mitmproxy.

        While mitmproxy waits for the origin's part of the handshake, it does not notice.
        """
        client = self.context.client
        gone = isinstance(event, events.ConnectionClosed) and event.connection is client
        return gone and isinstance(self.child, TLSLayer) and not client.tls_established

    def _read(self, data: bytes) -> layer.CommandGenerator[None]:
        try:
            hello = self.reader.feed(data)
        except ValueError as error:
            error.with_traceback(None)  # it refers to all that was read
            yield from self._no_hello(f"it is no ClientHello: {error}")
            return
        if hello is None:
            return
        if self.to_proxy:
            # mitmproxy looks at the layers below its TLS: if it sees that this is TLS to itself, it
            # offers only http/1.1 in ALPN.
            self.leave_stack()
            self.enforcer.connections.takes_tls(self.context.client)
            yield from self._continue_as(ClientTLSLayer(self.context))
            return
        claim = claim_of(hello, self.dialled)
        asked = asked_for(claim, self.dialled)
        verdict = self.enforcer.decide_tls(self.context.client, claim, asked)
        yield from self._carry_out(hello, verdict)

    def _no_hello(self, why: str) -> layer.CommandGenerator[None]:
        """Handles what is no TLS: refuses it, unless the client may send anything anywhere."""
        verdict = self.enforcer.decide_tls(self.context.client, None, self.dialled)
        if isinstance(verdict, Tunnel) and verdict.to is None and not self.to_proxy:
            yield from self._carry_out(Hello(), verdict)
        else:
            yield from self._refuse(Hello(), Refuse(why))

    def _carry_out(self, hello: Hello, verdict: TlsVerdict) -> layer.CommandGenerator[None]:
        client = self.context.client
        match verdict:
            case Tunnel(to=place):
                self.enforcer.connections.let_through(client, place)
                self.enforcer.marks.passed_tls(client, hello, self.dialled, verdict)
                if place is not None and place != self.dialled:
                    yield from self._lead_to(place)
                yield from self._continue_as(TCPLayer(self.context, ignore=True))
            case Inspect():
                self.enforcer.connections.let_through(client, None)
                self.enforcer.marks.passed_tls(client, hello, self.dialled, verdict)
                yield from self._continue_as(intercepting(self.context))
            case Intercept():
                self.enforcer.connections.takes_tls(client)
                self.enforcer.intercepted(client, hello, self.dialled, verdict)
                yield from self._continue_as(intercepting(self.context))
            case Refuse() | Drop():
                yield from self._refuse(hello, verdict)

    def _lead_to(self, place: Place) -> layer.CommandGenerator[None]:
        """Makes `place` the destination instead of the address that the client dialled.

        If a connection to that address is already open (as for known clients), it is closed:
        mitmproxy cannot change the address of an open connection.
        """
        self.left = self.lead_to(str(place.host), place.port)
        if self.left.connected:
            yield commands.CloseConnection(self.left)

    def _continue_as(self, child: layer.Layer) -> layer.CommandGenerator[None]:
        self.child = child
        yield from child.handle_event(events.Start())
        data = self.reader.raw
        del self.reader
        yield from child.handle_event(events.DataReceived(self.context.client, data))

    def _refuse(self, hello: Hello, verdict: Refuse | Drop) -> layer.CommandGenerator[None]:
        client = self.context.client
        flow = tcp.TCPFlow(client, self.context.server, live=True)
        self.enforcer.marks.refused_tls(flow, hello, self.dialled, verdict)
        yield tcp_layers.TcpStartHook(flow)
        flow.error = Error(f"TLS refused: {verdict.because}")
        yield tcp_layers.TcpErrorHook(flow)
        flow.live = False
        self.lingering = Lingering(client)
        if isinstance(verdict, Drop):
            self.enforcer.connections.abort_connection(client, reset=True)
            yield commands.CloseConnection(client)
            return
        yield commands.SendData(client, self.reader.access_denied())
        del self.reader  # with what it has read
        if self.plain:
            self.enforcer.connections.lingers(client)
            yield from self.lingering.begin(half_close=True)
        else:
            yield commands.CloseConnection(client)
