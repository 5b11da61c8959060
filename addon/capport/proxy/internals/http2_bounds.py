"""Makes mitmproxy read HTTP/2 within bounds, from clients and from origins.

mitmproxy reads HTTP/2 with h2, which has no such bounds. h2 checks the size of a frame only when
the whole frame has come, so each connection may keep 16 MiB. It makes an event of each frame,
however small, and decodes an integer of any length. So this module counts the frames, and refuses
what is too much before h2 reads it.
"""

import time
from collections.abc import Buffer, Callable, Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import ProtocolError
from mitmproxy import connection
from mitmproxy.proxy import context, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _http2
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from capport.core.cost import FIELDS, HEAD
from capport.proxy.internals.http_events import HeadRefusedHook, RefusedHead

FRAME: Final = 2**14  # bytes in a frame: the default of RFC 9113 section 4.2, and our setting
FRAMES: Final = 500  # the most frames at once; HEADERS counts as two
FRAMES_A_SECOND: Final = 1000.0  # permitted in addition
BYTES_A_FRAME: Final = 512  # of body received, or of anything sent, permit one frame more
INTEGER: Final = 5  # bytes of an integer beyond its prefix: RFC 7541 section 5.1
SIZE_UPDATES: Final = 2  # RFC 7541 section 4.2

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # of a client: RFC 9113 section 3.4
DATA, HEADERS, PUSH_PROMISE, GOAWAY, CONTINUATION = 0x0, 0x1, 0x5, 0x7, 0x9


class Frames:
    """Counts the frames that come, and raises ProtocolError if there are too many or too large."""

    def __init__(self, *, skip: int, now: Callable[[], float] = time.monotonic) -> None:
        self._left = skip  # bytes of the current frame that are still to come
        self._header = bytearray()  # of the next frame, as far as it has come
        self._block = 0  # bytes of the current header section
        self.bodies = 0  # bytes of bodies since the function `bodies` was called
        self._now = now
        self._allowed = float(FRAMES)  # how many frames may come now
        self._earned_at = now()

    def read(self, data: Buffer) -> None:
        """Counts the frames in `data`, which has just come. Raises ProtocolError."""
        self._earn((self._now() - self._earned_at) * FRAMES_A_SECOND)
        self._earned_at = self._now()
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
        """Records that `size` bytes were sent; the peer may answer them with some frames."""
        self._earn(size / BYTES_A_FRAME)

    def _begin(self, size: int, kind: int) -> None:
        """Begins a frame, of which the header has come (RFC 9113 section 4.1)."""
        if size > FRAME:
            raise ProtocolError(f"a frame of {size} bytes, more than {FRAME}")
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
        self._allowed -= 2 if kind == HEADERS else 1
        if self._allowed < 0:
            raise ProtocolError("too many frames for the data that they carry")

    def _earn(self, frames: float) -> None:
        self._allowed = min(FRAMES, self._allowed + frames)


def check_fields(block: bytes) -> None:
    """Raises ProtocolError for a header section that is costly to decode for its size."""
    at = fields = updates = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # RFC 7541 section 6.1: indexed
            at, _ = _integer(block, at, 7)
        elif first & 0xE0 == 0x20:  # section 6.3: a new size of the table
            at, _ = _integer(block, at, 5)
            updates += 1
        else:  # section 6.2: a literal
            at, index = _integer(block, at, 6 if first & 0x40 else 4)
            for _ in range(1 if index else 2):
                at, size = _integer(block, at, 7)
                at += size
        fields += 1
        if fields > FIELDS + SIZE_UPDATES or updates > SIZE_UPDATES:
            most = f"{FIELDS} fields, or {SIZE_UPDATES} size updates"
            raise ProtocolError(f"a header section with more than {most}")


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Decodes the integer at `at`: where it ends, and its value (RFC 7541 section 5.1)."""
    most = (1 << bits) - 1
    number = block[at] & most if at < len(block) else 0
    if number < most:
        return at + 1, number
    for count, byte in enumerate(block[at + 1 : at + 1 + INTEGER]):
        number += (byte & 0x7F) << 7 * count
        if not byte & 0x80:
            return at + 2 + count, number
    raise ProtocolError(f"an integer that does not end within {INTEGER} bytes")


class BoundConnection(BufferedH2Connection):
    """mitmproxy's HTTP/2 connection, which raises ProtocolError for what is too much."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.frames = Frames(skip=0 if config.client_side else len(PREFACE))
        self.says_goodbye = False  # when all requests are answered
        self.local_settings.max_frame_size = self.max_inbound_frame_size = FRAME
        self.local_settings.acknowledge()
        decode = self.decoder.decode

        def checked(data: bytes, raw: bool = False) -> Iterable[Any]:
            check_fields(data)
            return decode(data, raw)

        self.decoder.decode = checked  # type: ignore[method-assign]

    def receive_data(self, data: Buffer) -> list[Event]:
        """The events that `data` contains. Raises ProtocolError; then mitmproxy closes."""
        self.frames.read(data)
        try:
            events: list[Event] = super().receive_data(data)
        except ProtocolError as error:
            # mitmproxy keeps the error while it answers, and it refers to all that was read.
            error.__cause__ = error.__context__ = None
            raise error.with_traceback(None)  # noqa: B904
        return events

    def data_to_send(self, amount: int | None = None) -> bytes:
        """The bytes that are to be sent."""
        data = super().data_to_send(amount)
        if self.says_goodbye and not self.open_inbound_streams:
            # Written here, because after h2's own `close_connection` a late frame is an error.
            self.says_goodbye = False
            last = self.highest_inbound_stream_id
            data += b"\0\0\x08" + bytes([GOAWAY]) + bytes(5) + last.to_bytes(4) + bytes(4)
        self.frames.sent(len(data))
        return data


_speaking: WeakKeyDictionary[connection.Client, BoundConnection] = WeakKeyDictionary()


class _Server(_http2.Http2Server):
    def __init__(self, ctx: context.Context) -> None:
        super().__init__(ctx)
        assert isinstance(self.h2_conn, BoundConnection)
        _speaking[ctx.client] = self.h2_conn

    def protocol_error(
        self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR
    ) -> layer.CommandGenerator[None]:
        """Reports it, in the same words each time, and ends the connection as mitmproxy does."""
        yield HeadRefusedHook(
            RefusedHead(self.context.client, None, "HTTP/2 beyond a bound, or invalid")
        )
        yield from super().protocol_error(message, error_code)


def unread(client: connection.Client) -> int:
    """Bytes of answers that wait for a client to open its window (RFC 9113 section 5.2)."""
    speaking = _speaking.get(client)
    waiting = speaking.stream_buffers.values() if speaking else ()
    return sum(len(chunk.data) for chunks in waiting for chunk in chunks)


def say_goodbye(client: connection.Client) -> None:
    """Asks a client to send further requests on another connection (RFC 9113 section 6.8)."""
    if speaking := _speaking.get(client):
        speaking.says_goodbye = True


def bodies(client: connection.Client) -> int | None:
    """Bytes of bodies that a client has sent since the last call; None if it speaks no HTTP/2."""
    if speaking := _speaking.get(client):
        size, speaking.frames.bodies = speaking.frames.bodies, 0
        return size
    return None


def bound() -> None:
    """Makes mitmproxy use the classes of this module from now on."""
    _http2.BufferedH2Connection = BoundConnection  # type: ignore[attr-defined]
    http_layers.Http2Server = _Server  # type: ignore[attr-defined, assignment]
