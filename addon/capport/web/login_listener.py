"""Runs the login server's listener: at the policy's addresses, with the current certificate."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tornado import httpserver, httputil, iostream, netutil, web

from capport.core.client import Mac
from capport.core.place import Place
from capport.core.policy import LoginServer
from capport.lasting import cancel_all, keep
from capport.linux import frames
from capport.linux.file_state import state_of
from capport.linux.safe_files import open_regular
from capport.log_limits import SeldomFilter
from capport.policy.certificate import Chain
from capport.web.accepting import patient
from capport.web.context import WebContext
from capport.web.vouching import Vouched

logger = logging.getLogger(__name__)

type App = web.Application

type CreateApp = Callable[[bool], App]
"""Makes the application that answers the requests; the argument: whether they come by TLS."""

RENEWED = 10.0
"""Seconds between two checks whether the certificate's file has changed."""

IDLE = 30.0
"""Seconds for a handshake with a request's header, and between two requests."""

PATIENCE = 10.0
"""Seconds for a handshake, and then again for the whole of a connection's first request."""

TAKING = 60.0
"""Seconds for an answer, from the end of its request until the client has taken its last byte.

Without this limit, a client that reads nothing keeps a connection, and its answer, for ever."""

MAX_FORM = 16 * 1024
"""Bytes that a form may have; our own forms have a few hundred."""

_MAX_READ = 1024 * 1024
"""Bytes that are read of a request: more than a form may have, so that a form which is too long
gets an answer that says so."""

CONNECTIONS = 1000  # of all clients together; one takes about 20 KB
CONNECTIONS_A_CLIENT = 60

BACKLOG = 4096
"""TCP handshakes that may be under way. When there are more, the kernel answers with SYN cookies
and does not keep the SYN, in which we read the client's MAC (`frames`)."""


QUIET = {name: SeldomFilter() for name in ("tornado.general", "tornado.application")}
"""Tornado's loggers for bytes that a client sent, and for failures while it read them."""


def _bound(places: Sequence[Place]) -> list[tuple[Place, socket.socket]]:
    """Listening sockets for all `places`, each with its place. Raises OSError if one fails."""
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
        errno.EADDRNOTAVAIL: "it has to be an address of this machine",
    }
    return "; ".join(filter(None, (where, would_do.get(error.errno or 0))))


@dataclass(eq=False, slots=True)
class Connection:
    """One connection from the address `peer`.

    It `is_idle` unless a whole request has come that is not answered yet.
    """

    stream: iostream.IOStream
    peer: str
    is_idle: bool = True
    timer: asyncio.TimerHandle | None = None

    def close_in(self, seconds: float) -> None:
        """Closes the connection after `seconds`, in place of an earlier such limit."""
        self.cancel_close()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.stream.close)

    def cancel_close(self) -> None:
        """Cancels `close_in`: only Tornado's own limits hold now."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def asked(self) -> None:
        """A whole request has come."""
        self.is_idle = False
        self.close_in(TAKING)

    def answered(self) -> None:
        """The client has taken the answer, if any; Tornado waits `IDLE` for the next request."""
        if not self.is_idle:
            self.cancel_close()
        self.is_idle = True


class Server(httpserver.HTTPServer):
    """Tornado's HTTP server, with a limit on connections: for all clients, and for each.

    When all clients together have too many, the client that has most loses one to the newcomer.
    Otherwise one device could use up all connections, because it can have many addresses on a link
    without encryption.

    It answers one request in each pass of the event loop, on which known clients wait too.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Tornado calls it in place of `__init__`."""
        super().initialize(*args, **kwargs)
        self.open: dict[iostream.IOStream, Connection] = {}
        """The open connections, the oldest first."""
        self.vouched = Vouched()
        self.frames = WeakKeyDictionary[object, Mac | None]()
        self._waiting = deque[Callable[[], None]]()
        """Answers the requests that wait for their turn."""

    def in_turn(self, answer: Callable[[], None]) -> None:
        """Calls `answer` in a later pass of the event loop, in which no other request has it."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_next)
        self._waiting.append(answer)

    def _answer_next(self) -> None:
        try:
            self._waiting[0]()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._answer_next)

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        """Closes a connection unread if its client has too many; else makes room and takes it."""
        peer = _peer(address)
        # Connections from the proxy come from this machine; the proxy limits those of each client.
        most = CONNECTIONS if is_here(stream, peer) else CONNECTIONS_A_CLIENT
        if sum(one.peer == peer for one in self.open.values()) >= most < CONNECTIONS:
            stream.close()
            return
        if len(self.open) >= CONNECTIONS:
            self._give_one_up()
        self.frames[stream] = frames.sender(stream.socket)
        self.vouched.taken(address, stream)
        one = Connection(stream, peer)
        self.open[stream] = one
        one.close_in(PATIENCE)
        if isinstance(stream, iostream.SSLIOStream):
            stream.wait_for_handshake().add_done_callback(lambda done: self._shook_hands(one, done))
        super().handle_stream(stream, address)

    def start_request(
        self, server_conn: Any, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Tornado calls it whenever it begins to wait for a request on a connection."""
        if server_conn.stream.closed():
            return _Gone(request_conn)
        delegate = super().start_request(server_conn, request_conn)
        if one := self.open.get(server_conn.stream):
            one.answered()
            return _Asking(delegate, one.asked, self.in_turn)
        return delegate

    def on_close(self, server_conn: Any) -> None:
        """Tornado calls it once for each connection, when it ends."""
        super().on_close(server_conn)
        self.vouched.done(server_conn.context.address, server_conn.stream)
        if one := self.open.get(server_conn.stream):
            self._forget(one)

    def _give_one_up(self) -> None:
        """Closes the oldest idle connection of the peer that has most; the oldest if none is idle.

        If several peers have as many, it takes the peer of the oldest connection.
        """
        [(peer, _)] = Counter(one.peer for one in self.open.values()).most_common(1)
        own = [one for one in self.open.values() if one.peer == peer]
        one = next((each for each in own if each.is_idle), own[0])
        self._forget(one)  # now, because more may come before Tornado calls `on_close`
        one.stream.close()

    def _forget(self, one: Connection) -> None:
        one.cancel_close()
        del self.open[one.stream]

    def _shook_hands(self, one: Connection, done: "asyncio.Future[Any]") -> None:
        failed = done.cancelled() or done.exception() is not None
        if one.stream in self.open and one.is_idle and not failed:
            one.close_in(PATIENCE)


class _Gone(httputil.HTTPMessageDelegate):
    """Answers no request on a connection that has ended.

    Tornado would go on with all that it has read from the connection, and wait for no answer.
    """

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        self._conn.detach()


class _Asking(httputil.HTTPMessageDelegate):
    """Passes a request on to Tornado's delegate; calls `asked` once the whole request has come.

    Of a body that is longer than `MAX_FORM`, it keeps only the length. The delegate answers
    `in_turn`.
    """

    def __init__(
        self,
        to: httputil.HTTPMessageDelegate,
        asked: Callable[[], None],
        in_turn: Callable[[Callable[[], None]], None],
    ) -> None:
        self._to, self._asked, self._in_turn = to, asked, in_turn
        self._length = 0
        self._is_open = True

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
            # For `check_xsrf_cookie`, which answers 413; a chunked body has no such field.
            self._headers["Content-Length"] = str(self._length)
        self._in_turn(self._answer)

    def _answer(self) -> None:
        if self._is_open:
            self._to.finish()

    def on_connection_close(self) -> None:
        self._is_open = False
        self._to.on_connection_close()


def _peer(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) and address else ""


def is_here(stream: iostream.IOStream, peer: str) -> bool:
    """Whether the peer is this machine.

    On Linux, a connection to one of the machine's own addresses comes from that same address.
    """
    here: str = stream.socket.getsockname()[0]
    return peer == here


class LoginListener:
    """Listens in the running event loop, as the policy in force says."""

    def __init__(self, context: WebContext, create_app: CreateApp) -> None:
        self.context = context
        self._create_app = create_app
        self.http: Server | None = None
        """The server that listens now."""
        self._listening: LoginServer | None = None
        self.places: tuple[Place, ...] = ()
        """Where it listens: nowhere before `start`, or if the policy has no login server."""
        self._watching: set[asyncio.Task[Any]] = set()
        self._following = asyncio.Lock()  # one policy at a time

    async def start(self) -> None:
        """Listens. Raises OSError, also if the certificate cannot be used.

        Does nothing if the policy has no `login_server`.
        """
        listening = self.context.gate.policy.login_server
        if listening is None:
            return
        for name, seldom in QUIET.items():
            logging.getLogger(name).addFilter(seldom)  # no effect if it is there already
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
        server.vouched, server.frames = self.context.vouched, self.context.frames
        self.context.certified = shown.names if shown else ()
        server.add_sockets(one for _, one in at)
        self.http, self._listening = server, listening
        self.places = tuple(Place(place.host, one.getsockname()[1]) for place, one in at)
        if shown is not None:
            follow = partial(self._follow_certificate, server, shown)
            keep("Following the certificate's file", follow, self._watching)
        else:
            logger.warning(
                "The login server has no certificate: others can read and change its pages on the "
                "way, and no device asks its Captive Portal API (RFC 8908 section 4.1)"
            )

    async def follow(self) -> None:
        """Listens as the policy in force says, if it does not yet. Raises OSError.

        If the new certificate cannot be used, it keeps listening as before. If the new address
        cannot be used, it listens nowhere, because no policy wants the old one any more.
        """
        async with self._following:
            wanted = self.context.gate.policy.login_server
            if _how(wanted) == _how(self._listening):
                return
            if wanted is not None and wanted.certificate:
                await asyncio.to_thread(_Shown, wanted)
            await self.stop()
            await self.start()

    async def stop(self) -> None:
        """Stops listening, and closes every connection."""
        await cancel_all(self._watching)
        if self.http is not None:
            self.http.stop()
            await self.http.close_all_connections()
        self.http, self._listening, self.places = None, None, ()

    async def _follow_certificate(self, server: Server, shown: "_Shown") -> None:
        """Uses a new certificate for new connections when its file has changed."""
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
                logger.error(f"{file}: {error}; the previous certificate stays in use")
                continue
            shown, server.ssl_options = renewed, renewed.context
            self.context.certified = shown.names
            logger.info(f"{shown.listening.certificate}: renewed")


class _Shown:
    """The certificate in use, and the state of its files when they were read."""

    def __init__(self, listening: LoginServer) -> None:
        """Reads it. Raises OSError if it cannot be used."""
        self.listening, self.stamp = listening, _stamp(listening)
        certificate, key = Path(listening.certificate or ""), Path(listening.key or "")
        for path in (certificate, key):
            open_regular(path).close()  # OpenSSL does not say which of the two files is missing
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a password, OpenSSL asks for that of an encrypted key at the terminal.
            self.context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            raise OSError(f"{certificate} with {key}: {error.reason or error}") from error
        try:
            with open_regular(certificate) as file:
                self.names = Chain(file.read()).names
        except ValueError:  # OpenSSL accepts it, but we cannot read it: login_url gives our names
            self.names = ()


def _how(listening: LoginServer | None) -> object:
    return listening and (listening.listen, listening.certificate, listening.key)


def _stamp(listening: LoginServer) -> object:
    """The state of both files, which differs once the certificate or its key is renewed."""
    return [state_of(path or "") for path in (listening.certificate, listening.key)]
