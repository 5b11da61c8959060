"""Sends messages to the kernel and reads its answers (netlink(7)).

It does not use the library pyroute2, which takes 0.15 s to import, and 0.4 s if nothing is compiled
yet. Everything else that `capport grant` does takes 0.1 s. And pyroute2 takes 10 ms for a message
that takes 30 us here. A client may have tens of thousands of connections to forget, and a flood
makes as many neighbours.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

ROUTE, NETFILTER = 0, 12
"""The parts of the kernel to talk to (linux/netlink.h)."""

ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, INTERRUPTED = 0x1, 0x4, 0x300, 0x10
NESTED = 0x8000

ROUTE_HEADER = struct.Struct("=8BI")
"""rtmsg: family, prefix lengths (2), -, table, -, -, type, flags (linux/rtnetlink.h)."""
GET_ROUTE, ROUTE_TO = 26, 1  # RTM_GETROUTE, RTA_DST

NETFILTER_HEADER = struct.Struct("=BBH")
"""nfgenmsg: family, -, - (linux/netfilter/nfnetlink.h)."""

DATAGRAM = 1 << 16
"""Bytes that hold any datagram: the kernel sends at most 32 KiB in one."""

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_KIND = 0x3FFF  # the bits of an attribute's type that are not flags
_TIMEOUT = 5.0  # seconds
TRIES = 100  # listings before giving up, if something changes during each
_RECEIVE_BUFFER_FORCE = 33  # SO_RCVBUFFORCE of asm-generic/socket.h
_NETLINK, _STRICT = 270, 12  # SOL_NETLINK, NETLINK_GET_STRICT_CHK


class Message(NamedTuple):
    """A message: its type, its flags, and the body that follows its header."""

    kind: int
    flags: int
    body: bytes

    @property
    def code(self) -> int:
        """The error number in a message of type ERROR; 0 is an acknowledgement."""
        return -int(struct.unpack_from("=i", self.body)[0])


def connect(protocol: int) -> socket.socket:
    """Opens a socket to this part of the kernel. Raises OSError."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    kernel.settimeout(_TIMEOUT)
    return kernel


def listen(protocol: int, groups: int, *, buffer: int = 0) -> socket.socket:
    """Opens a socket to which the kernel sends its reports for `groups`. Raises OSError.

    Receiving from it does not wait. `buffer` is how many bytes of reports may wait, by the kernel's
    accounting; without CAP_NET_ADMIN at most net.core.rmem_max. If more come, some are lost.
    """
    reports = connect(protocol)
    reports.setblocking(False)
    if buffer:
        reports.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        with suppress(PermissionError):
            reports.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, buffer)
    reports.bind((0, groups))
    return reports


def reports(kernel: socket.socket) -> Iterator[bytes]:
    """Each datagram that is waiting at a socket of `listen`; an empty one where some were lost."""
    while True:
        try:
            yield kernel.recv(DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield b""


def ask(
    protocol: int, kind: int, body: bytes, flags: int = 0, *, strict: bool = False
) -> Iterator[Message]:
    """Yields the answer: one message, or each message of a listing (DUMP). Raises OSError.

    With `strict`, the listing has only what `body` asks for, such as one table of routes.
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


def listing(kernel: socket.socket, kind: int, body: bytes) -> list[Message]:
    """All messages of a listing (DUMP) that nothing changed meanwhile. Raises OSError."""
    for _ in range(TRIES):
        kernel.send(message(kind, body, DUMP))
        found = []
        for answer in answers(kernel):
            found.append(answer)
            if answer.kind == DONE:
                break
        if not any(one.flags & INTERRUPTED for one in found):
            return found[:-1]
    raise OSError(f"what the kernel lists changed during each of {TRIES} listings; try again")


def answers(kernel: socket.socket, *unless: int) -> Iterator[Message]:
    """Yields each message that comes, without end.

    Raises OSError if the kernel reports an error, unless its number is among `unless`.
    """
    while True:
        for answer in messages(kernel.recv(DATAGRAM)):
            if answer.kind == ERROR and answer.code not in (0, *unless):
                raise OSError(answer.code, os.strerror(answer.code))
            yield answer


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Makes a message to send."""
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, REQUEST | flags, 1, 0) + body


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages in a datagram that was received."""
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, flags, _, _ = _MESSAGE.unpack_from(datagram, at)
        yield Message(kind, flags, datagram[at + _MESSAGE.size : at + length])
        at += max(_aligned(length), _MESSAGE.size)


def attribute(kind: int, value: bytes) -> bytes:
    """Makes an attribute to put into a message."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value.ljust(_aligned(len(value)), b"\0")


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes behind the fixed part of a message, or inside an attribute, by type."""
    return dict(each(body))


def find(body: bytes, *kinds: int) -> bytes:
    """The attribute that `kinds` leads to: each is inside the one before. Empty if there is none.

    It reads no further than that, because in a listing of connections each entry has a hundred
    bytes of other attributes.
    """
    for kind in kinds:
        body = next((value for found, value in each(body) if found == kind), b"")
    return body


def each(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Each attribute, also if several are of one type."""
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        yield kind & _KIND, body[at + _ATTRIBUTE.size : at + length]
        at += max(_aligned(length), _ATTRIBUTE.size)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
