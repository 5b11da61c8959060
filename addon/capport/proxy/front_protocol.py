"""The front on its sockets: accepts connections, answers strangers, hands the rest to mitmproxy.

Each connection of an unknown client is a `Stranger`, which carries out what its `Conversation`
says. The sockets have no asyncio transports: all are in one epoll(7), and the event loop watches
only its descriptor. Strangers are served in turn, a few in each pass of the event loop. So a client
that asks for a thousand things at once makes nobody wait but itself.

All answers of a pass are sent together at its end. Otherwise each of them wakes a client on this
machine, or on a virtual one beside it, and the kernel's part of that costs more than the answer.
"""

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

from mitmproxy import connection
from mitmproxy.connection import Address
from mitmproxy.proxy import mode_specs

from capport import lasting
from capport.core.client import Client, ClientId, Mac, Peer, parse_address
from capport.core.cost import ANSWERS
from capport.core.place import Place
from capport.core.reach import Machine
from capport.front.conversation import ESTABLISHED, Action, Answer, Conversation, HandOver, Refused
from capport.front.half_close import Stages
from capport.front.turns import Turns
from capport.gate import Gate
from capport.linux import frames
from capport.proxy import connections
from capport.proxy.backpressure import LITTLE
from capport.proxy.connections import Connections
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.flows.shown import Shown
from capport.proxy.internals import listeners, sockets
from capport.proxy.internals.listeners import Instance
from capport.proxy.open_connection import Open
from capport.proxy.request_head import place_of

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Pieces of strangers' work in one pass of the event loop: about a millisecond."""
IN_A_ROW: Final = 8
"""Reads in one piece of work of what comes after the last answer of a connection."""
READY: Final = 256
"""Sockets that epoll reports at once. Each then waits for its client's turn."""

# As numbers, because `|` of the enum that they are in takes a microsecond.
_AT_ONCE: Final = int(socket.MSG_DONTWAIT)
_AND_THE_END: Final = int(socket.MSG_DONTWAIT | socket.MSG_MORE)

_PEERS: Final = 1024  # that are remembered, because each makes its client once

# Edge-triggered: a socket is reported once for what has come, and not again while it waits.
_READS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDS: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Front:
    """All connections that mitmproxy does not have yet, or never gets."""

    def __init__(self, gate: Gate, conns: Connections, marks: FlowMarks, shown: Shown) -> None:
        self.gate = gate
        self.connections = conns
        self.marks = marks
        self.shown = shown
        self.ends = listeners.Ends()
        self.turns = Turns[ClientId, Stranger]()  # work that waits for its client's turn
        self._left = AT_ONCE  # pieces of work that may be done in this pass
        self.answered: list[Stranger] = []  # whose answers are sent at the end of this pass
        self._scheduled = False  # `_pass` will be called, or a connection is being handed over
        self._epoll = select.epoll()
        self.by_fd: dict[int, Stranger] = {}  # by file descriptor

    def open(self) -> None:
        """Begins to serve."""
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._wake)

    def close(self) -> None:
        """Ends every connection that mitmproxy does not have, and accepts no more."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        for one in tuple(self.by_fd.values()):
            one.drop()
        while self.turns:
            self.turns.next().drop()

    def accepted(
        self, instance: Instance, connected: Iterable[tuple[socket.socket, Address]]
    ) -> None:
        """Takes connections that have just been accepted: their sockets and peers."""
        for sock, peer in connected:
            self._take(instance, sock, peer)
        self._send_answers()

    def _take(self, instance: Instance, sock: socket.socket, peer: Address) -> None:
        """Takes one. If too many wait, the oldest of its client's ends, or else this one."""
        if self._epoll.closed:
            sock.close()
            return
        one = Stranger(self, instance, sock, peer)
        if not self._left:
            client = one.counted_as
            count = self.turns.of(client)
            # The kernel gives a socket the lowest number that is free: so many are open in all.
            too_many = (
                count >= connections.MOST_A_CLIENT
                or sock.fileno() >= self.connections.most_accepted
            )
            if too_many and self._is_unknown(one):
                if not count:
                    one.drop()
                    return
                self.turns.drop_oldest(client).drop()
                one.renumber()
        self.in_turn(one)

    def in_turn(self, one: "Stranger") -> None:
        """Does what `one` wants now, if little was done in this pass, or else in its turn."""
        if one.waits:
            return
        if self._left:
            self._left -= 1
            one.do()
        else:
            one.waits = True
            self.turns.add(one.counted_as, one)
        if not self._left and not self._scheduled:
            self.rest()

    def watch(self, one: "Stranger", fd: int, events: int) -> None:
        """Makes `one` ready at each of these events on its socket."""
        if fd in self.by_fd:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self.by_fd[fd] = one

    def release(self, fd: int) -> None:
        """Forgets a socket that stays open."""
        if self.by_fd.pop(fd, None):
            self._epoll.unregister(fd)

    def leave(self, leaving: Coroutine[None, None, None]) -> None:
        """Hands a connection over. Nothing else is done until it calls `rest`."""
        self._left, self._scheduled = 0, True
        lasting.start(leaving)

    def rest(self, seconds: float = 0.0) -> None:
        """Does nothing for `seconds`, so that the event loop has time for other work."""
        self._scheduled = True
        asyncio.get_running_loop().call_later(seconds, self._pass)

    def _wake(self) -> None:
        for fd, events in self._epoll.poll(0, READY):
            if one := self.by_fd.get(fd):
                one.ready(events)
        self._send_answers()

    def _pass(self) -> None:
        self._scheduled = False
        self._left = AT_ONCE
        while self._left and self.turns:
            self._left -= 1
            self.turns.next().do()
        self._send_answers()
        if not self._left and not self._scheduled:
            self.rest()

    def _send_answers(self) -> None:
        while self.answered:  # sending an answer can lead to the client's next one
            answered, self.answered = self.answered, []
            for one in answered:
                one.do()

    def _is_unknown(self, one: "Stranger") -> bool:
        try:
            return self.gate.known(one.client) is None
        except Exception:
            self.marks.fault("accept")
            return True


@lru_cache(_PEERS)
def _peer(address: str, frame: Mac | None) -> Peer:
    return Peer(parse_address(address), frame)


def leads_back(dialled: Place, machine: Machine) -> bool:
    """Whether a connection in transparent mode leads to the proxy itself, and so would loop."""
    return not isinstance(dialled.host, str) and machine.is_proxy(dialled.host, dialled.port)


class Gone(Exception):
    """The client has reset the connection, or cannot be reached."""


@dataclass(slots=True, eq=False)
class Stranger:
    """One connection that mitmproxy does not have. A known client's is handed over at once.

    It is in `connections` and in the epoll only if it stays open after what was done first.
    """

    front: Front
    instance: Instance
    sock: socket.socket
    peer: Address
    _who: Peer | None = None  # once `who` was asked for
    _at: Address | None = None  # what the client dialled, once `_dialled` was called
    _entry: Open | None = None
    _talks: Conversation | None = None  # without it, everything is handed over
    _shown: connection.Client | None = None
    _step: Callable[["Stranger"], None] = field(init=False)  # what `do` does next
    waits: bool = False  # for its turn
    _readable: bool = True  # the kernel may have something from the client
    _hangs_up: bool = False  # the client sends nothing after what the kernel has
    _events: int = 0  # the events that epoll reports
    _pipelined: bool = False  # `_talks` has a request that it has not looked at yet
    unsent: bytes = b""  # waits until the client reads what was sent
    _ends: bool = False  # the connection ends once everything is sent
    _lingers: Stages | None = None  # for what comes after that
    _leaves: bool = False  # the connection is being handed over to mitmproxy
    _transport: asyncio.Transport | None = None  # set when mitmproxy has it

    def __post_init__(self) -> None:
        self._step = Stranger.begin

    # --- what happens to it ----------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """Goes on in its turn, because epoll has reported these events."""
        if events & ~select.EPOLLOUT:
            self._readable = True
        if events & _ENDS:
            self._hangs_up = True
        elif self.unsent and not events & select.EPOLLOUT:
            return  # until the client reads, nothing more is read from it
        self.front.in_turn(self)

    def do(self) -> None:
        """Does what can be done now. Never raises."""
        self.waits = False
        try:
            self._step(self)
        except Gone:
            self._close()
        except Exception:
            self.front.marks.fault("the front")
            self._close()

    def drop(self) -> None:
        """Ends the connection: its client wants too much at once, or the portal stops."""
        self._leaves = False
        if self._entry:
            self.front.connections.abort(self._entry)
        else:
            self._close()

    def abort(self, *, reset: bool = False) -> None:
        """Closes the socket at once. With `reset`, the client gets RST, not FIN."""
        if reset and self.sock.fileno() >= 0:
            sockets.reset_at_close(self.sock)
        if self._transport:
            self._transport.abort()
        elif not self._leaves:  # else `_attached` ends it
            self._close()

    def finish(self) -> None:
        """Ends the connection after everything that was written has been sent."""
        if self._transport:
            sockets.finish(self._transport)
        elif not self._leaves:  # else `_attached` ends it
            try:
                self._end(Stages())
            except Gone:
                self._close()

    def lingers(self) -> bool:
        """Whether it stays open for another stage after its end."""
        return self._lingers is not None and self._lingers.go_on()

    def renumber(self) -> None:
        """Gives its socket the lowest number that is free, before anybody watches it.

        Otherwise the numbers that others have left would count as room for more connections.
        """
        sock, self.sock = self.sock, self.sock.dup()
        sock.close()

    @property
    def client(self) -> Client:
        """Its client, as the gate knows it now."""
        return self.front.gate.client(self.who)

    @property
    def who(self) -> Peer:
        """Its address, and the MAC that its first frame came from."""
        if self._who is None:
            frame = frames.sender_from(parse_address(self.peer[0]), self.sock)
            self._who = _peer(self.peer[0], frame)
        return self._who

    @property
    def counted_as(self) -> ClientId:
        """As what it takes turns: not the address, because with IPv6 one device has many."""
        if self._entry:
            return self._entry.counted_as
        try:
            return self.client.id
        except Exception:
            self.front.marks.fault("accept")
            return ClientId(self.peer[0])

    def shown_as(self) -> connection.Client:
        """The connection as mitmproxy's flows have it. It has its entry then."""
        if self._shown is None:
            self._enter()
            self._shown = connection.Client(
                peername=self.peer,
                sockname=self._dialled,
                timestamp_start=time.time(),
                proxy_mode=self.instance.mode,
                state=connection.ConnectionState.OPEN,
            )
        return self._shown

    # --- its steps -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begins to talk; hands a known client over; closes if the client has gone again."""
        gate, mode, dialled = self.front.gate, self.instance.mode, None
        came = self._receive()
        if gate.policy.limits.drop_after and gate.is_dropped(gate.standing(self.client)):
            later = partial(self.abort, reset=True)
            asyncio.get_running_loop().call_soon(later)  # once it has connected
            return
        if came == b"" and gate.known(self.client) is None:
            self._close()
            return
        if isinstance(mode, mode_specs.TransparentMode):
            try:
                self._at = listeners.destination_of(self.sock)
            except OSError as error:
                logger.warning(f"No original destination: {error}", extra={"client": self.peer})
                self._close()
                return
            dialled = place_of(self._at)
            if dialled is not None and leads_back(dialled, gate.machine):
                self._close()
                return
        if dialled is not None or isinstance(mode, mode_specs.RegularMode):
            self._talks = Conversation(gate, self.who, dialled)
        self._step = Stranger.go_on
        self.go_on(came or b"")

    def go_on(self, data: bytes = b"") -> None:
        """Answers the next request that the client has sent."""
        if not data and not self._pipelined:
            came = self._receive()
            if not came:
                self._pause(ended=came is not None)
                return
            data = came
        act = self._next(data)
        if isinstance(act, HandOver):
            self._hand_over(act)
            return
        assert self._talks  # else it is a HandOver
        self._pipelined = act is not None and self._talks.unread != b""
        if act is not None:
            self._answer(act)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        if self._pipelined or self._readable:
            self.front.in_turn(self)
        elif not self._events:  # else it was there before
            self._pause(ended=False)

    def _pause(self, *, ended: bool) -> None:
        """Waits for the client to send more. A known client's connection is handed over instead."""
        if self._enter().let_through:
            self._hand_over(self._talks.hand_over() if self._talks else HandOver(b"", 0))
        elif ended:
            self._close()
        else:
            self._keep()

    def _next(self, data: bytes) -> Action | None:
        if self._talks is None:
            return HandOver(data, 0) if data else None
        try:
            if data and self.front.shown.intercepting and self._is_intercepted(data):
                return HandOver(data, ANSWERS - 1)  # so that mitmproxy answers one request only
            return self._talks.receive(data)
        except Exception:
            self.front.marks.fault("the front")
            return self._talks.hand_over()

    def _is_intercepted(self, data: bytes) -> bool:
        """Whether `data` begins an HTTP/1 request that a person wants to stop."""
        assert self._talks
        if not self.front.shown.may_show(self.client):
            return False
        begins = not self._talks.hand_over().data
        return begins and data[:1] != b"\x16" and not data.startswith(b"PRI")

    def _answer(self, act: Refused) -> None:
        self.front.shown.refused(act, self.shown_as)
        if not act.data:
            self.abort(reset=True)
            return
        if act.close:
            self._ends = True
            if self._readable or not act.ends_all:
                self._lingers = Stages(act.request.declared if isinstance(act, Answer) else 0)
        self.unsent, self._step = act.data, Stranger.send
        self.front.answered.append(self)

    def send(self) -> None:
        """Sends as much of the answer as the kernel takes, the rest when the client has read that.

        The end of the stream goes into the same segment as the last of it.
        """
        try:
            sent = self.sock.send(self.unsent, _AND_THE_END if self._ends else _AT_ONCE)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise Gone from None
        self.unsent = self.unsent[sent:]
        if self.unsent:
            self._keep()
        elif self._ends:
            self._end(self._lingers)
        else:
            self._step = Stranger.go_on
            if self._entry:
                self.front.connections.goes_on(self._entry)
            self._wait_for_more()

    def _end(self, stages: Stages | None) -> None:
        """Ends the connection once everything is sent. With `stages`, ends only our half at first.

        Then it drops what the client still sends (`linger`).
        """
        self._ends, self._lingers = True, stages
        if self.unsent:
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)  # sends all, also if something has come meanwhile
        except OSError:
            raise Gone from None
        if stages is None:
            self._close()
            return
        self._talks, self._step = None, Stranger.linger  # frees what the conversation has read
        self.front.connections.ends(self._keep())
        if self._readable:
            self.front.in_turn(self)

    def linger(self) -> None:
        """Drops what comes after the last answer."""
        assert self._lingers
        for _ in range(IN_A_ROW):
            came = self._receive()
            if came is None:
                return
            if not came or not self._lingers.takes(len(came)):
                self._close()
                return
        self.front.in_turn(self)

    def nothing(self) -> None:
        """Does nothing: the connection is closed, or mitmproxy has it."""

    def _hand_over(self, act: HandOver) -> None:
        """Gives the connection to mitmproxy."""
        entry = self._enter()
        if entry.over:
            return
        entry.answers, entry.in_tunnel = act.answers, bool(act.connect)
        self._talks, self._step, self._leaves = None, Stranger.nothing, True
        self.front.release(self.sock.fileno())
        self.front.leave(self._leave(act))

    async def _leave(self, act: HandOver) -> None:
        answered = (act.connect, ESTABLISHED) if act.connect else None
        try:
            leaving = listeners.hand_over(
                self.instance,
                self.sock,
                act.data,
                limit=LITTLE,
                in_turn=partial(self.front.ends.add, self.peer[0]),
                attached=self._attached,
                answered=answered,
            )
            del act  # or its data would be kept here while mitmproxy reads it
            await leaving
        except Exception:
            self.front.marks.fault("the front")
            self.drop()
        if self._transport is None:  # `_attached` was not called
            self.drop()
            self.front.rest()

    def _attached(self, transport: asyncio.Transport, begin: Callable[[], None]) -> None:
        """Lets mitmproxy begin, unless the connection was ended meanwhile.

        If the client has reset it, it has no peer name, which mitmproxy and the hooks need.
        """
        assert self._entry
        self._transport, began = transport, time.monotonic()
        try:
            if self._entry.over or transport.get_extra_info("peername") is None:
                transport.abort()
                self.front.connections.left(self._entry)
            else:
                begin()
        finally:
            self.front.rest(time.monotonic() - began)

    # --- its socket ------------------------------------------------------------------------------

    @property
    def _dialled(self) -> Address:
        if self._at is None:
            self._at = self.sock.getsockname()
        return self._at

    def _receive(self) -> bytes | None:
        """What the client has sent: nothing at its end, None if nothing more has come yet."""
        if not self._readable:
            return None
        try:
            data = self.sock.recv(LITTLE, _AT_ONCE)
        except BlockingIOError:
            self._readable = False
            return None
        except OSError:
            raise Gone from None
        self._readable = self._hangs_up or len(data) == LITTLE
        return data

    def _keep(self) -> Open:
        """Keeps the connection open until the client sends more, or reads more."""
        entry = self._enter()
        events = _READS | select.EPOLLOUT if self.unsent else _READS
        if events & ~self._events and not entry.over:
            self._events = events
            self.front.watch(self, self.sock.fileno(), events)
        return entry

    def _enter(self) -> Open:
        """Its entry in `connections`, made if there is none. Making it may end the connection."""
        if self._entry is None:
            client, key = self.client, (self.peer, self._dialled)
            found = self.front.gate.standing(client)
            self._entry = self.front.connections.accepted(
                key, client, self.who.frame, self, known=found.is_known
            )
            if self._entry.over:
                self._close()
            elif self.front.gate.is_dropped(found):  # because of what it was just refused
                self.front.connections.abort(self._entry, reset=True)
        return self._entry

    def _close(self) -> None:
        self._step = Stranger.nothing
        if self._entry:
            self.front.connections.left(self._entry)
        if (fd := self.sock.fileno()) >= 0:
            self.front.by_fd.pop(fd, None)  # closing it takes it out of the epoll
            try:
                self.sock.close()
            except OSError:  # somebody else has closed it
                self.front.marks.fault("the front")
