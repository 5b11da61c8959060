"""What HTTP/2 costs, of clients and of origins: processor time of the one thread that reads it."""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

import pytest
from h2.config import H2Configuration
from h2.exceptions import ProtocolError
from hypothesis import given
from hypothesis import strategies as st

from capport.core.cost import HEAD, HELD, INPUT
from capport.proxy.internals.http2_bounds import (
    FRAME,
    FRAMES,
    FRAMES_A_SECOND,
    PREFACE,
    BoundConnection,
    Frames,
    check_fields,
)

SETTINGS, PING, PRIORITY, RST_STREAM, GOAWAY, WINDOW_UPDATE, ALTSVC = 4, 6, 2, 3, 7, 8, 10
ASKED = b"\x82\x87\x84\x41\x06x.test"  # GET https://x.test/
ANSWERED = b"\x88"  # 200
END_STREAM, END_HEADERS = 0x1, 0x4


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def section(block: bytes) -> bytes:
    """A header section in HEADERS and as many CONTINUATION as it needs."""
    pieces = [block[at : at + FRAME] for at in range(0, len(block), FRAME)]
    return b"".join(
        frame(9 if at else 1, piece, END_HEADERS if at == len(pieces) - 1 else 0, 1)
        for at, piece in enumerate(pieces)
    )


def number(value: int, bits: int, first: int = 0) -> bytes:
    """An integer of RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    said, value = bytes([first | most]), value - most
    while value > 127:
        said, value = said + bytes([value & 127 | 128]), value >> 7
    return said + bytes([value])


def text(size: int, huffman: bool) -> bytes:
    """A field with a value of `size` bytes."""
    return b"\x00\x01a" + number(size, 7, 0x80 if huffman else 0) + bytes(size)


class Worst(Protocol):
    """Makes an input of so many bytes; its header sections begin with `head`."""

    def __call__(self, size: int, head: bytes) -> bytes: ...


def many(one: Callable[[int, bytes], bytes]) -> Worst:
    """As many of them as have so many bytes in all."""
    return lambda size, head: b"".join(one(at, head) for at in range(size // len(one(0, head))))


def data(body: bytes) -> Worst:
    """Headers, and as many frames with this body."""
    frames = many(lambda *_: frame(0, body, 0, 1))
    return lambda size, head: frame(1, head, END_HEADERS, 1) + frames(size, head)


def request(at: int, head: bytes) -> bytes:
    return frame(1, head, END_HEADERS | END_STREAM, 2 * at + 1)


def reset(at: int, _: bytes) -> bytes:
    return frame(RST_STREAM, b"\x00\x00\x00\x08", 0, 2 * at + 1)


# By size, and the fields that a header section begins with. Most of it is refused by its first
# bytes: that it is, is the point.
WORST: dict[str, Worst] = {
    "settings": many(lambda *_: frame(SETTINGS)),
    "windows by settings": many(
        lambda at, _: frame(SETTINGS, b"\x00\x04" + (65535 + at).to_bytes(4))
    ),
    "one setting again and again": many(
        lambda *_: frame(SETTINGS, b"\x00\x04\x00\x01\x00\x00" * 300)
    ),
    "pings": many(lambda *_: frame(PING, bytes(8))),
    "priorities": many(lambda *_: frame(PRIORITY, b"\x00\x00\x00\x00\x01", 0, 3)),
    "window updates": many(lambda *_: frame(WINDOW_UPDATE, b"\x00\x00\x00\x01")),
    "frames of no known type": many(lambda *_: frame(0x77)),
    "goodbyes": many(lambda *_: frame(GOAWAY, bytes(8))),
    "alternatives": many(lambda *_: frame(ALTSVC, b"\x00\x01a", 0, 1)),
    "requests": many(request),
    "requests that are reset": many(lambda at, head: request(at, head) + reset(at, head)),
    "data of one byte": data(b"x"),
    "data of none": data(b""),
    "continuations of nothing": lambda size, head: (
        frame(1, head, 0, 1) + many(lambda *_: frame(9, b"", 0, 1))(size, head)
    ),
    "sizes of the table": lambda size, head: section(b"\x20" * size),
    "an integer without an end": lambda size, head: section(b"\xff" + b"\x80" * size),
    "a length without an end": lambda size, head: section(b"\x00\x7f" + b"\x80" * size),
    "fields of one byte": lambda size, head: section(b"\x82" * size),
    "fields that are added to the table": lambda size, head: section(
        b"\x40\x01a\x01b" * (size // 5)
    ),
    "one field by Huffman": lambda size, head: section(head + text(size - 20, True)),
    "one field": lambda size, head: section(head + text(size - 20, False)),
}


def connected(*, client: bool) -> BoundConnection:
    """A connection as mitmproxy has it: to an origin, or of a client."""
    it = BoundConnection(H2Configuration(client_side=client, header_encoding=False))
    it.initiate_connection()
    if client:
        it.send_headers(
            1,
            [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")],
        )
    it.data_to_send()
    it.receive_data((b"" if client else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + frame(SETTINGS))
    it.data_to_send()
    return it


def cost(data: bytes, *, client: bool) -> float:
    """Seconds for it, in the pieces in which it is read. The least of three, for a busy machine."""
    took = []
    for _ in range(3):
        it = connected(client=client)
        began = time.thread_time()
        try:
            for at in range(0, len(data), 16384):
                it.receive_data(data[at : at + 16384])
                it.data_to_send()
        except ProtocolError:
            pass
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("of", ["a client", "an origin"])
@pytest.mark.parametrize("worst", WORST)
def test_64_kib_hold_the_loop_for_less_than_20_ms(worst: str, of: str) -> None:
    client, head = of == "an origin", ANSWERED if of == "an origin" else ASKED
    assert len(WORST[worst](INPUT, head)) > INPUT * 0.9
    for size in (2000, 4000, 8000, INPUT // 2, INPUT):
        assert cost(WORST[worst](size, head), client=client) < HELD


def test_as_many_frames_as_are_worth_it_are_read() -> None:
    frames = Frames(skip=0, now=lambda: 0.0)
    frames.read(frame(PING, bytes(8)) * FRAMES)
    with pytest.raises(ProtocolError, match="too many frames"):
        frames.read(frame(PING, bytes(8)))


def test_time_and_what_is_sent_make_room_for_more_frames() -> None:
    clock = [0.0]
    frames = Frames(skip=0, now=lambda: clock[0])
    for _ in range(10):
        frames.read(frame(PING, bytes(8)) * FRAMES)
        clock[0] += FRAMES / FRAMES_A_SECOND
    for _ in range(10):
        frames.read(frame(0, bytes(FRAME), 0, 1) * 100)  # 1.6 MB, which earns more than it costs
        frames.read(frame(WINDOW_UPDATE, bytes(4)) * (FRAMES - 1))
        frames.sent(512 * FRAMES)
    with pytest.raises(ProtocolError, match="too many frames"):
        frames.read(frame(PING, bytes(8)) * (FRAMES + 1))


@given(st.lists(st.integers(1, 300), max_size=60))
def test_frames_are_counted_the_same_however_they_are_cut(cuts: list[int]) -> None:
    sent = bytes(PREFACE) + frame(SETTINGS) + frame(0, bytes(3000), 0, 1) + frame(9, b"x", 0, 1)
    frames = Frames(skip=PREFACE)
    for cut in [*cuts, len(sent)]:
        frames.read(sent[:cut])
        sent = sent[cut:]
    with pytest.raises(ProtocolError, match=f"a frame of {FRAME + 1} bytes"):
        frames.read((FRAME + 1).to_bytes(3) + bytes(6))


def test_a_header_section_has_an_end() -> None:
    frames = Frames(skip=0)
    frames.read(frame(1, bytes(FRAME), 0, 1))
    for _ in range(HEAD // FRAME - 1):
        frames.read(frame(9, bytes(FRAME), 0, 1))
    with pytest.raises(ProtocolError, match="a header section of more than"):
        frames.read(frame(9, b"x", 0, 1))


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z-]{1,30}", fullmatch=True), st.text("abc XYZ09\xe9", max_size=300)
        ),
        max_size=60,
    )
)
def test_what_any_client_says_is_a_header_section(fields: list[tuple[str, str]]) -> None:
    said, heard = connected(client=False), connected(client=False)
    for _ in range(2):  # the second by the table that the first has filled
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/")]
        block = said.encoder.encode([*head, *fields])
        check_fields(block)
        assert len(list(heard.decoder.decode(block, raw=True))) == len(head) + len(fields)


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_header_section_or_an_error(noise: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        check_fields(noise)
