"""HTTP/2 within bounds, whoever speaks it: mitmproxy's, by way of h2, takes what it is sent.

h2 looks at a frame's size once the whole frame is there: each connection may keep 16 MiB of one. It
makes an event of each frame, however small, and an integer of each run of bytes, however long. So
what is too much is refused before h2 reads it, of clients and of origins.
"""

import time
from collections.abc import Buffer, Callable, Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

from h2.config import H2Configuration
from h2.events import Event
from h2.exceptions import ProtocolError
from mitmproxy import connection
from mitmproxy.proxy import context
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _http2
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from capport.core.cost import FIELDS, HEAD

FRAME: Final = 2**14  # bytes in a frame: RFC 9113 section 4.2, and no more is asked for
FRAMES: Final = 500  # frames at once, of which a request counts as two, and
FRAMES_A_SECOND: Final = 1000.0
BYTES_A_FRAME: Final = 512  # of what is sent either way, for which there may be one frame more
INTEGER: Final = 5  # bytes of an integer beyond its prefix: RFC 7541 section 5.1
SIZE_UPDATES: Final = 2  # RFC 7541 section 4.2

PREFACE: Final = 24  # bytes, of a client: RFC 9113 section 3.4
DATA, HEADERS, PUSH_PROMISE, CONTINUATION = 0x0, 0x1, 0x5, 0x9


class Frames:
    """Counts what comes, frame by frame, and raises ProtocolError for what is too much."""

    def __init__(self, *, skip: int, now: Callable[[], float] = time.monotonic) -> None:
        self._left = skip  # bytes of what has begun
        self._header = bytearray()
        self._block = 0
        self.bodies = 0  # bytes in DATA since somebody has looked
        self._now = now
        self._may = float(FRAMES)
        self._at = now()

    def read(self, data: Buffer) -> None:
        """Some more has come."""
        self._earn((self._now() - self._at) * FRAMES_A_SECOND)
        self._at = self._now()
        view, at = memoryview(data), 0
        while at < len(view):
            if self._left:
                step = min(self._left, len(view) - at)
                self._left -= step
                at += step
                continue
            step = min(9 - len(self._header), len(view) - at)
            self._header += view[at : at + step]
            at += step
            if len(self._header) == 9:
                self._begin(int.from_bytes(self._header[:3]), self._header[3])
                self._header.clear()

    def sent(self, size: int) -> None:
        """So many bytes went out: what is said to them costs nothing."""
        self._earn(size / BYTES_A_FRAME)

    def _begin(self, size: int, kind: int) -> None:
        """RFC 9113 section 4.1."""
        if size > FRAME:
            raise ProtocolError(f"a frame of {size} bytes, and {FRAME} may be")
        if kind in (HEADERS, PUSH_PROMISE):
            self._block = 0
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._block += size
            if self._block > HEAD:
                raise ProtocolError(f"a header section of more than {HEAD} bytes")
        elif kind == DATA:
            self.bodies += size
            self._earn(size / BYTES_A_FRAME)
        self._left = size
        self._may -= 2 if kind == HEADERS else 1
        if self._may < 0:
            raise ProtocolError("more frames than what is in them is worth")

    def _earn(self, frames: float) -> None:
        self._may = min(FRAMES, self._may + frames)


def check_fields(block: bytes) -> None:
    """Raises ProtocolError for a header section that costs more to decode than its bytes do."""
    at = fields = updates = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # RFC 7541 section 6.1: indexed
            at, _ = _integer(block, at, 7)
        elif first & 0xE0 == 0x20:  # section 6.3: the size of the table
            at, _ = _integer(block, at, 5)
            updates += 1
        else:  # section 6.2: a literal
            at, index = _integer(block, at, 6 if first & 0x40 else 4)
            for _ in range(1 if index else 2):
                at, size = _integer(block, at, 7)
                at += size
        fields += 1
        if fields > FIELDS + SIZE_UPDATES or updates > SIZE_UPDATES:
            raise ProtocolError(f"more than {FIELDS} fields, or {SIZE_UPDATES} sizes of the table")


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer at `at`, and where it ends (RFC 7541 section 5.1)."""
    most = (1 << bits) - 1
    number = block[at] & most if at < len(block) else 0
    if number < most:
        return at + 1, number
    for count, byte in enumerate(block[at + 1 : at + 1 + INTEGER]):
        number += (byte & 0x7F) << 7 * count
        if not byte & 0x80:
            return at + 2 + count, number
    raise ProtocolError(f"an integer of more than {INTEGER} bytes, or without an end")


class BoundConnection(BufferedH2Connection):
    """mitmproxy's, less what is too much."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.frames = Frames(skip=0 if config.client_side else PREFACE)
        self.local_settings.max_frame_size = self.max_inbound_frame_size = FRAME
        self.local_settings.acknowledge()
        decode = self.decoder.decode

        def checked(data: bytes, raw: bool = False) -> Iterable[Any]:
            check_fields(data)
            return decode(data, raw)

        self.decoder.decode = checked  # type: ignore[method-assign]

    def receive_data(self, data: Buffer) -> list[Event]:
        """What `data` says. Raises ProtocolError, after which the connection ends."""
        self.frames.read(data)
        events: list[Event] = super().receive_data(data)
        return events

    def data_to_send(self, amount: int | None = None) -> bytes:
        """What is to be sent."""
        data = super().data_to_send(amount)
        self.frames.sent(len(data))
        return data


_speaking: WeakKeyDictionary[connection.Client, BoundConnection] = WeakKeyDictionary()


class _Server(_http2.Http2Server):
    def __init__(self, ctx: context.Context) -> None:
        super().__init__(ctx)
        assert isinstance(self.h2_conn, BoundConnection)
        _speaking[ctx.client] = self.h2_conn


def unread(client: connection.Client) -> int:
    """Bytes of answers that wait for a client to open its window (RFC 9113 section 5.2)."""
    speaking = _speaking.get(client)
    waiting = speaking.stream_buffers.values() if speaking else ()
    return sum(len(chunk.data) for chunks in waiting for chunk in chunks)


def bodies(client: connection.Client) -> int | None:
    """Bytes of bodies that it has sent since this was asked; None where it speaks no HTTP/2."""
    if speaking := _speaking.get(client):
        size, speaking.frames.bodies = speaking.frames.bodies, 0
        return size
    return None


def bound() -> None:
    """Has mitmproxy speak HTTP/2 so."""
    _http2.BufferedH2Connection = BoundConnection  # type: ignore[attr-defined]
    http_layers.Http2Server = _Server  # type: ignore[attr-defined, assignment]
