"""An HTTP/2 client, inside the TLS that `tls.unknown: intercept` opens."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from conftest import Portal
from proxy.hellos import trusting_all
from proxy.wire import OUTSIDE, until

INTERCEPT = "tls: {unknown: intercept}\n"


type Fields = list[tuple[str, str]]


@dataclass
class Stream:
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None


class Http2:
    """An HTTP/2 client that sends what a test tells it to, and keeps what it receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.streams: dict[int, Stream] = {}
        self.gone = False
        self.goodbye: h2.events.ConnectionTerminated | None = None
        self._untaken: Counter[int] = Counter()  # bytes of answers, if `takes` is not set
        self.takes = True
        self.flush()
        self._listening = asyncio.create_task(self._listen())

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def ask(self, *fields: tuple[str, str], ends: bool = True, **pseudo: str) -> Stream:
        """A request for https://outside.example.com/, with changes by `pseudo`."""
        number = self.h2.get_next_available_stream_id()
        named = {"method": "GET", "scheme": "https", "authority": OUTSIDE, "path": "/"} | pseudo
        head = [(f":{name}", value) for name, value in named.items() if value != "-"]
        self.h2.send_headers(number, [*head, *fields], end_stream=ends)
        self.flush()
        self.streams[number] = stream = Stream()
        return stream

    async def answer(self, stream: Stream) -> Stream:
        """`stream`, once it has ended, or the connection has."""
        await until(lambda: stream.ended or self.gone)
        return stream

    def send(self, stream: Stream, data: bytes, *, ends: bool = False) -> None:
        """As much of a body as flow control lets through."""
        number = next(n for n, it in self.streams.items() if it is stream)
        for at in range(0, len(data), 16384):
            self.h2.send_data(number, data[at : at + 16384])
        if ends:
            self.h2.end_stream(number)
        self.flush()

    async def _listen(self) -> None:
        try:
            while data := await self.reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._heard(event)
                self.flush()
        except (OSError, h2.exceptions.ProtocolError):
            pass
        self.gone = True

    def _heard(self, event: h2.events.Event) -> None:
        stream = self.streams.get(getattr(event, "stream_id", None) or 0, Stream())
        if isinstance(event, h2.events.ResponseReceived):
            fields = {_text(name): _text(value) for name, value in event.headers or ()}
            stream.status, stream.fields = int(fields[":status"]), fields
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data or b""
            self._untaken[event.stream_id or 0] += event.flow_controlled_length or 0
            if self.takes:
                self.take()
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.ended, stream.reset = True, event.error_code
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goodbye = event

    def take(self) -> None:
        """Opens the window again for what has arrived (RFC 9113 section 6.9)."""
        closed = self.h2.state_machine.state is h2.connection.ConnectionState.CLOSED
        if self._untaken and not closed:
            for number, size in self._untaken.items():
                self.h2.acknowledge_received_data(size, number)
            self._untaken.clear()
            self.flush()

    @property
    def untaken(self) -> int:
        """Bytes of answers for which the window has not been opened again."""
        return self._untaken.total()

    async def close(self) -> None:
        self.writer.close()
        self._listening.cancel()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def tls(it: Portal, *alpn: str, sni: str = OUTSIDE) -> Http2:
    reader, writer = await tls_streams(it, *alpn, sni=sni)
    return Http2(reader, writer)


async def tls_streams(
    it: Portal, *alpn: str, sni: str = OUTSIDE
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects as if a person had accepted the certificate error that section 7.4 warns of."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", it.port, ssl=trusting_all(alpn), server_hostname=sni
    )
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert chosen == (alpn[0] if alpn else None)
    return reader, writer
