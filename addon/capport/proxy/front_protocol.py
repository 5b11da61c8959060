"""The front on asyncio: accepts connections, answers strangers, and hands the rest to mitmproxy.

Each connection of an unknown client is a `Stranger`, which carries out what its `Conversation`
says. What strangers want is done in turn, a little in each pass of the event loop: so a client that
wants a thousand things at once makes itself wait, and nobody else.
"""

import asyncio
import functools
import logging
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from mitmproxy import connection
from mitmproxy.connection import Address
from mitmproxy.proxy import mode_specs

from capport.core.client import Client, Peer, parse_address
from capport.core.cost import ANSWERS
from capport.core.place import Place
from capport.core.reach import Machine
from capport.front.conversation import ESTABLISHED, Alert, Answer, Conversation, HandOver
from capport.front.half_close import STAGE, Stages
from capport.front.turns import Turns
from capport.gate import Gate
from capport.linux import frames
from capport.proxy import connections
from capport.proxy.connections import LITTLE, Connections
from capport.proxy.fail_closed import Faults
from capport.proxy.internals import listeners, sockets
from capport.proxy.internals.listeners import Instance
from capport.proxy.request_head import place_of

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Pieces of strangers' work in one pass of the event loop: about a millisecond."""
IN_A_ROW: Final = 8
"""Requests of one connection that are answered in one piece of work."""

type Refused = Answer | Alert


class Work(Protocol):
    """Something that a stranger wants done."""

    def do(self) -> None:
        """Does it. Never raises."""

    def drop(self) -> None:
        """Ends the connection instead, because its client wants too much at once."""


class Observer(Protocol):
    """Sees what the front refuses. Its methods never raise."""

    def refused(self, by: "Stranger", act: Refused) -> None:
        """Reports a refusal, after it was sent."""

    def intercepts(self, client: Client) -> bool:
        """Whether a person wants to see the next request before it is answered."""


class Front:
    """All connections that mitmproxy does not have yet, or never gets."""

    def __init__(
        self,
        gate: Gate,
        book: Connections,
        faults: Faults,
        observer: Observer,
    ) -> None:
        self.gate = gate
        self.book = book
        self.faults = faults
        self.observer = observer
        self._turns = Turns[str, Work]()
        self._left = AT_ONCE  # pieces of work that may be done in this pass
        self._scheduled = False
        self._pause = 0.0  # seconds before the next pass

    def accepted(self, instance: Instance, sock: socket.socket, peer: Address) -> None:
        """Takes a connection that has just been accepted."""
        address = peer[0]
        if self._turns.of(address) >= connections.MOST_A_CLIENT and self._is_unknown(address):
            self._turns.drop_oldest(address).drop()
        self.in_turn(address, _Arrival(self, instance, sock, peer))

    def in_turn(self, address: str, work: Work) -> None:
        """Does `work` now, if little was done in this pass, or else in its turn."""
        if self._left:
            self._left -= 1
            work.do()
        else:
            self._turns.add(address, work)
        if not self._left and not self._scheduled:
            self._rest()

    def was_long(self, seconds: float) -> None:
        """Leaves as much time to others as a large piece of work took."""
        self._left = 0
        self._pause = seconds

    def _rest(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_later(self._pause, self._pass)
        self._pause = 0.0

    def _pass(self) -> None:
        self._scheduled = False
        self._left = AT_ONCE
        while self._left and self._turns:
            self._left -= 1
            self._turns.next().do()
        if not self._left:
            self._rest()

    def _is_unknown(self, address: str) -> bool:
        try:
            return self.gate.known(self.gate.client(address)) is None
        except Exception:
            self.faults.fault("accept")
            return True

    def begin(self, instance: Instance, sock: socket.socket, peer: Address) -> None:
        """Makes a `Stranger` of an accepted connection; closes it if its client has gone again."""
        try:
            came: bytes | None = sock.recv(LITTLE)
        except BlockingIOError:
            came = None
        who = Peer(parse_address(peer[0]), frames.sender(sock))
        client = self.gate.client(who)
        found = self.gate.standing(client)
        if self.gate.is_dropped(found):
            asyncio.get_running_loop().call_soon(sockets.reset, sock)  # once it has connected
            return
        if came == b"" and not found.is_known:
            sock.close()
            return
        mode, talks = instance.mode, None
        at = sock.getsockname()
        if isinstance(mode, mode_specs.TransparentMode):
            try:
                at = listeners.destination_of(sock)
            except OSError as error:
                logger.warning(f"No original destination: {error}", extra={"client": peer})
                sock.close()
                return
            dialled = place_of(at)
            if dialled is not None and leads_back(dialled, self.gate.machine):
                sock.close()
                return
            talks = Conversation(self.gate, who, dialled) if dialled else None
        elif isinstance(mode, mode_specs.RegularMode):
            talks = Conversation(self.gate, who, None)
        one = Stranger(self, instance, peer, at, talks, came or b"")
        one.entry = self.book.accepted((peer, at), client, who.frame, one, known=found.is_known)
        sockets.attach(sock, one)


def leads_back(dialled: Place, machine: Machine) -> bool:
    """Whether a connection in transparent mode leads to the proxy itself, and so would loop."""
    return not isinstance(dialled.host, str) and machine.is_proxy(dialled.host, dialled.port)


class _Arrival:
    """A connection that was accepted, and waits for its turn."""

    def __init__(
        self, front: Front, instance: Instance, sock: socket.socket, peer: Address
    ) -> None:
        self._front = front
        self._instance = instance
        self._sock = sock
        self._peer = peer

    def do(self) -> None:
        try:
            self._front.begin(self._instance, self._sock, self._peer)
        except ConnectionError:  # the client has gone again
            self._sock.close()
        except Exception:
            self._front.faults.fault("accept")
            self._sock.close()

    def drop(self) -> None:
        self._sock.close()


class Stranger(asyncio.Protocol):
    """One connection that mitmproxy does not have. A known client's is handed over at once.

    `at` is the address that the client dialled. Without `talks`, everything is handed over.
    """

    def __init__(
        self,
        front: Front,
        instance: Instance,
        peer: Address,
        at: Address,
        talks: Conversation | None,
        came: bytes,
    ) -> None:
        self.front = front
        self.instance = instance
        self.peer = peer
        self.at = at
        self.entry: connections.Open
        self._talks = talks
        self._unread = came
        self._transport: asyncio.Transport | None = None
        self._waits = False  # for its turn
        self._blocked = False  # the client does not read what was sent
        self._ended = False  # the client sends no more
        self._leaves: HandOver | None = None  # once everything was sent
        self._lingers: Stages | None = None  # after the last answer
        self._stage: asyncio.TimerHandle | None = None

    # --- a protocol of asyncio's -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to read; hands a known client's connection over."""
        self._transport = cast(asyncio.Transport, transport)
        if self.entry.over:
            self._transport.abort()
            return
        sockets.set_transport_buffers(self._transport, LITTLE)
        if self.entry.let_through:
            self._do(lambda: self._hand_over(HandOver(b"", 0)))
        elif self._unread:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Answers in its turn; drops what comes after the last answer."""
        if self._lingers is not None:
            if not self._lingers.takes(len(data)) and self._transport:
                self._transport.close()
            return
        if self.entry.over:
            return
        self._unread += data
        self._wait()
        if len(self._unread) >= LITTLE and self._transport:
            self._transport.pause_reading()  # until its turn has come

    def eof_received(self) -> bool:
        """Answers what has been read, and closes."""
        self._ended = True
        if self._transport and (self._lingers is not None or self.entry.over):
            self._transport.close()
        else:
            self._wait()
        return True

    def pause_writing(self) -> None:
        """Answers no more until the client has read."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Goes on."""
        self._blocked = False
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._forget()
        self.front.book.left(self.entry)

    @functools.cached_property
    def shown_as(self) -> connection.Client:
        """The connection as mitmproxy's flows have it."""
        return connection.Client(
            peername=self.peer,
            sockname=self.at,
            timestamp_start=time.time(),
            proxy_mode=self.instance.mode,
            state=connection.ConnectionState.OPEN,
        )

    # --- work in its turn ------------------------------------------------------------------------

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self.front.in_turn(self.peer[0], self)

    def do(self) -> None:
        """Answers what can be answered now."""
        self._waits = False
        self._do(self._go_on)

    def drop(self) -> None:
        """Ends the connection."""
        self.front.book.abort(self.entry)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self.front.faults.fault("the front")
            self.front.book.abort(self.entry)

    def _go_on(self) -> None:
        transport = self._transport
        ends = self.entry.over or self._lingers
        if transport is None or transport.is_closing() or self._blocked or ends:
            return
        if self._leaves is not None:
            self._hand_over(self._leaves)
            return
        data, self._unread = self._unread, b""
        for _ in range(IN_A_ROW):
            act = self._next(data)
            data = b""
            if act is None:
                if self._ended:
                    transport.close()
                elif not transport.is_reading():
                    transport.resume_reading()
                return
            if isinstance(act, HandOver):
                self._hand_over(act)
                return
            self._answer(act)
            if act.close or self._blocked:
                return
        self._wait()

    def _next(self, data: bytes) -> Answer | Alert | HandOver | None:
        if self._talks is None:
            return HandOver(data, 0) if data else None
        try:
            if data and self._is_intercepted(data):
                return HandOver(data, ANSWERS - 1)  # so that one request is answered
            return self._talks.receive(data)
        except Exception:
            self.front.faults.fault("the front")
            return self._talks.hand_over()

    def _is_intercepted(self, data: bytes) -> bool:
        """Whether `data` begins an HTTP/1 request that a person wants to stop."""
        assert self._talks
        if not self.front.observer.intercepts(self.entry.client):
            return False
        begins = not self._talks.hand_over().data
        return begins and data[:1] != b"\x16" and not data.startswith(b"PRI")

    def _answer(self, act: Refused) -> None:
        assert self._transport
        if not act.data:
            self.abort(reset=True)
        else:
            self._transport.write(act.data)
        self.front.observer.refused(self, act)
        if not act.close:
            self.front.book.goes_on(self.entry)
        elif self._ended or (isinstance(act, Answer) and act.ends_all):
            self._transport.close()
        elif act.data:
            self._transport.write_eof()
            self.front.book.ends(self.entry)
            self._talks = None  # with what it has read
            self._lingers = Stages(act.request.declared if isinstance(act, Answer) else 0)
            self._begin_stage()

    def _hand_over(self, act: HandOver) -> None:
        """Gives the connection to mitmproxy, once everything that was written has been sent.

        After `set_protocol`, asyncio would not report to mitmproxy that it may write again.
        """
        assert self._transport
        if self._transport.get_write_buffer_size():
            self._leaves = act
            self._transport.pause_reading()
            self._transport.set_write_buffer_limits(0)
            return
        self._forget()
        began = time.monotonic()
        self.entry.answers, self.entry.in_tunnel = act.answers, bool(act.connect)
        data = act.data + self._unread
        self._talks, self._unread, self._leaves = None, b"", None  # mitmproxy has it now
        listeners.hand_over(
            self.instance,
            self._transport,
            data,
            limit=LITTLE,
            ended=self._ended,
            answered=(act.connect, ESTABLISHED) if act.connect else None,
        )
        self.front.was_long(time.monotonic() - began)

    # --- its end ---------------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        self._stage = asyncio.get_running_loop().call_later(STAGE, self._end_stage)

    def _end_stage(self) -> None:
        if self._lingers and self._lingers.go_on():
            self._begin_stage()
        elif self._transport:
            self._transport.close()

    def _forget(self) -> None:
        if self._stage is not None:
            self._stage.cancel()

    def abort(self, *, reset: bool = False) -> None:
        """Closes the socket at once. With `reset`, the client gets RST, not FIN."""
        if self._transport:
            sockets.abort_transport(self._transport, reset=reset)

    def finish(self) -> None:
        """Ends the connection after everything that was written has been sent."""
        if self._transport:
            sockets.finish(self._transport)

    def set_buffers(self, size: int | None) -> None:
        """Bounds what asyncio reads at once, and keeps."""
        if self._transport:
            sockets.set_transport_buffers(self._transport, size)
