"""One connection of an unknown client, answered before mitmproxy sees it; sans-IO.

A `Conversation` gets what the client sent, and says what to do. It may only refuse. It answers a
request or a ClientHello if all of that is ordinary, and the verdict is a refusal. Everything after
the last answered request is handed over as it came, and read again by the strict parser (h11, in
`proxy/layers/`). So nothing that was parsed here is forwarded.

If a client is unknown when it connects, the driver uses it like this:

    act = conversation.receive(data)          # data_received
    while act is not None:
        if isinstance(act, HandOver): hand over `act.data`; never call `receive` again
        write act.data; report `act` to the observer
        if act.close: half-close and linger; drop all that comes; never call `receive` again
        (if the client reads slowly, stop here until it has read)
        act = conversation.receive()          # the client may have sent several requests at once

If `receive` raises, nothing has been answered: report the fault, and carry out `hand_over()`, so
that `proxy/layers/` answers (with 503, if the gate raises again).

`receive` returns None if it waits for the client. When the client ends its stream, the driver
closes the connection without a call: everything that can be answered has been.

A refused ClientHello is an `Alert`. If its `data` is empty, the client gets RST (`tls.unknown:
drop`); else it is the same as an `Answer` that closes.

If a client's CONNECT was answered with a tunnel (`tls.connect: alert`), what is handed over later
has that CONNECT, without its credentials. mitmproxy gets it first, and answers it with
`ESTABLISHED`. The client has that already, so the driver drops it, and then hands `data` over.
"""

from dataclasses import dataclass
from typing import Final

from capport.core.client import Client, Peer
from capport.core.cost import ANSWERS, FIELDS, HEAD, LINE
from capport.core.decision import way_of_connect
from capport.core.place import Place
from capport.core.policy import Connect
from capport.core.verdict import Drop, HeaderFieldsTooLarge, Refuse
from capport.front.hello import Hello, HelloReader, asked_for, claim_of
from capport.front.request import OrdinaryRequest, read, without_credentials
from capport.front.templates import answer_to
from capport.gate import AtOnce, Gate

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """The answer to a request, which `head` has as it was sent. `close`: it is the last one.

    `status` is 200 if a CONNECT got a tunnel that leads nowhere. `dialled` is None for an explicit
    proxy.
    """

    data: bytes
    close: bool
    client: Client
    dialled: Place | None
    verdict: AtOnce
    status: int
    head: bytes
    request: OrdinaryRequest

    @property
    def tunnels(self) -> bool:
        """Whether it is the 200 that opens a tunnel."""
        return self.status == 200

    @property
    def ends_all(self) -> bool:
        """Whether the client sends nothing more: it has said so, and its request has no body."""
        asked = self.request
        more = asked.keeps_open or asked.declared or asked.is_chunked
        return self.close and not more and asked.case.method != "CONNECT"


@dataclass(slots=True)
class Alert:
    """The refusal of a ClientHello: a TLS record, or nothing, which means RST.

    `ends_all` is as in `Answer`: the client waits for a ServerHello before it sends more (RFC 8446
    section 2).
    """

    data: bytes
    client: Client
    dialled: Place
    verdict: Refuse | Drop
    hello: Hello
    ends_all: bool
    close: bool = True


@dataclass(slots=True)
class HandOver:
    """Hand the connection to mitmproxy, which reads `data` as the beginning of it.

    `answers` is how many requests have been answered. If there were any, what follows is HTTP/1.
    `connect` is the CONNECT that opened the tunnel in which `data` came, if it came in one.
    """

    data: bytes
    answers: int
    connect: bytes = b""


type Refused = Answer | Alert

type Action = Refused | HandOver


class Conversation:
    """What one unknown client sends on one connection. `dialled` is None for an explicit proxy."""

    def __init__(self, gate: Gate, peer: Peer, dialled: Place | None) -> None:
        self.gate = gate
        self.peer = peer
        self.dialled = dialled
        self.answers = 0
        self.unread = b""  # what came after the last request that was answered
        self._searched = 0  # bytes of `unread` in which no head ends
        self._connect = b""  # the CONNECT that opened the tunnel, if one did
        self._hello: HelloReader | None = None

    def receive(self, data: bytes = b"") -> Action | None:
        """What to do next, now that the client has sent `data`."""
        if self._hello is not None:
            return self._read_hello(data)
        self.unread = data = self.unread + data if self.unread else data
        if not data:
            return None
        if data[0] == 0x16 and not self.answers and self.dialled is not None:
            self._hello, self.unread = HelloReader(), b""
            return self._read_hello(data)
        start, self._searched = self._searched, 0
        end = data.find(b"\r\n\r\n", max(0, start - 3), HEAD) + 4
        if end >= 4:
            return self._answer(data[:end], data[end:])
        if not _may_become_ordinary(data, start):
            return self.hand_over()
        self._searched = len(data)
        return None

    def hand_over(self) -> HandOver:
        """Hands over what has not been answered, whatever it is."""
        unread = self._hello.raw if self._hello is not None else self.unread
        return HandOver(unread, self.answers, self._connect)

    def _answer(self, head: bytes, rest: bytes) -> Action:
        request = read(head, explicit=self.dialled is None)
        if request is None or (rest and request.is_chunked):
            return self.hand_over()  # `rest` may not be what a chunked body begins with
        client = self.gate.client(self.peer)
        refusal = self.gate.refusal(client, request.case, request.claim, self.dialled, request.url)
        if refusal is None:
            return self.hand_over()
        verdict, state = refusal
        dialled = self.dialled
        if request.case.method == "CONNECT":
            way = way_of_connect(verdict, self.gate.policy, request.user_agent, request.claim.port)
            if way is Connect.ALERT:
                self._connect, self.unread = without_credentials(head), rest
                self.dialled = request.claim
                self.answers = 0
                return Answer(ESTABLISHED, False, client, dialled, verdict, 200, head, request)
        # After a 431 the client may be sending more of what is too large.
        last = self.answers + 1 >= ANSWERS or isinstance(verdict, HeaderFieldsTooLarge)
        close = last or not request.keeps_open
        status, data = answer_to(
            verdict, state, request.asked, self.gate.policy, client.address, close=close
        )
        self.unread = rest
        self.answers += 1
        return Answer(data, close, client, dialled, verdict, status, head, request)

    def _read_hello(self, data: bytes) -> Action | None:
        assert self._hello is not None
        assert self.dialled is not None
        try:
            hello = self._hello.feed(data)
        except ValueError:
            return self.hand_over()
        if hello is None:
            return None
        claim = claim_of(hello, self.dialled)
        client = self.gate.client(self.peer)
        verdict = self.gate.refused_handshake(client, claim, asked_for(claim, self.dialled))
        if verdict is None:
            return self.hand_over()
        record = b"" if isinstance(verdict, Drop) else self._hello.access_denied()
        last = self._hello.is_all and not hello.has_early_data
        return Alert(record, client, self.dialled, verdict, hello, ends_all=last)


def _may_become_ordinary(data: bytes, start: int) -> bool:
    """Whether `data` may become an ordinary head. What is before `start` was checked already."""
    if len(data) >= HEAD or not b"A" <= data[:1] <= b"Z":
        return False
    if data.count(b"\n") > FIELDS or (len(data) >= LINE and b"\n" not in data[:LINE]):
        return False
    return data.count(b"\n", start) == data.count(b"\r\n", max(0, start - 1))
