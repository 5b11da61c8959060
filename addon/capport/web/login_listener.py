"""The login server listens: where the policy says, with the certificate that is there now."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tornado import httpserver, httputil, iostream, netutil, web

from capport.core.client import Mac
from capport.core.place import Place
from capport.core.policy import LoginServer as Listening
from capport.linux import frames
from capport.linux.file_state import state_of
from capport.log_limits import SeldomFilter
from capport.policy.certificate import Chain
from capport.web.accepting import patient
from capport.web.context import Portal
from capport.web.vouching import Vouched

logger = logging.getLogger(__name__)

type App = web.Application

type CreateApp = Callable[[bool], App]
"""Makes what answers the requests; `True` where they come by TLS."""

RENEWED = 10.0
"""Seconds between two looks at the certificate's file."""

IDLE = 30.0
"""Seconds for a handshake with a request's header, and between two requests."""

PATIENCE = 10.0
"""Seconds for a handshake, and then for the whole of a connection's first request."""

TAKING = 60.0
"""Seconds for an answer, from the whole of its request to its last byte taken.

Without it whoever reads nothing keeps a connection, and what is to be sent, for ever."""

MAX_FORM = 16 * 1024
"""Bytes of a form; those of ours have some hundred."""

_MAX_READ = 1024 * 1024
"""Bytes of a request that are read at all: more than a form may have, for it to be told so."""

CONNECTIONS = 1000  # in all; one takes about 20 KB
CONNECTIONS_A_CLIENT = 60

BACKLOG = 4096
"""Handshakes that may be under way: of one more, answered with a cookie, the SYN is not kept."""


QUIET = {name: SeldomFilter() for name in ("tornado.general", "tornado.application")}
"""What Tornado logs of a client's bytes, and of what went wrong while it read them."""


def _bound(places: Sequence[Place]) -> list[tuple[Place, socket.socket]]:
    """Each socket that listens at one of `places`: at all of them, or OSError."""
    with contextlib.ExitStack() as unless_all:
        at = []
        for place in places:
            try:
                sockets = patient(
                    netutil.bind_sockets(place.port, str(place.host), backlog=BACKLOG)
                )
            except OSError as error:
                why = f"{error.strerror}: {_cannot_listen(error, place)}"
                raise OSError(error.errno, why) from error
            for one in sockets:
                unless_all.callback(one.close)
                frames.keep(one)
                at.append((place, one))
        unless_all.pop_all()
        return at


def _cannot_listen(error: OSError, place: Place) -> str:
    where = f"the login server cannot listen on {place}"
    would_do = {
        errno.EACCES: "a port below 1024 takes CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "that has to be an address of this machine",
    }
    return "; ".join(filter(None, (where, would_do.get(error.errno or 0))))


@dataclass(eq=False, slots=True)
class Connection:
    """One connection of `who`. It `waits` while no request of it, sent whole, is being answered."""

    stream: iostream.IOStream
    who: str
    waits: bool = True
    timer: asyncio.TimerHandle | None = None

    def ends_in(self, seconds: float) -> None:
        """Has it end then, unless it is told otherwise before."""
        self.goes_on()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.stream.close)

    def goes_on(self) -> None:
        """It has as long as Tornado gives it."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def asked(self) -> None:
        """A whole request has come."""
        self.waits = False
        self.ends_in(TAKING)

    def answered(self) -> None:
        """The answer is taken, if there was a request; for the next, Tornado waits `IDLE`."""
        if not self.waits:
            self.goes_on()
        self.waits = True


class Server(httpserver.HTTPServer):
    """Tornado's, bounded in connections: in all, and for each client.

    Where there are too many in all, whoever has most gives one up for the newcomer: on a link
    without encryption one device can have many addresses, and would else close us to everybody.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Called by Tornado in place of `__init__`."""
        super().initialize(*args, **kwargs)
        self.open: dict[str, dict[iostream.IOStream, Connection]] = {}
        """By who has any: the oldest first, and so are the connections of each."""
        self.vouched = Vouched()
        self.frames = WeakKeyDictionary[object, Mac | None]()

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        """Closes what is one too many of one client's, unread; or else, one too many of all."""
        who = _who(address)
        # All that comes by the proxy comes from this machine, and is bounded for each client there.
        most = CONNECTIONS if is_here(stream, who) else CONNECTIONS_A_CLIENT
        if len(self.open.get(who, ())) >= most < CONNECTIONS:
            stream.close()
            return
        if sum(map(len, self.open.values())) >= CONNECTIONS:
            self._give_one_up()
        self.frames[stream] = frames.sender(stream.socket)
        self.vouched.taken(address, stream)
        one = Connection(stream, who)
        self.open.setdefault(who, {})[stream] = one
        one.ends_in(PATIENCE)
        if isinstance(stream, iostream.SSLIOStream):
            stream.wait_for_handshake().add_done_callback(lambda done: self._shook_hands(one, done))
        super().handle_stream(stream, address)

    def start_request(
        self, server_conn: Any, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Called by Tornado whenever a connection is waited on for a request."""
        delegate = super().start_request(server_conn, request_conn)
        if one := self._find(server_conn):
            one.answered()
            return _Asking(delegate, one.asked)
        return delegate

    def on_close(self, server_conn: Any) -> None:
        """Called by Tornado once for each connection."""
        super().on_close(server_conn)
        self.vouched.done(server_conn.context.address, server_conn.stream)
        if one := self._find(server_conn):
            self._forget(one)

    def _find(self, server_conn: Any) -> Connection | None:
        return self.open.get(_who(server_conn.context.address), {}).get(server_conn.stream)

    def _give_one_up(self) -> None:
        """Ends the oldest connection of whoever has most, one that waits before one that does not.

        Of those who have as many, whoever has had some for longest.
        """
        own = max(self.open.values(), key=len)
        one = next((each for each in own.values() if each.waits), next(iter(own.values())))
        self._forget(one)  # now, not when Tornado has seen to it: more may come before that
        one.stream.close()

    def _forget(self, one: Connection) -> None:
        one.goes_on()
        own = self.open[one.who]
        del own[one.stream]
        if not own:
            del self.open[one.who]

    def _shook_hands(self, one: Connection, done: "asyncio.Future[Any]") -> None:
        still_there = one.stream in self.open.get(one.who, ())
        if still_there and one.waits and not done.cancelled() and done.exception() is None:
            one.ends_in(PATIENCE)


class _Asking(httputil.HTTPMessageDelegate):
    """What Tornado tells of a request, passed on; `asked` is called once it is there, whole.

    Of a body that is longer than a form's nothing is kept but how long it was.
    """

    def __init__(self, to: httputil.HTTPMessageDelegate, asked: Callable[[], None]) -> None:
        self._to, self._asked = to, asked
        self._length = 0

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        self._headers = headers
        return self._to.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._length += len(chunk)
        return self._to.data_received(chunk) if self._length <= MAX_FORM else None

    def finish(self) -> None:
        self._asked()
        if self._length > MAX_FORM:
            self._headers["Content-Length"] = str(self._length)  # of one in chunks, too
        self._to.finish()

    def on_connection_close(self) -> None:
        self._to.on_connection_close()


def _who(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) and address else ""


def is_here(stream: iostream.IOStream, who: str) -> bool:
    """Whether the other end is this machine: it has the address that it connected to.

    What connects to an address of its own does so from that one (Linux).
    """
    here: str = stream.socket.getsockname()[0]
    return who == here


class LoginServer:
    """Listens in the running event loop, as the policy in force says.

    `create_app` makes the routes, when it begins to listen: for TLS or not.
    """

    def __init__(self, portal: Portal, create_app: CreateApp) -> None:
        self.portal = portal
        self._create_app = create_app
        self.http: Server | None = None
        """What listens now."""
        self._as: Listening | None = None
        self._at: tuple[Place, ...] = ()
        self._watch: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()  # by one policy at a time

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it listens; nowhere before `start`, or where the policy has no login server."""
        return self._at

    async def start(self) -> None:
        """Listens. Raises OSError, also for a certificate that cannot be used.

        Does nothing where the policy has no `login_server`.
        """
        listening = self.portal.grants.policy.login_server
        if listening is None:
            return
        for name, seldom in QUIET.items():
            logging.getLogger(name).addFilter(seldom)  # it is added once
        shown = await asyncio.to_thread(_Shown, listening) if listening.certificate else None
        app = self._create_app(shown is not None)
        at = _bound(listening.listen)
        server = Server(
            app,
            idle_connection_timeout=IDLE,
            body_timeout=15.0,
            max_header_size=16 * 1024,
            max_body_size=_MAX_READ,
            max_buffer_size=64 * 1024,
        )
        server.ssl_options = shown.context if shown else None  # used for each new connection
        server.vouched, server.frames = self.portal.vouched, self.portal.frames
        self.portal.certified = shown.names if shown else ()
        server.add_sockets(one for _, one in at)
        self.http, self._as = server, listening
        self._at = tuple(Place(place.host, one.getsockname()[1]) for place, one in at)
        if shown is not None:
            self._watch = asyncio.create_task(self._follow_certificate(server, shown))
        else:
            logger.warning(
                "The login server has no certificate: its pages can be read and changed on the "
                "way, and no system will ask its Captive Portal API (RFC 8908 section 4.1)"
            )

    async def follow(self) -> None:
        """Listens as the policy in force says, if that is not how it does. Raises OSError.

        Where the new certificate cannot be used, it goes on listening as before; where the new
        address cannot, it listens nowhere: never where no policy wants it.
        """
        async with self._moving:
            wanted = self.portal.grants.policy.login_server
            if _how(wanted) == _how(self._as):
                return
            if wanted is not None and wanted.certificate:
                await asyncio.to_thread(_Shown, wanted)
            await self.stop()
            await self.start()

    async def stop(self) -> None:
        """Ends every connection."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self.http is not None:
            self.http.stop()
            await self.http.close_all_connections()
        self.http, self._as, self._at = None, None, ()

    async def _follow_certificate(self, server: Server, shown: "_Shown") -> None:
        """Shows the certificate that is there now."""
        tried = shown.stamp
        while True:
            await asyncio.sleep(RENEWED)
            if (stamp := await asyncio.to_thread(_stamp, shown.listening)) == tried:
                continue
            tried = stamp
            try:
                renewed = await asyncio.to_thread(_Shown, shown.listening)
            except OSError as error:
                file = shown.listening.certificate
                logger.error("%s: %s; the certificate from before stays", file, error)
                continue
            shown, server.ssl_options = renewed, renewed.context
            self.portal.certified = shown.names
            logger.info("%s: renewed", shown.listening.certificate)


class _Shown:
    """A certificate as it was when it was read: to show, and to tell from a later one."""

    def __init__(self, listening: Listening) -> None:
        """Reads it. Raises OSError where it cannot be used."""
        assert listening.certificate is not None
        assert listening.key is not None
        self.listening, self.stamp = listening, _stamp(listening)
        self.context = _context(listening.certificate, listening.key)
        try:
            self.names = Chain(Path(listening.certificate).read_bytes()).names
        except ValueError:  # OpenSSL takes one that we cannot read: then login_url has its name
            self.names = ()


def _context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and later, with the chain in `certificate`. Raises OSError."""
    for path in (certificate, key):
        Path(path).open("rb").close()  # OpenSSL does not say which of the two is not there
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(certificate, key, password="")  # or OpenSSL asks at the terminal
    except ssl.SSLError as error:
        raise OSError(f"{certificate} with {key}: {error.reason or error}") from error
    return made


def _how(listening: Listening | None) -> object:
    return listening and (listening.listen, listening.certificate, listening.key)


def _stamp(listening: Listening) -> object:
    """What changes when the certificate or its key is renewed, in whatever way."""
    return [state_of(path or "") for path in (listening.certificate, listening.key)]
