"""The client connections that are open, and for how long each may be.

mitmproxy's own time-out is for silence: who sends one byte a second is never silent (measured with
12.2.3). So an unknown client's connection has a deadline of its own, each client has so many, and
whoever was let through is asked about again when its session ends. What an unknown client has open
to the garden ends after an hour at the most, however busy: that is long for a sign-in, a download
or a long poll, and a body that drips for ever holds two sockets for no longer.

All that an unknown client has on its connections is to stay within 64 MiB. So asyncio reads little
of it at once, and keeps little that it does not read: a megabyte of each that waited for a garden
that is down were 500 MB. What waits for a client to read it keeps its origin waiting.

A timer can be late: the process was stopped, the machine slept, the loop was busy. So the end of a
session is looked at once more when something comes, and nothing that comes after it goes on.
"""

import asyncio
import contextlib
import logging
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from mitmproxy import connection
from mitmproxy.proxy import events, server

from capport.core.client import UNSEEN, Client, ClientId, Mac, Peer, parse_address
from capport.core.place import Place
from capport.core.session import Instant
from capport.core.verdict import Pass
from capport.gate import Gate
from capport.proxy.internals import http2_bounds, sockets
from capport.proxy.layers.lingering import STAGE, STAGES

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for a head, and between two requests
GARDEN = 3600.0  # seconds for which an unknown client's connection may lead to the garden
MOST_TO_LOGIN = 32  # connections to the login server for one client; it has 1000 for all of them
HEARD = 0.2  # seconds between two words to the gate that something of a client's was relayed
MOST_A_CLIENT = 512  # connections of one unknown client; one more ends its oldest
TLS = 4  # what mitmproxy's own TLS adds to the weight of a connection: some 100 KiB
MOST_KEPT_OF_ONE = 16 * 1024 * 1024  # bytes of one client's that wait for connections to be opened
MOST_KEPT = 1024 * 1024  # of those, bytes of a known client's on one of its connections
MOST_UNREAD = 8 * 1024 * 1024  # bytes of answers in HTTP/2 that a known client does not take in
LITTLE = 8 * 1024  # each of these for an unknown client; and what is read or written at once
DESCRIPTORS_KEPT = 256  # for everything that is not an unknown client

type Key = tuple[object, object]


def key_of(conn: connection.Client) -> Key:
    """What is the same for a connection and for mitmproxy's copies of it (TLS over TLS)."""
    return conn.peername, conn.sockname


@dataclass(slots=True, eq=False)
class Open:
    """One connection, and the MAC that its first `frame` came from (`Peer`).

    `places` are what was let through; None among them: wherever it wants.

    `until` is when the session ends that it was let through by, `heard` when the gate was told
    last that the client was heard of. `leaves` is the loop's time for the garden to end; `logins`
    are mitmproxy's ids for its connections to the login server, and whose they count as; `dialled`
    are those that are being opened, for which `kept` bytes of the client's wait. `came` bytes
    have come of it just now, before which `unread` bytes of answers waited for it. It counts as
    `weight` connections.
    """

    conn: connection.Client
    client: Client
    counted_as: ClientId  # not by address: IPv6 gives one device many
    frame: Mac | None = None
    let_through: bool = False
    places: frozenset[Place | None] = frozenset({None})
    until: Instant | None = None
    heard: Instant = 0.0
    over: bool = False
    leaves: float | None = None
    logins: dict[str, ClientId] = field(default_factory=dict)
    dialled: set[str] = field(default_factory=set)
    kept: int = 0
    goes_somewhere: asyncio.Event = field(default_factory=asyncio.Event)
    came: int = 0
    unread: int = 0
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    weight: int = 1
    timer: asyncio.TimerHandle | None = None

    @property
    def is_known(self) -> bool:
        """Whether it may go wherever it wants."""
        return self.let_through and None in self.places


class Connections:
    """Every connection; `handler_of` gives the sockets to mitmproxy's id for one."""

    def __init__(
        self, gate: Gate, handler_of: Callable[[str], server.ConnectionHandler | None]
    ) -> None:
        self.gate = gate
        self.handler_of = handler_of
        self.most = _raised_limit() - DESCRIPTORS_KEPT
        self._open: dict[Key, Open] = {}
        self._unknown: OrderedDict[Key, Open] = OrderedDict()  # the oldest first
        self._unknown_of: dict[ClientId, OrderedDict[Key, Open]] = {}
        self._by_id: dict[ClientId, set[Key]] = {}
        self._logins: Counter[ClientId] = Counter()
        self._kept: Counter[ClientId] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def peer_of(self, conn: connection.Client) -> Peer:
        """The other end of a connection. Raises ValueError for a peer name that is no address."""
        entry = self._open.get(key_of(conn))
        return Peer(parse_address(conn.peername[0]), entry.frame if entry else UNSEEN)

    def client_of(self, conn: connection.Client) -> Client:
        """The client at the other end, as the gate knows it. Raises ValueError, as `peer_of`."""
        return self.gate.client(self.peer_of(conn))

    def opened(self, conn: connection.Client, client: Client, frame: Mac | None = None) -> None:
        """A client has connected; nothing of it is let through yet."""
        key = key_of(conn)
        if before := self._open.get(key):
            self.closed(before.conn)  # the client's port is in use again before its end was told
        entry = self._open[key] = Open(conn, client, client.id, frame)
        self._file(entry)
        self._watch(entry)
        if self.gate.known(client):
            self._let_through(entry)
            return
        self._unknown[key] = entry
        own = self._unknown_of.setdefault(client.id, OrderedDict())
        own[key] = entry
        self._make_room(own)
        if len(self._unknown) > self.most:
            self.abort(next(iter(self._unknown.values())))
        self._wait(entry, PATIENCE)
        self._set_buffers(entry)

    def takes_tls(self, conn: connection.Client) -> None:
        """A connection begins to speak mitmproxy's own TLS, and counts as several from now on."""
        if entry := self._open.get(key_of(conn)):
            entry.weight += TLS
            self._make_room(self._unknown_of.get(entry.counted_as, {}))

    def closed(self, conn: connection.Client) -> None:
        """A client's connection has ended: nothing of it is kept."""
        entry = self._open.get(key_of(conn))
        if entry is None or entry.conn.id != conn.id:
            return
        del self._open[key_of(conn)]
        self._cancel(entry)
        self._keep(entry, -entry.kept)
        self._forget_unknown(entry)
        self._unfile(entry)
        for server_id in tuple(entry.logins):
            self._hang_up(entry, server_id)

    def answered(self, conn: connection.Client) -> None:
        """An unknown client had its answer, and may send its next request."""
        if (entry := self._open.get(key_of(conn))) and not entry.let_through:
            self._wait(entry, PATIENCE)

    def lingers(self, conn: connection.Client) -> None:
        """An unknown client had its last answer: its layer ends the connection, and this if not."""
        if (entry := self._open.get(key_of(conn))) and not entry.let_through:
            self._wait(entry, 2 * STAGE * STAGES)

    def let_through(
        self, conn: connection.Client, place: Place | None, *, beside: bool = False
    ) -> None:
        """Something of this connection's goes on: to `place` alone, or wherever it wants.

        What went on before is over, unless this is `beside` it, as a stream of HTTP/2 is.
        """
        if entry := self._open.get(key_of(conn)):
            if entry.client.astray:
                self._is_same(entry)  # it is where its address is by now, or was not let through
            before = entry.places if beside and entry.let_through else frozenset()
            entry.places = before | {place}
            self._let_through(entry)

    def logins(self, conn: connection.Client, server_id: str | None = None) -> int | None:
        """How many connections to the login server the client has, where it may have no more.

        None too where `conn` has one already: that very one, if `server_id` says which.
        """
        entry = self._open.get(key_of(conn))
        if entry is None or (entry.logins if server_id is None else server_id in entry.logins):
            return None
        count = self._logins[entry.client.id]
        return count if count >= MOST_TO_LOGIN else None

    def logs_in(self, conn: connection.Client, server_id: str) -> None:
        """Counts a connection that is opened to the login server."""
        entry = self._open.get(key_of(conn))
        if entry is not None and server_id not in entry.logins:
            entry.logins[server_id] = entry.client.id
            self._logins[entry.client.id] += 1

    def dials(self, conn: connection.Client, server_id: str) -> None:
        """A connection to an origin is about to be opened."""
        if entry := self._open.get(key_of(conn)):
            entry.dialled.add(server_id)
            entry.goes_somewhere.clear()

    def dialled(self, conn: connection.Client, server_id: str) -> None:
        """It is open, or will not be."""
        if entry := self._open.get(key_of(conn)):
            self._set_buffers(entry)
            entry.dialled.discard(server_id)
            if not entry.dialled:
                self._keep(entry, -entry.kept)
                entry.goes_somewhere.set()

    def hung_up(self, conn: connection.Client, server_id: str) -> None:
        """A connection to an origin is over, or came to nothing."""
        if entry := self._open.get(key_of(conn)):
            self._hang_up(entry, server_id)

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether nothing that is sent to a client can reach it any more."""
        return sockets.is_gone(self.handler_of(conn.id), conn)

    def recheck(self, ids: Iterable[ClientId]) -> None:
        """Something was granted, revoked or has ended: each of these clients' connections anew."""
        for key in {key for client_id in ids for key in self._by_id.get(client_id, ())}:
            self._recheck(self._open[key])

    def recheck_all(self) -> None:
        """Another policy is in force, or a MAC has moved."""
        for entry in tuple(self._open.values()):
            self._recheck(entry)

    def abort(self, entry: Open, *, reset: bool = False) -> None:
        """Ends a connection and what it had open to origins, whatever is still to be sent."""
        entry.over = True  # and what has been read of it already goes nowhere either
        entry.goes_somewhere.set()  # or its end would be seen late
        entry.reads.set()
        self._cancel(entry)
        self._forget_unknown(entry)
        self.abort_connection(entry.conn, reset=reset)

    def abort_connection(self, conn: connection.Client, *, reset: bool = False) -> None:
        """The same for a connection of mitmproxy's. `reset` tells the client with RST, not FIN."""
        sockets.abort(self.handler_of(conn.id), reset=reset)

    def finish(self, conn: connection.Client) -> None:
        """Closes a connection once what was written to it has been sent."""
        sockets.close(self.handler_of(conn.id), conn)

    def _make_room(self, own: Mapping[Key, Open]) -> None:
        while sum(entry.weight for entry in own.values()) > MOST_A_CLIENT:
            self.abort(next(iter(own.values())))

    def _recheck(self, entry: Open) -> None:
        """Decides on a connection once more. Whom the gate raises on is unknown."""
        try:
            stays = self._is_same(entry)
            known = stays and self.gate.known(entry.client) is not None
            keeps = known or (stays and self._may_keep(entry))
        except Exception:
            self._no_verdict(entry)
            return
        if entry.let_through and not keeps:
            self.abort(entry)
        elif entry.let_through:
            self._let_through(entry)  # its session may end at another time now
        elif known:
            self.finish(entry.conn)  # so that its next request goes the new way

    def _is_same(self, entry: Open) -> bool:
        """Whether the device at the address is still the one that connected.

        A MAC that is not in the neighbour table (any more, or not yet) is no other device.
        """
        client = self.gate.client(Peer(entry.client.address, entry.frame))
        if client == entry.client:
            return True
        if client.astray:
            return entry.frame == UNSEEN  # and so it was when it connected
        if entry.client.mac not in (None, client.mac):
            return client.mac is None
        self._unfile(entry)
        entry.client = client
        self._file(entry)
        return True

    def _may_keep(self, entry: Open) -> bool:
        """Whether each place in the garden that was let through still is in it."""
        return all(place and self._is_open(entry.client, place) for place in entry.places)

    def _is_open(self, client: Client, place: Place) -> bool:
        verdict = self.gate.connection(client, place)
        return isinstance(verdict, Pass) and verdict.to == place

    def _let_through(self, entry: Open) -> None:
        entry.let_through = True
        self._set_buffers(entry)
        self._cancel(entry)
        loop = asyncio.get_running_loop()
        if None not in entry.places:  # who was let through to a place is unknown still, and counts
            entry.until = None
            entry.leaves = entry.leaves or loop.time() + GARDEN
            entry.timer = loop.call_at(entry.leaves, self._leave_garden, entry)
            return
        self._forget_unknown(entry)
        entry.leaves = None
        entry.until, now = self.gate.known_until(entry.client), self.gate.now()
        if entry.until is not None:
            entry.timer = loop.call_later(max(0.0, entry.until - now), self._ended, entry)

    def _leave_garden(self, entry: Open) -> None:
        """It has been to the garden, or the login server, for as long as an unknown client may."""
        entry.timer = None
        try:
            if self.gate.known(entry.client) is None:
                self.abort(entry)
        except Exception:
            self._no_verdict(entry)

    def _no_verdict(self, entry: Open) -> None:
        logger.exception("No verdict on an open connection; it is closed")
        self.abort(entry)

    def _watch(self, entry: Open) -> None:
        handler = self.handler_of(entry.conn.id)
        sockets.watch(handler, partial(self._goes_on, entry), partial(self._drain, entry))

    async def _drain(self, entry: Open) -> None:
        """Waits as mitmproxy does before it reads on; and for what it keeps to have a place to go.

        It keeps all that a client sends while a connection is being opened: 400 MB in 3 s, and to a
        host that is down this takes two minutes. Every now and then some more is read all the same:
        mitmproxy opens five at a time, and the others may end by what is read.

        And an origin waits whose last answer the client does not take in (RFC 9113 section 5.2):
        mitmproxy keeps all of that, too, and has no end of it where an origin is the faster.
        """
        handler = self.handler_of(entry.conn.id)
        if handler is None:
            return
        brought = http2_bounds.unread(entry.conn) > entry.unread
        await sockets.drain(handler)
        if not sockets.is_reader_of(handler, entry.conn):
            most = MOST_UNREAD if entry.is_known else LITTLE
            while brought and not entry.over and http2_bounds.unread(entry.conn) > most:
                entry.reads.clear()
                await entry.reads.wait()
            return
        entry.reads.set()
        bodies = http2_bounds.bodies(entry.conn)
        if entry.dialled:  # in HTTP/2, only bodies wait: whatever else comes is for what is open
            self._keep(entry, entry.came if bodies is None else bodies)
        if entry.dialled and entry.kept > (MOST_KEPT if entry.is_known else LITTLE):
            may_keep = self._kept[entry.counted_as] < MOST_KEPT_OF_ONE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE if may_keep else None):
                    await entry.goes_somewhere.wait()

    def _keep(self, entry: Open, size: int) -> None:
        entry.kept += size
        self._kept[entry.counted_as] += size
        if not self._kept[entry.counted_as]:
            del self._kept[entry.counted_as]

    def _set_buffers(self, entry: Open) -> None:
        """How much asyncio reads and keeps of a connection, and of those to origins."""
        size = None if entry.is_known else LITTLE
        sockets.set_buffers(self.handler_of(entry.conn.id), size)

    def _goes_on(self, entry: Open, event: events.DataReceived) -> bool:
        """Whether what has come on a connection just now is in time."""
        if event.connection is entry.conn:
            entry.came = len(event.data)
        entry.unread = http2_bounds.unread(entry.conn)
        if entry.until is None or entry.over:
            return not entry.over
        try:
            now = self.gate.now()
            if now >= entry.until:
                self._recheck(entry)
            if not entry.over and now >= entry.heard + HEARD:
                entry.heard = now
                self.gate.heard_of(entry.client, now)
        except Exception:
            self._no_verdict(entry)
        return not entry.over

    def _ended(self, entry: Open) -> None:
        """Its session is over, unless what was relayed meanwhile has kept it up."""
        entry.timer = None
        self._recheck(entry)

    def _wait(self, entry: Open, seconds: float) -> None:
        self._cancel(entry)
        entry.timer = asyncio.get_running_loop().call_later(seconds, self.abort, entry)

    def _cancel(self, entry: Open) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _hang_up(self, entry: Open, server_id: str) -> None:
        if counted_as := entry.logins.pop(server_id, None):
            self._logins[counted_as] -= 1
            if not self._logins[counted_as]:
                del self._logins[counted_as]

    def _file(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            self._by_id.setdefault(client_id, set()).add(key_of(entry.conn))

    def _unfile(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            if keys := self._by_id.get(client_id):
                keys.discard(key_of(entry.conn))
                if not keys:
                    del self._by_id[client_id]

    def _forget_unknown(self, entry: Open) -> None:
        self._unknown.pop(key_of(entry.conn), None)
        if own := self._unknown_of.get(entry.counted_as):
            own.pop(key_of(entry.conn), None)
            if not own:
                del self._unknown_of[entry.counted_as]


def _raised_limit() -> int:
    """How many descriptors this process may have, raised as far as it may raise it itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
