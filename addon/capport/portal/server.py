"""The login server listens: where the policy says, with the certificate that is there now."""

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado import httpserver, iostream, netutil, web

from capport.core.place import Place
from capport.core.policy import LoginServer as Listening
from capport.portal import login
from capport.portal.api import PATH, CaptivePortalApi
from capport.portal.portal import Portal
from capport.portal.signed_return import SignedReturn
from capport.portal.web import NotFound

logger = logging.getLogger(__name__)

RENEWED = 10.0
"""Seconds between two looks at the certificate's file."""

CONNECTIONS = 1000  # in all; one takes about 20 KB
CONNECTIONS_A_CLIENT = 60


def create_app(portal: Portal, *, encrypted: bool) -> web.Application:
    """The pages, the style, and the Captive Portal API."""
    routes: list[Any] = [
        (r"/", login.SignIn, {"portal": portal}),
        (r"/sign-in", login.SignIn, {"portal": portal}),
        (r"/welcome", login.Welcome, {"portal": portal}),
        (r"/status", login.Status, {"portal": portal}),
        (r"/sign-out", login.SignOut, {"portal": portal}),
        (r"/signed-out", login.SignedOut, {"portal": portal}),
        (r"/style\.css", login.File, {"portal": portal, "name": "style"}),
        (r"/logo", login.File, {"portal": portal, "name": "logo"}),
        (r"/mark\.svg", login.File, {"portal": portal, "name": "mark"}),
        (r"/return", SignedReturn, {"portal": portal}),
        (PATH, CaptivePortalApi, {"portal": portal}),
    ]
    return web.Application(
        routes,
        default_handler_class=NotFound,
        default_handler_args={"portal": portal},
        xsrf_cookies=True,
        # Lax, not Strict: the way here leads through a 511 under another name, and with Strict each
        # new tab would void the form in the tab before. Lax is not sent with another site's form.
        xsrf_cookie_kwargs={"httponly": True, "samesite": "Lax", "secure": encrypted, "path": "/"},
        # The prefix keeps a neighbouring name, or the same without TLS, from setting it.
        xsrf_cookie_name="__Host-capport" if encrypted else "capport",
        # A URL here has a state in it, and who reads the log need not have it.
        log_function=lambda handler: None,
        serve_traceback=False,
    )


class Server(httpserver.HTTPServer):
    """Tornado's, bounded in connections: in all, and for each client."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Called by Tornado in place of `__init__`."""
        super().initialize(*args, **kwargs)
        self._open: Counter[str] = Counter()

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        """Closes what is one too many at once, unread."""
        who = str(address[0]) if isinstance(address, tuple) and address else ""
        # All that comes by the proxy comes from this machine, and is bounded for each client there.
        most = CONNECTIONS if _is_here(stream, who) else CONNECTIONS_A_CLIENT
        if self._open.total() >= CONNECTIONS or self._open[who] >= most:
            stream.close()
            return
        self._open[who] += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """Called by Tornado once for each connection."""
        super().on_close(server_conn)
        address = server_conn.context.address
        who = str(address[0]) if isinstance(address, tuple) and address else ""
        self._open[who] -= 1
        if self._open[who] <= 0:
            del self._open[who]


def _is_here(stream: iostream.IOStream, who: str) -> bool:
    """Whether the other end is this machine: it has the address that it connected to.

    What connects to an address of its own does so from that one (Linux).
    """
    here: str = stream.socket.getsockname()[0]
    return who == here


class LoginServer:
    """Listens in the running event loop, as the policy in force says."""

    def __init__(
        self, portal: Portal, on_change: Callable[[bool], None] = lambda answers: None
    ) -> None:
        self.portal = portal
        self.on_change = on_change
        self._server: Server | None = None
        self._as: Listening | None = None
        self._at: tuple[Place, ...] = ()
        self._files: object = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it listens; nowhere before `start`, or where the policy has no login server."""
        return self._at

    async def start(self) -> None:
        """Listens. Raises OSError, also (ssl.SSLError) for a certificate that cannot be used.

        Does nothing where the policy has no `login_server`.
        """
        listening = self.portal.grants.policy.login_server
        if listening is None:
            return
        context, files = (
            (await asyncio.to_thread(_context, listening))
            if listening.certificate
            else (None, None)
        )
        place = listening.listen
        sockets = netutil.bind_sockets(place.port, str(place.host))
        server = Server(
            create_app(self.portal, encrypted=context is not None),
            ssl_options=context,
            idle_connection_timeout=30.0,  # holds for a request's header too
            body_timeout=15.0,
            max_header_size=16 * 1024,
            max_body_size=16 * 1024,  # the forms have some hundred bytes
            max_buffer_size=64 * 1024,
        )
        server.add_sockets(sockets)
        self._server, self._as, self._files = server, listening, files
        self._at = tuple(Place(place.host, one.getsockname()[1]) for one in sockets)
        if context is not None:
            self._watch = asyncio.create_task(self._follow_certificate(listening))
        else:
            logger.warning(
                "The login server has no certificate: its pages can be read and changed on the "
                "way, and no system will ask its Captive Portal API (RFC 8908 section 4.1)"
            )
        self.on_change(True)

    async def follow(self) -> None:
        """Listens as the policy in force says, if that is not how it does. Raises OSError.

        Where the new certificate cannot be used, it goes on listening as before; where the new
        address cannot, it listens nowhere: never where no policy wants it.
        """
        wanted = self.portal.grants.policy.login_server
        if _how(wanted) == _how(self._as):
            return
        if wanted is not None and wanted.certificate:
            await asyncio.to_thread(_context, wanted)
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        """Ends every connection."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._server is not None:
            self.on_change(False)
            self._server.stop()
            await self._server.close_all_connections()
        self._server, self._as, self._at = None, None, ()

    async def _follow_certificate(self, listening: Listening) -> None:
        assert self._server is not None
        tried = self._files
        while True:
            await asyncio.sleep(RENEWED)
            if (files := await asyncio.to_thread(_stamp, listening)) == tried:
                continue
            tried = files
            try:
                # Read by Tornado for each new connection.
                self._server.ssl_options, _ = await asyncio.to_thread(_context, listening)
            except OSError as error:
                logger.error(
                    "%s: %s; the certificate from before stays", listening.certificate, error
                )
            else:
                logger.info("%s: renewed", listening.certificate)


def _how(listening: Listening | None) -> object:
    return listening and (listening.listen, listening.certificate, listening.key)


def _context(listening: Listening) -> tuple[ssl.SSLContext, object]:
    assert listening.certificate is not None
    stamp = _stamp(listening)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(listening.certificate, listening.key)
    except ssl.SSLError as error:
        why = error.reason or error
        raise OSError(f"{listening.certificate} with {listening.key}: {why}") from error
    return context, stamp


def _stamp(listening: Listening) -> object:
    """What changes when the certificate or its key is renewed, in whatever way."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in (listening.certificate, listening.key):
        try:
            stat = Path(path or "").stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)
