"""rtnetlink(7) in forty lines: for questions that are asked once, or now and then.

pyroute2, by which `neighbours.py` follows the neighbour table, takes 0.15 s to import, 0.4 s where
nothing is compiled yet; all else that `capport grant` does takes 0.1 s.
"""

import os
import socket
import struct
from collections.abc import Iterator

# linux/netlink.h, linux/rtnetlink.h
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR, _DONE = 2, 3
_REQUEST, DUMP, INTERRUPTED = 0x1, 0x300, 0x10
_TIMEOUT = 2.0  # seconds
_DATAGRAM = 1 << 16  # bytes; the kernel sends at most 32 KiB in one

type Message = tuple[int, int, bytes]
"""Type, flags and body."""


def ask(kind: int, body: bytes, flags: int = 0) -> Iterator[Message]:
    """Each message of the answer: one, or with `flags` DUMP all. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(_TIMEOUT)
        head = _MESSAGE.pack(_MESSAGE.size + len(body), kind, _REQUEST | flags, 1, 0)
        asking.send(head + body)
        while True:
            datagram = asking.recv(_DATAGRAM)
            while datagram:
                length, answer, told, _, _ = _MESSAGE.unpack_from(datagram)
                content = datagram[_MESSAGE.size : length]
                if answer == _ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
                yield answer, told, content
                if answer == _DONE or flags != DUMP:
                    return
                datagram = datagram[_aligned(length) :]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, as a message has it."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value.ljust(_aligned(len(value)), b"\0")


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes behind a message's fixed part, by type."""
    values = {}
    while len(body) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body)
        values[kind] = body[_ATTRIBUTE.size : length]
        body = body[max(_aligned(length), _ATTRIBUTE.size) :]
    return values


def _aligned(length: int) -> int:
    return (length + 3) & ~3
