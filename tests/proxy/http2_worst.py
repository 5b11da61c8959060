"""The HTTP/2 that costs the most to read."""

from collections.abc import Callable
from typing import Protocol

from capport.proxy.internals.http2_bounds import FRAME

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
    """As many of these as fit into so many bytes."""
    return lambda size, head: b"".join(one(at, head) for at in range(size // len(one(0, head))))


def data(body: bytes) -> Worst:
    """Headers, and as many frames with this body."""
    frames = many(lambda *_: frame(0, body, 0, 1))
    return lambda size, head: frame(1, head, END_HEADERS, 1) + frames(size, head)


def request(at: int, head: bytes) -> bytes:
    return frame(1, head, END_HEADERS | END_STREAM, 2 * at + 1)


def reset(at: int, _: bytes) -> bytes:
    return frame(RST_STREAM, b"\x00\x00\x00\x08", 0, 2 * at + 1)


# By size, and the fields that a header section begins with. Most of it must be refused
# by its first bytes.
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
