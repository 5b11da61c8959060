"""mitmproxy's hooks, in terms of the gate.

mitmproxy logs what a hook raises and lets the flow go on. So each hook denies first and lifts after
(`closed` sees to what is raised between), `server_connect` is the gate proper, and the `Guard`
stands behind it. `Gatekeeper` is installed once and stays, whatever becomes of the script.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mitmproxy import connection, ctx, dns, exceptions, flow, http, tcp, tls, udp
from mitmproxy.addonmanager import Loader
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.options import Options
from mitmproxy.proxy import layer, mode_specs, server
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from capport import policyfile
from capport.core.client import Address, Client
from capport.core.decision import HttpRequest
from capport.core.place import Place, parse_authority, parse_host
from capport.core.policy import Connect, KnownHttp, Policy, UnknownTls
from capport.core.reply import reply_to
from capport.core.verdict import Pass, Refuse, TlsVerdict, Verdict
from capport.enforcement import settings
from capport.enforcement.addresses import Addresses, is_own, may_reach
from capport.enforcement.alongside import Alongside
from capport.enforcement.connections import Connections, Key, key_of
from capport.enforcement.console import Console
from capport.enforcement.guard import Guard
from capport.enforcement.refusal import (
    CLOSED,
    BoundLayer,
    RefusalLayer,
    SilentLayer,
    asked_of,
    place_of,
    to_mitmproxy,
)
from capport.enforcement.tls import Handshakes, HelloLayer, ServerFirst
from capport.events import EventLog
from capport.gate import Gate
from capport.identity import Neighbours, NoNeighbours
from capport.portal.asking import HEADER
from capport.reload import PolicyWatcher
from capport.stores import default_store, open_store

logger = logging.getLogger(__name__)

BACKLOG = 4096

REFUSED_MARK = ":no_entry:"
GARDEN_MARK = ":seedling:"
KNOWN_MARK = ":white_check_mark:"


def closed[Data](
    deny: Callable[["Gatekeeper", Data], None],
) -> Callable[[Callable[["Gatekeeper", Data], None]], Callable[["Gatekeeper", Data], None]]:
    """A hook that denies by `deny` whatever it raises over: the edge where closed has a meaning."""

    def wrap(
        hook: Callable[["Gatekeeper", Data], None],
    ) -> Callable[["Gatekeeper", Data], None]:
        @functools.wraps(hook)
        def wrapped(self: "Gatekeeper", data: Data) -> None:
            try:
                hook(self, data)
            except exceptions.AddonHalt:
                raise
            except Exception:
                deny(self, data)
                self.fault(hook.__name__)

        return wrapped

    return wrap


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


class Gatekeeper:
    """Every hook of the portal.

    It has no gate until `start`: until then whatever asks for it raises, and so is denied.
    """

    name = "capport"
    gate: Gate
    connections: Connections
    alongside: Alongside

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.addresses = Addresses()
        self.started = False
        self.handshakes = Handshakes(self.event)
        self._dialled: dict[str, connection.Address] = {}
        self._handed_on: dict[Key, Verdict] = {}
        self._watcher: PolicyWatcher | None = None
        self._running = False
        self._quiet_until: dict[str, float] = {}

    def event(self, event: str, client: Client | None = None, **fields: Any) -> None:
        """One event. It never raises: what cannot be told is decided all the same."""
        try:
            self.gate.events.write(event, client, **fields)
        except Exception:
            logger.exception(f"The event {event!r} could not be told")

    def fault(self, where: str) -> None:
        """Says that something was denied by a fault of ours. Called where one is handled."""
        now = time.monotonic()
        if now >= self._quiet_until.get(where, 0.0):
            # In full once a minute: who can cause it once can do so a thousand times a second.
            self._quiet_until[where] = now + 60
            logger.exception(f"No verdict in {where}; it is denied")
        if self.started:
            with contextlib.suppress(Exception):  # whoever calls this has nowhere to raise to
                self.event("fault", what=where)

    # --- options, start and end ------------------------------------------------------------------

    def start(self) -> None:
        """Opens everything. Raises OptionsError, PolicyError, or OSError."""
        settings.hold(ctx.options)
        policy, self._watcher = self._open_policy()
        events = EventLog(_path(ctx.options.portal_events))
        url = ctx.options.portal_sessions or policy.sessions.store or default_store()
        store = open_store(url, start_closed=True)
        gate = Gate(policy, store, neighbours=_neighbours(policy), events=events)
        self.connections = Connections(gate, self._handler_of)
        self.alongside = Alongside(gate, self.addresses, url, self.connections.recheck)
        self.gate = gate
        self.started = True
        self._policy_loaded(policy)

    def configure(self, updated: set[str]) -> None:
        """A change of ours while running; mitmproxy's own options are held by `settings`."""
        if not self.started:
            return
        if "portal_sessions" in updated:
            raise settings.Unusable("portal_sessions cannot be changed while the portal runs")
        if "portal_events" in updated:
            try:
                events = EventLog(_path(ctx.options.portal_events))
            except OSError as error:
                raise exceptions.OptionsError(f"portal_events: {error}") from None
            self.gate.events.close()
            self.gate.events = events
        if "portal_policy" in updated:
            try:
                policy, watcher = self._open_policy()
            except policyfile.PolicyError as error:
                raise exceptions.OptionsError(str(error)) from None
            if self._watcher:
                self._watcher.stop()
            self._watcher = watcher
            self._use(policy)
            if watcher and self._running:
                watcher.start()

    async def running(self) -> None:
        """Begins what needs the event loop. Raises OSError where that cannot be."""
        if self._running or not self.started:
            return
        self._running = True
        if self._watcher:
            self._watcher.start()
        _lengthen_backlog()
        try:
            await self.alongside.start()
        except OSError as error:
            settings.stop_the_start(error)

    async def done(self) -> None:
        """The end: what is due is written."""
        if self._watcher:
            self._watcher.stop()
        if self.started:
            await self.alongside.stop()
            self.gate.neighbours.close()
            self.gate.store.close()
            self.gate.events.close()

    def _open_policy(self) -> tuple[Policy, PolicyWatcher | None]:
        file = ctx.options.portal_policy
        if not file:
            return policyfile.default(), None
        watcher = PolicyWatcher(Path(file).expanduser(), self._use, self._policy_rejected)
        return watcher.load(), watcher

    def _use(self, policy: Policy) -> None:
        self.gate.policy = policy
        self._policy_loaded(policy)
        self.connections.recheck_all()
        if self._running:
            self.alongside.policy_changed()

    def _policy_loaded(self, policy: Policy) -> None:
        name = policy.file or "the embedded default policy"
        logger.info(f"Policy in force: {name}")
        self.event("policy", action="loaded", file=name)

    def _policy_rejected(self, error: policyfile.PolicyError) -> None:
        logger.error(f"The last good policy stays in force.\n{error}")
        self.event("policy", action="rejected", because=str(error))

    def _handler_of(self, conn_id: str) -> server.ConnectionHandler | None:
        handler: server.ConnectionHandler | None = _proxyserver().connections.get(conn_id)
        return handler

    # --- what the layers ask and say -------------------------------------------------------------

    def client(self, conn: connection.Client) -> Client:
        """Who is at the other end. Raises ValueError for a peer name that is no address."""
        return self.gate.client(conn.peername[0])

    def request_verdict(
        self,
        conn: connection.Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None,
    ) -> Verdict:
        """The gate's verdict on a request."""
        return self.gate.request(self.client(conn), request, claim, dialled, url)

    def tls_verdict(
        self, conn: connection.Client, sni: Place | None, dialled: Place | None
    ) -> TlsVerdict:
        """The gate's verdict on a handshake, Refuse where it has none."""
        try:
            return self.gate.handshake(self.client(conn), sni, dialled)
        except Exception:
            self.fault("tls_verdict")
            return Refuse("the portal cannot decide now")

    def connect_way(self, user_agent: str) -> Connect:
        """How a CONNECT is refused: `answer` or `alert`.

        Chromium and Firefox hide the answer to a CONNECT behind a dead end (CLIENTS.md, 1.1, 1.2).
        """
        way = self.gate.policy.tls.connect
        if way is not Connect.AUTO:
            return way
        return Connect.ALERT if user_agent.startswith("Mozilla/") else Connect.ANSWER

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

    def reset(self, conn: connection.Client) -> None:
        """Ends a connection with RST."""
        self.connections.abort_connection(conn, reset=True)

    def refused(
        self,
        shown: http.HTTPFlow,
        verdict: Verdict | None,
        taken: dict[bytes, list[bytes]],
    ) -> None:
        """A request that was answered in the origin's place: shown, and told."""
        because = verdict.because if verdict else "the portal cannot decide now"
        name = type(verdict).__name__ if verdict else "NoVerdict"
        status = shown.response.status_code if shown.response else None
        _mark(shown, REFUSED_MARK, name, because)
        credentials = {k.decode(): len(values) for k, values in taken.items()}
        if credentials:
            shown.metadata["portal"]["credentials"] = credentials
        self.event(
            "refused",
            self.client(shown.client_conn),
            status=status,
            host=shown.request.host or None,
            method=shown.request.method,
            cookies=credentials.get("cookie"),
            authorizations=credentials.get("authorization"),
            because=because,
        )

    def refused_unread(self, conn: connection.Client, status: int, why: str) -> None:
        """Something that is no request, or too much of one."""
        self.event("refused", self.client(conn), status=status, because=f"not read: {why}")

    def refused_tls(
        self, shown: tcp.TCPFlow, sni: str | None, dialled: Place | None, verdict: TlsVerdict
    ) -> None:
        """A handshake that was refused before any certificate: shown, and told."""
        action = "refuse" if isinstance(verdict, Refuse) else "drop"
        outcome = "refused" if isinstance(verdict, Refuse) else "dropped"
        to = f"TLS for {sni or dialled or 'no name'}"
        _mark(shown, REFUSED_MARK, type(verdict).__name__, f"{to}: {verdict.because}")
        self.event(
            "tls",
            self.client(shown.client_conn),
            sni=sni,
            destination=str(dialled) if dialled else None,
            action=action,
            outcome=outcome,
            because=verdict.because,
        )

    # --- hooks: connections ----------------------------------------------------------------------

    @closed(_deny_client)
    def client_connected(self, conn: connection.Client) -> None:
        """Refuses what would loop, starts the deadline of an unknown client."""
        before, conn.error = conn.error, conn.error or "portal: no verdict"
        if isinstance(conn.proxy_mode, mode_specs.TransparentMode | mode_specs.TunMode):
            dialled = place_of(conn.sockname)
            if dialled and dialled.port in _own_ports() and is_own(_address(dialled)):
                conn.error = "portal: a connection to the proxy itself, which would loop"
                return
        client = self.client(conn)
        self.connections.opened(conn, client)
        if self.gate.known(client):
            _connect_early(self._handler_of(conn.id))
        conn.error = before

    @closed(_deny_nothing)
    def client_disconnected(self, conn: connection.Client) -> None:
        """Forgets the connection, and closes what mitmproxy left open (MITMPROXY.md, 2.6)."""
        self._handed_on.pop(key_of(conn), None)
        handler = self._handler_of(conn.id)
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
            return
        to_proxy = len(asked.context.layers) == 1 and isinstance(
            asked.context.layers[0], modes.HttpProxy
        )
        if data[:1] == b"\x16" and len(data) < 3 and not known:
            raise exceptions.AddonHalt  # not even the default addon: ask again when there is more
        if starts_like_tls_record(data) and not to_proxy:
            asked.layer = HelloLayer(asked.context, self)
        elif known:
            return
        elif not data:
            raise exceptions.AddonHalt
        elif starts_like_tls_record(data):
            asked.layer = HelloLayer(asked.context, self, to_proxy=True)
        elif conn.alpn == b"h2":
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
            address = await self._approved_address(data)
        except Exception as error:
            if not isinstance(error, OSError):
                self.fault("server_connect")
            data.server.error = data.server.error if before else f"portal: {error}"
            return
        assert data.server.address
        self._dialled[data.server.id] = data.server.address
        data.server.address = (str(address), data.server.address[1])
        data.server.error = before
        self.guard.approve(data.server)

    async def _approved_address(self, data: ServerConnectionHookData) -> Address:
        """Where to connect for `data`. Raises OSError where nowhere."""
        place = place_of(data.server.address)
        if place is None:
            raise PermissionError(f"{data.server.address} names no place")
        client = self.client(data.client)
        self._allowed(client, place, data.client)
        found = await self.addresses.resolve(place.host)
        verdict = self._allowed(client, place, data.client)  # it may have been revoked meanwhile
        listed = place == self.gate.policy.login_place or (
            verdict.to is not None and not isinstance(place.host, str)
        )
        for address in found:
            if place.port in _own_ports() and is_own(address):
                continue
            if may_reach(client, address, (address,) if listed else ()):
                return address
        raise PermissionError(f"{place} is closed to everyone: the router's own, or no one host's")

    def _allowed(self, client: Client, place: Place, conn: connection.Client) -> Pass:
        verdict = self.gate.connection(client, place)
        if isinstance(verdict, Pass):
            return verdict
        # The other hooks refuse more politely, and earlier. That this is asked at all means that
        # something went past them, or that the client is unknown since.
        logger.warning(f"Denied a connection to {place}: {verdict.because}")
        self.event("fault", client, what="server_connect", host=str(place), because=verdict.because)
        asyncio.get_running_loop().call_later(1.0, self.connections.abort_connection, conn)
        raise PermissionError(verdict.because)

    @closed(_deny_nothing)
    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Gives the connection its name again, by which mitmproxy finds it for the next request."""
        if named := self._dialled.pop(data.server.id, None):
            # mitmproxy forbids it, because an open connection cannot go elsewhere; nor does this.
            object.__setattr__(data.server, "address", named)
        self.alongside.connected(data.server, self.client(data.client).address)

    @closed(_deny_nothing)
    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """The login server need not remember for whom that was."""
        self.alongside.disconnected(data.server)

    @closed(_deny_nothing)
    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Remembers an address that did not answer, for another of the name's to go first."""
        if self._dialled.pop(data.server.id, None) and data.server.address:
            self.addresses.did_not_answer(_address(Place(parse_host(data.server.address[0]), 1)))
            data.server.address = data.server.address

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
            shown.response = to_mitmproxy(reply_to(verdict, asked_of(shown.request)))
            shown.request.headers.pop("expect", None)
            if not (shown.request.is_http2 or shown.request.is_http3):
                shown.response.headers["connection"] = "close"
            self.refused(shown, verdict, {})
            self.answered(shown.client_conn)
            return
        if verdict.to is not None:
            self._send_to(shown, verdict.to)
        _mark(shown, GARDEN_MARK if verdict.to else KNOWN_MARK, "Pass", verdict.because)
        self.let_through(shown.client_conn, verdict.to)
        self._vouch(shown)
        if verdict.to or self.gate.policy.http_known is KnownHttp.STREAM:
            shown.request.stream = True
        shown.response = None

    @closed(_deny_flow)
    def http_connect(self, shown: http.HTTPFlow) -> None:
        """Decides on a CONNECT. In a tunnel that leads nowhere, `next_layer` refuses."""
        if shown.response or shown.error:
            return
        _deny_flow(self, shown)
        verdict = self._verdict_on(shown)
        if isinstance(verdict, Pass):
            _mark(shown, GARDEN_MARK if verdict.to else KNOWN_MARK, "Pass", verdict.because)
            self.let_through(shown.client_conn, verdict.to)
        elif self.connect_way(shown.request.headers.get("user-agent", "")) is Connect.ANSWER:
            shown.response = to_mitmproxy(reply_to(verdict, asked_of(shown.request)))
            shown.response.headers["connection"] = "close"
            self.refused(shown, verdict, {})
            return
        else:
            _mark(shown, REFUSED_MARK, type(verdict).__name__, verdict.because)
        shown.response = None

    @closed(_deny_nothing)
    def http_connect_error(self, shown: http.HTTPFlow) -> None:
        """Ends the connection of a CONNECT that failed: mitmproxy cannot take a second one."""
        if shown.response:
            shown.response.headers["connection"] = "close"
            shown.response.headers["cache-control"] = "no-store"

    def _verdict_on(self, shown: http.HTTPFlow) -> Verdict:
        handed_on = self._handed_on.pop(key_of(shown.client_conn), None)
        if handed_on is not None:
            return handed_on  # decided, and counted, by the layer that read its head
        request = shown.request
        dialled = place_of(shown.server_conn.address)
        claim = _claim_of(request)
        case = HttpRequest(
            request.method,
            request.scheme,
            request.path,
            tuple(
                (n.decode("latin-1").lower(), len(n) + len(v)) for n, v in request.headers.fields
            ),
            sum(len(n) + len(v) + 4 for n, v in request.headers.fields),
        )
        url = f"{request.scheme}://{claim}{request.path}" if claim else None
        return self.request_verdict(shown.client_conn, case, claim, dialled, url)

    def _send_to(self, shown: http.HTTPFlow, place: Place) -> None:
        """Sends a request to `place`, with exactly one Host field, that says so."""
        request, claim = shown.request, _claim_of(shown.request)
        default = 443 if request.scheme == "https" else 80
        names_it = claim if claim and not isinstance(place.host, str) else place
        request.data.host, request.data.port = str(place.host), place.port
        if request.is_http2 or request.is_http3:
            request.data.authority = names_it.authority(default).encode()
            request.headers.pop("host", None)
        else:
            request.headers["host"] = names_it.authority(default)
            request.data.authority = b""

    def _vouch(self, shown: http.HTTPFlow) -> None:
        """Tells the login server who asks: all that comes by us has our address."""
        if self.alongside.is_login_server(place_of((shown.request.host, shown.request.port))):
            signed = self.alongside.sign(self.client(shown.client_conn).address)
            if signed:
                shown.request.headers[HEADER] = signed

    @closed(_deny_nothing)
    def responseheaders(self, shown: http.HTTPFlow) -> None:
        """Has what an origin sends pass through unbuffered, unless the operator wants to see it."""
        if shown.response is None or _verdict_of(shown) != "Pass":
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
        """Which rules are asked of a request like this one, and which decides."""
        request = shown.request
        case = HttpRequest(request.method, request.scheme, request.path)
        dialled = place_of(shown.server_conn.address)
        client = self.client(shown.client_conn)
        steps = self.gate.explain(client, case, _claim_of(request), dialled)
        return "\n".join(
            f"{name}: {verdict.because if verdict else 'says nothing'}" for name, verdict in steps
        )


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
        settings.outlive_our_errors()
        try:
            settings.check_deferred(ctx.options)
        except settings.Unusable as error:
            self._cannot(error)
        for name, text in settings.OURS.items():
            loader.add_option(name, cast(type, str | None), None, text)
        settings.force(ctx.options)

    def configure(self, updated: set[str]) -> None:
        """Called by mitmproxy once our options have their values."""
        if self.keeper.started:
            return
        try:
            self.keeper.start()
        except (exceptions.OptionsError, policyfile.PolicyError, OSError) as error:
            self._cannot(error)

    def running(self) -> None:
        """The portal begins, also where the script was added while mitmproxy ran."""
        if not settings.starting():
            self._beginning = asyncio.create_task(self.keeper.running())

    def _cannot(self, error: Exception) -> None:
        if settings.starting():
            settings.stop_the_start(error)
        raise exceptions.OptionsError(str(error))


def _install(keeper: Gatekeeper) -> None:
    """Puts `keeper` where a script would stand: before mitmproxy chooses layers and TLS."""
    manager = ctx.master.addons
    manager.register(keeper)
    names = [getattr(addon, "name", type(addon).__name__.lower()) for addon in manager.chain]
    manager.chain.insert(names.index("scriptloader") + 1, keeper)


class _Early:
    """mitmproxy's options, but for one: connect to the origin at once."""

    connection_strategy = "eager"

    def __init__(self, options: Any) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)

    def __contains__(self, name: str) -> bool:
        return name in self._options


def _connect_early(handler: server.ConnectionHandler | None) -> None:
    """Known clients' protocols may wait for the server to speak first (SMTP, SSH).

    `server_connect` decides on that connection as on any other.
    """
    if handler is not None:
        handler.layer.context.options = cast(Options, _Early(handler.layer.context.options))


def _neighbours(policy: Policy) -> Neighbours:
    """The kernel's table; on a router, of the clients' side alone."""
    if sys.platform != "linux":
        return NoNeighbours()  # an engineer's own machine: every client is known by its address
    from capport.identity.neighbours import NetlinkNeighbours

    return NetlinkNeighbours([policy.router.client_interface] if policy.router else None)


def _mark(shown: flow.Flow, mark: str, verdict: str, because: str) -> None:
    shown.marked = mark
    shown.comment = because
    shown.metadata["portal"] = {"verdict": verdict, "because": because}


def _verdict_of(shown: flow.Flow) -> str | None:
    told = shown.metadata.get("portal")
    return told["verdict"] if isinstance(told, dict) else None


def _claim_of(request: http.Request) -> Place | None:
    """The place a request names by its target or its one Host field."""
    default = 443 if request.scheme == "https" else 80
    if request.method == "CONNECT":
        return place_of((request.host, request.port))
    hosts = request.headers.get_all("host")
    named = request.authority or (hosts[0] if hosts else "")
    if len(hosts) > 1 or (not request.path.startswith("/") and request.path != "*"):
        return None
    if not named:
        return place_of((request.host, request.port)) if request.host else None
    try:
        return parse_authority(named, default)
    except ValueError:
        return None


def _is_quic(asked: layer.NextLayer) -> bool:
    data = asked.data_client()
    # RFC 9000 section 17.2: a client's first packet has a long header, and is padded to 1200 bytes.
    return len(data) >= 1200 and data[0] & 0xC0 == 0xC0


def _proxyserver() -> Any:
    return ctx.master.addons.get("proxyserver")


def _own_ports() -> set[int]:
    """Where mitmproxy itself listens."""
    ports = {int(addr[1]) for it in _proxyserver().servers for addr in it.listen_addrs}
    if "web_port" in ctx.options:
        ports.add(ctx.options.web_port)
    return ports


def _lengthen_backlog() -> None:
    """Lets more clients wait to be accepted than the 100 that mitmproxy asks for.

    One more than that waits a second, until it sends its SYN again.
    """
    for instance in _proxyserver().servers:
        for listening in getattr(instance, "_servers", ()):
            for transport in getattr(listening, "sockets", ()):
                with socket.socket(fileno=os.dup(transport.fileno())) as same:
                    same.listen(BACKLOG)


def _address(place: Place) -> Address:
    if isinstance(place.host, str):
        raise ValueError(f"{place} is no address")
    return place.host


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
