"""netlink(7) in a few lines: messages to the kernel and from it, put together and taken apart.

pyroute2 takes 0.15 s to import, 0.4 s where nothing is compiled yet (all else that `capport grant`
does takes 0.1 s), and 10 ms for a message that is here 30 us: a client may have tens of thousands
of connections to forget, and a flood has as many neighbours.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

ROUTE, NETFILTER = 0, 12
"""What there is to talk to, of linux/netlink.h."""

ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, INTERRUPTED = 0x1, 0x4, 0x300, 0x10
NESTED = 0x8000

DATAGRAM = 1 << 16
"""Bytes that hold any datagram: the kernel sends at most 32 KiB in one."""

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_KIND = 0x3FFF  # of an attribute's type, without its flags
_TIMEOUT = 5.0  # seconds
_NETLINK, _STRICT = 270, 12  # SOL_NETLINK, NETLINK_GET_STRICT_CHK


class Message(NamedTuple):
    """What one is of, its flags, and what is behind its header."""

    kind: int
    flags: int
    body: bytes

    @property
    def code(self) -> int:
        """Of one that is an ERROR: which, 0 for none (an acknowledgement)."""
        return -int(struct.unpack_from("=i", self.body)[0])


def connect(protocol: int) -> socket.socket:
    """Where to send messages to the kernel. Raises OSError."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    kernel.settimeout(_TIMEOUT)
    return kernel


def ask(
    protocol: int, kind: int, body: bytes, flags: int = 0, *, strict: bool = False
) -> Iterator[Message]:
    """Each message of the answer: one, or with `flags` DUMP all. Raises OSError.

    `strict`: a dump of only what `body` says, such as one table of routes.
    """
    with connect(protocol) as kernel:
        if strict:
            kernel.setsockopt(_NETLINK, _STRICT, 1)
        kernel.send(message(kind, body, flags))
        for answer in answers(kernel):
            if answer.kind == DONE:
                return
            yield answer
            if flags != DUMP:
                return


def answers(kernel: socket.socket, *unless: int) -> Iterator[Message]:
    """Each message that comes, without end. Raises OSError, for an error too, but for `unless`."""
    while True:
        for answer in messages(kernel.recv(DATAGRAM)):
            if answer.kind == ERROR and answer.code not in (0, *unless):
                raise OSError(answer.code, os.strerror(answer.code))
            yield answer


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """One message, as it is sent."""
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, REQUEST | flags, 1, 0) + body


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages in what was received."""
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, flags, _, _ = _MESSAGE.unpack_from(datagram, at)
        yield Message(kind, flags, datagram[at + _MESSAGE.size : at + length])
        at += max(_aligned(length), _MESSAGE.size)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, as a message has it."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value.ljust(_aligned(len(value)), b"\0")


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes behind a message's fixed part, or in another attribute, by type."""
    return dict(_attributes(body))


def find(body: bytes, *kinds: int) -> bytes:
    """The attribute of the last of `kinds`, in that of the one before; empty where there is none.

    Reads no further than that: a listing of connections has a hundred bytes of others in each.
    """
    for kind in kinds:
        body = next((value for found, value in _attributes(body) if found == kind), b"")
    return body


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        yield kind & _KIND, body[at + _ATTRIBUTE.size : at + length]
        at += max(_aligned(length), _ATTRIBUTE.size)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
