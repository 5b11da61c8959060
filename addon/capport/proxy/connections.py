"""The client connections that are open, and how long each may stay open.

mitmproxy closes a connection on which nothing is sent for some time; a client that sends one byte a
second keeps it open for ever (measured with 12.2.3). So an unknown client's connection has a
deadline here, and each unknown client may have a limited number of connections. When a client's
session ends, the gate decides on its open connections again. An unknown client's connection to the
garden ends after an hour, however busy it is. That is enough for a sign-in, a download or a long
poll, and a body that arrives byte by byte holds its two sockets no longer than that.

A timer can be late: the process was stopped, the machine slept, or the loop was busy. So each time
data arrives, the end of the session is checked again, and nothing that comes later is forwarded.
"""

import asyncio
import logging
import math
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

from mitmproxy import connection
from mitmproxy.proxy import events, server

from capport.core.client import UNSEEN, Client, ClientId, Mac, Peer, parse_address
from capport.core.deadlines import Deadlines
from capport.core.place import Place
from capport.core.verdict import Pass
from capport.front.half_close import STAGE, STAGES
from capport.gate import Gate
from capport.proxy.backpressure import Backpressure
from capport.proxy.internals import sockets
from capport.proxy.open_connection import Key, Line, Open, key_of

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds an unknown client may take for a head, or between two requests
GARDEN = 3600.0  # seconds an unknown client's connection to the garden may last
MOST_TO_LOGIN = 32  # connections of one client to the login server, which takes 1000 in all
REPORT_INTERVAL = 0.2  # seconds between two reports to the gate that a client's data was relayed
MOST_A_CLIENT = 512  # connections of one unknown client; one more ends its oldest
TLS = 4  # what mitmproxy's own TLS adds to the weight of a connection: about 100 KiB
AT_ONCE = 64  # connections that end at their deadlines before the event loop does something else
DESCRIPTORS_KEPT = 256  # file descriptors for everything but unknown clients' connections


class Connections:
    """Every open connection. `handler_of` finds mitmproxy's handler of a connection by its id."""

    def __init__(
        self, gate: Gate, handler_of: Callable[[str], server.ConnectionHandler | None]
    ) -> None:
        self.gate = gate
        self.handler_of = handler_of
        self.most = _raised_limit() - DESCRIPTORS_KEPT
        # With more file descriptors, no connection of an unknown client waits for its turn.
        self.most_accepted = self.most + DESCRIPTORS_KEPT // 2
        self.entries: dict[Key, Open] = {}  # one for each connection that is open
        self._unknown: OrderedDict[Key, Open] = OrderedDict()  # the oldest first
        self._unknown_of: dict[ClientId, OrderedDict[Key, Open]] = {}
        self._weights: Counter[ClientId] = Counter()  # of unknown clients: the sum of `Open.weight`
        self._by_id: dict[ClientId, set[Key]] = {}
        self._logins: Counter[ClientId] = Counter()  # connections to the login server
        self._backpressure = Backpressure(handler_of)
        self._deadlines = Deadlines[Open]()  # by the loop's time
        self._alarm: asyncio.TimerHandle | None = None  # for the next deadline

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def unknown(self) -> int:
        """How many unknown clients have a connection."""
        return len(self._unknown_of)

    def peer_of(self, conn: connection.Client) -> Peer:
        """The client's end of a connection. Raises ValueError if the peer name is no address."""
        entry = self.entries.get(key_of(conn))
        return Peer(parse_address(conn.peername[0]), entry.frame if entry else UNSEEN)

    def client_of(self, conn: connection.Client) -> Client:
        """The client of a connection, as the gate knows it. Raises ValueError like `peer_of`."""
        return self.gate.client(self.peer_of(conn))

    def opened(self, conn: connection.Client, client: Client, frame: Mac | None = None) -> None:
        """Records a new connection that mitmproxy has accepted itself, as `accepted` does."""
        line, known = sockets.Handled(self.handler_of, conn), self.gate.known(client) is not None
        entry = self.accepted(key_of(conn), client, frame, line, known=known)
        self._has(entry, conn)

    def accepted(
        self, key: Key, client: Client, frame: Mac | None, line: Line, *, known: bool
    ) -> Open:
        """Records a new connection. If the client is unknown, starts its deadline."""
        if before := self.entries.get(key):
            self._forget(before)  # the client uses its port again, before the end is reported
        entry = self.entries[key] = Open(key, line, client, client.id, frame)
        self._index(entry)
        if known:
            self._let_through(entry)
            return entry
        self._unknown[key] = entry
        own = self._unknown_of.setdefault(client.id, OrderedDict())
        own[key] = entry
        self._weigh(entry, 1)
        if len(self._unknown) > self.most:
            self.abort(next(iter(self._unknown.values())))
        self._wait(entry, PATIENCE)
        return entry

    def handed_over(self, conn: connection.Client) -> Client | None:
        """Records that mitmproxy has a connection now; None if it is not from the front.

        The connection keeps its deadline, and its place among the client's connections.
        """
        entry = self.entries.get(key_of(conn))
        if entry is None or entry.conn is not None:
            return None
        entry.line = sockets.Handled(self.handler_of, conn)
        self._has(entry, conn)
        if self._is_same(entry) and not entry.let_through and self.gate.known(entry.client):
            self._let_through(entry)
        return entry.client

    def _has(self, entry: Open, conn: connection.Client) -> None:
        entry.conn = conn
        handler = self.handler_of(conn.id)
        drain = partial(self._backpressure.drain, entry, conn)
        sockets.watch(handler, partial(self._is_in_time, entry, conn), drain)
        self._backpressure.set_buffers(entry)

    def answers(self, conn: connection.Client) -> int:
        """How many requests the front has answered on a connection."""
        entry = self.entries.get(key_of(conn))
        return entry.answers if entry else 0

    def speaks_http1(self, conn: connection.Client, *, in_tunnel: bool) -> bool:
        """Whether the front has answered HTTP/1 there, so that nothing else can follow."""
        entry = self.entries.get(key_of(conn))
        return entry is not None and bool(entry.answers) and entry.in_tunnel == in_tunnel

    def takes_tls(self, conn: connection.Client) -> None:
        """Counts a connection as several: mitmproxy's own TLS begins on it and takes memory."""
        if entry := self.entries.get(key_of(conn)):
            entry.weight += TLS
            if entry.key in self._unknown:
                self._weigh(entry, TLS)

    def closed(self, conn: connection.Client) -> None:
        """Forgets a connection that has ended."""
        if entry := self._entry_of(conn):
            self._forget(entry)

    def _entry_of(self, conn: connection.Client) -> Open | None:
        """The entry of `conn`, and not of a later connection from the same port."""
        entry = self.entries.get(key_of(conn))
        return entry if entry and entry.conn and entry.conn.id == conn.id else None

    def left(self, entry: Open) -> None:
        """Forgets a connection that has ended in the front."""
        if self.entries.get(entry.key) is entry:
            self._forget(entry)

    def _forget(self, entry: Open) -> None:
        del self.entries[entry.key]
        self._deadlines.drop(entry)
        self._backpressure.forget(entry)
        self._forget_unknown(entry)
        self._unindex(entry)
        for server_id in tuple(entry.logins):
            self._forget_login(entry, server_id)

    def answered(self, conn: connection.Client) -> None:
        """Starts the deadline again: an unknown client has its answer and may send a request."""
        if entry := self.entries.get(key_of(conn)):
            self.goes_on(entry)

    def goes_on(self, entry: Open) -> None:
        """As `answered`, but for a connection that the front has."""
        if not entry.let_through:
            self._wait(entry, PATIENCE)

    def lingers(self, conn: connection.Client) -> None:
        """Sets the last deadline: an unknown client has its last answer.

        Its layer closes the connection; this deadline ends it if the layer does not.
        """
        entry = self.entries.get(key_of(conn))
        if entry is not None and not entry.let_through:
            self._wait(entry, 2 * STAGE * STAGES)

    def ends(self, entry: Open) -> None:
        """As `lingers`, but for a connection that the front has: its stages are the deadlines."""
        self._wait(entry, STAGE)

    def let_through(
        self, conn: connection.Client, place: Place | None, *, beside: bool = False
    ) -> None:
        """Records that this connection may go to `place` alone, or anywhere if that is None.

        This replaces the earlier places, unless `beside` says that they stay in use: an HTTP/2
        connection has several streams.
        """
        if entry := self.entries.get(key_of(conn)):
            if entry.client.astray:
                self._is_same(entry)  # it got a Pass, so it may not be astray any more
            before = entry.places if beside and entry.let_through else frozenset()
            entry.places = before | {place}
            self._let_through(entry)

    def logins(self, conn: connection.Client, server_id: str | None = None) -> int | None:
        """How many connections to the login server the client has; None if it may open one.

        None too if `conn` already has one (the one with the id `server_id`, if that is given).
        """
        entry = self.entries.get(key_of(conn))
        if entry is None or (entry.logins if server_id is None else server_id in entry.logins):
            return None
        count = self._logins[entry.client.id]
        return count if count >= MOST_TO_LOGIN else None

    def logs_in(self, conn: connection.Client, server_id: str) -> None:
        """Counts a connection to the login server that is about to be opened."""
        entry = self.entries.get(key_of(conn))
        if entry is not None and server_id not in entry.logins:
            entry.logins[server_id] = entry.client.id
            self._logins[entry.client.id] += 1

    def dials(self, conn: connection.Client, server_id: str) -> None:
        """Records that a connection to an origin is about to be opened."""
        if entry := self.entries.get(key_of(conn)):
            self._backpressure.dials(entry, server_id)

    def dialled(self, conn: connection.Client, server_id: str) -> None:
        """Records that a connection to an origin is open, or could not be opened."""
        if entry := self.entries.get(key_of(conn)):
            self._backpressure.dialled(entry, server_id)

    def hung_up(self, conn: connection.Client, server_id: str) -> None:
        """Records that a connection to an origin has ended, or could not be opened."""
        if entry := self.entries.get(key_of(conn)):
            self._forget_login(entry, server_id)

    def is_gone(self, conn: connection.Client) -> bool:
        """Whether the client's socket is closed, so that nothing sent can reach the client."""
        return sockets.is_gone(self.handler_of(conn.id), conn)

    def recheck(self, ids: Iterable[ClientId]) -> None:
        """Decides again on each connection of these clients, whose sessions have changed."""
        for key in {key for client_id in ids for key in self._by_id.get(client_id, ())}:
            self._recheck(self.entries[key])

    def recheck_all(self) -> None:
        """Decides again on every connection, because the policy has changed."""
        for entry in tuple(self.entries.values()):
            self._recheck(entry)

    def drop(self, client: Client) -> None:
        """Ends every connection of `client` with RST: it was refused too often."""
        own = {*self._by_id.get(client.id, ()), *self._unknown_of.get(client.id, ())}
        for entry in [self.entries[key] for key in own]:
            if entry.client.astray == client.astray:  # else it only uses the same address
                self.abort(entry, reset=True)

    def abort(self, entry: Open, *, reset: bool = False) -> None:
        """Ends a connection and its connections to origins at once; drops what is unsent."""
        entry.over = True  # so data that has been read already is not forwarded either
        self._backpressure.end(entry)
        self._deadlines.drop(entry)
        self._forget_unknown(entry)
        entry.line.abort(reset=reset)

    def abort_connection(self, conn: connection.Client, *, reset: bool = False) -> None:
        """Ends a connection that mitmproxy has, as `abort` does; also one that is not recorded.

        The connection stays recorded until mitmproxy reports its end (`closed`).
        """
        if entry := self._entry_of(conn):
            self.abort(entry, reset=reset)
        else:
            sockets.Handled(self.handler_of, conn).abort(reset=reset)

    def finish(self, entry: Open) -> None:
        """Closes a connection after everything that was written to it has been sent.

        The client's next request may be on its way. If the socket were closed, TCP would reset the
        connection, and Squid would answer its client 502. So only our half is closed: the client
        sees that the connection has ended, and asks again on another one (RFC 9112 sections 9.3.1
        and 9.6).
        """
        entry.over = True
        entry.line.finish()
        self._wait(entry, STAGE)

    def _weigh(self, entry: Open, weight: int) -> None:
        """Counts `weight` more for the client; ends its oldest connections if that is too much."""
        client = entry.counted_as
        self._weights[client] += weight
        while self._weights[client] > MOST_A_CLIENT:
            self.abort(next(iter(self._unknown_of[client].values())))

    def _recheck(self, entry: Open) -> None:
        """Decides on a connection again. If the gate raises, the connection ends."""
        try:
            same = self._is_same(entry)
            known = same and self.gate.known(entry.client) is not None
            permitted = known or (same and self._places_are_open(entry))
        except Exception:
            self._no_verdict(entry)
            return
        if entry.let_through and not permitted:
            self.abort(entry)
        elif entry.let_through:
            self._let_through(entry)  # its session may end at another time now
        elif known and not entry.over:
            self.finish(entry)  # the client connects again, and is then known from the start

    def _is_same(self, entry: Open) -> bool:
        """Whether the device at the address is still the one that connected.

        A device whose MAC is not in the neighbour table (yet, or any more) counts as the same one.
        Updates `entry.client` if the gate now knows the client by more or other ids.
        """
        client = self.gate.client(Peer(entry.client.address, entry.frame))
        if client == entry.client:
            return True
        if client.astray:
            return entry.frame == UNSEEN  # then it was astray when it connected, too
        if entry.client.mac not in (None, client.mac):
            return client.mac is None
        self._unindex(entry)
        entry.client = client
        self._index(entry)
        return True

    def _places_are_open(self, entry: Open) -> bool:
        """Whether the client may still reach each place that this connection goes to."""
        return all(place and self._is_open(entry.client, place) for place in entry.places)

    def _is_open(self, client: Client, place: Place) -> bool:
        verdict = self.gate.connection(client, place)
        return isinstance(verdict, Pass) and verdict.to == place

    def _let_through(self, entry: Open) -> None:
        entry.let_through = True
        self._backpressure.set_buffers(entry)
        self._deadlines.drop(entry)
        loop = asyncio.get_running_loop()
        if None not in entry.places:  # the client is still unknown, and its connections count
            entry.until = None
            entry.leaves = entry.leaves or loop.time() + GARDEN
            self._set_deadline(entry, entry.leaves)
            return
        self._forget_unknown(entry)
        entry.leaves = None
        entry.until, now = self.gate.standing(entry.client).until, self.gate.now()
        if entry.until is not None:
            self._wait(entry, max(0.0, entry.until - now))

    def _leave_garden(self, entry: Open) -> None:
        """Ends an unknown client's connection that has used the garden or the login server long."""
        try:
            if self.gate.known(entry.client) is None:
                self.abort(entry)
        except Exception:
            self._no_verdict(entry)

    def _no_verdict(self, entry: Open) -> None:
        self.gate.metrics.denied["an open connection"] += 1
        logger.exception("No verdict on an open connection; it is closed")
        self.abort(entry)

    def _is_in_time(self, entry: Open, conn: connection.Client, event: events.DataReceived) -> bool:
        """Whether data that has just come, from either end, may still be forwarded."""
        self._backpressure.came(entry, conn, event)
        if entry.until is None or entry.over:
            return not entry.over
        try:
            now = self.gate.now()
            if now >= entry.until:
                self._recheck(entry)
            if not entry.over and now >= entry.heard + REPORT_INTERVAL:
                entry.heard = now
                self.gate.heard_of(entry.client, now)
        except Exception:
            self._no_verdict(entry)
        return not entry.over

    def _wait(self, entry: Open, seconds: float) -> None:
        self._set_deadline(entry, asyncio.get_running_loop().time() + seconds)

    def _set_deadline(self, entry: Open, at: float) -> None:
        self._deadlines.set(entry, at)
        if self._alarm is None or at < self._alarm.when():
            self._set_alarm(at)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        try:
            for entry in islice(self._deadlines.due(asyncio.get_running_loop().time()), AT_ONCE):
                self._is_due(entry)
        finally:
            if self._deadlines.next < math.inf:
                self._set_alarm(self._deadlines.next)

    def _is_due(self, entry: Open) -> None:
        """Ends a connection at its deadline, unless it gets another deadline."""
        if entry.leaves is not None:
            self._leave_garden(entry)
        elif entry.let_through:  # its session is over, unless relayed data has extended it
            self._recheck(entry)
        elif entry.line.lingers() and not entry.over:
            self._wait(entry, STAGE)
        else:
            self.abort(entry)

    def _forget_login(self, entry: Open, server_id: str) -> None:
        if counted_as := entry.logins.pop(server_id, None):
            self._logins[counted_as] -= 1
            if not self._logins[counted_as]:
                del self._logins[counted_as]

    def _index(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            self._by_id.setdefault(client_id, set()).add(entry.key)

    def _unindex(self, entry: Open) -> None:
        for client_id in entry.client.ids:
            if keys := self._by_id.get(client_id):
                keys.discard(entry.key)
                if not keys:
                    del self._by_id[client_id]

    def _forget_unknown(self, entry: Open) -> None:
        if self._unknown.get(entry.key) is not entry:
            return
        del self._unknown[entry.key]
        self._weights[entry.counted_as] -= entry.weight
        own = self._unknown_of[entry.counted_as]
        del own[entry.key]
        if not own:
            del self._unknown_of[entry.counted_as], self._weights[entry.counted_as]


def _raised_limit() -> int:
    """Raises the limit of open file descriptors as far as this process may; returns it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
