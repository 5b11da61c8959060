"""The kernel's connection tracking: what a client has open past mitmproxy is forgotten here.

In netlink's own words (linux/netfilter/nfnetlink_conntrack.h), for a client may have tens of
thousands of entries: to delete one takes pyroute2 10 ms, and this 30 us.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from itertools import batched, islice

from pyroute2.netlink import (  # type: ignore[import-untyped]
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK  # type: ignore[import-untyped]
from pyroute2.netlink.nfnetlink.nfctsocket import (  # type: ignore[import-untyped]
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
)

from capport.core.client import Address

_TUPLE_ORIG, _STATUS, _TUPLE_IP = 1, 3, 1  # CTA_*, and CTA_TUPLE_IP inside the first
_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_NESTED = 0x3FFF  # without the flags in an attribute's type

# Redirected: mitmproxy ends these itself, and its last words to the client need the entry.
_IPS_DST_NAT = 1 << 5

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_START = _HEADER.size + _FAMILY.size
_DATAGRAM = 1 << 16  # bytes; the kernel sends at most 32 KiB in one
_BATCH = 100  # deletions asked for at a time: their answers fit in the receive buffer
_TIMEOUT = 5.0  # seconds


def forget(address: Address) -> int:
    """Drops the entries of connections that `address` opened past mitmproxy; how many there were.

    Waits for the kernel. Raises OSError.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_TIMEOUT)
        mine = [
            attributes[_TUPLE_ORIG]
            for attributes in _entries(kernel, family, address.packed)
            if _source(attributes[_TUPLE_ORIG], address.version) == address.packed
            and not int.from_bytes(attributes[_STATUS]) & _IPS_DST_NAT
        ]
        return sum(_delete(kernel, family, some) for some in batched(mine, _BATCH, strict=False))


def _entries(kernel: socket.socket, family: int, within: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each entry of a family that has these bytes in it.

    The kernel's own filter has IPv6 the wrong way round: Linux 6.18 gives all the others.
    """
    flags = NLM_F_REQUEST | NLM_F_DUMP
    kernel.send(_message(IPCTNL_MSG_CT_GET, flags, family))
    for kind, message in _answers(kernel):
        if kind == NLMSG_DONE:
            return
        if within in message:
            yield _attributes(message[_START:])


def _delete(kernel: socket.socket, family: int, tuples: tuple[bytes, ...]) -> int:
    """Deletes the entries with these tuples; how many there still were."""
    flags = NLM_F_REQUEST | NLM_F_ACK
    body = [_ATTRIBUTE.pack(4 + len(t), 0x8000 | _TUPLE_ORIG) + t for t in tuples]
    kernel.send(b"".join(_message(IPCTNL_MSG_CT_DELETE, flags, family, one) for one in body))
    answers = islice(_answers(kernel, unless=errno.ENOENT), len(tuples))  # it may have ended
    return sum(kind == NLMSG_ERROR and _code(message) == 0 for kind, message in answers)


def _answers(kernel: socket.socket, unless: int = 0) -> Iterator[tuple[int, bytes]]:
    """The kind and the whole of each message that comes. Raises OSError, but for `unless`."""
    while True:
        data = kernel.recv(_DATAGRAM)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            message, data = data[:length], data[(length + 3) & ~3 :]
            if kind == NLMSG_ERROR and (code := _code(message)) not in (0, unless):
                raise OSError(code, f"conntrack: {os.strerror(code)}")
            yield kind, message


def _code(message: bytes) -> int:
    return -int(struct.unpack_from("=i", message, _HEADER.size)[0])


def _message(kind: int, flags: int, family: int, body: bytes = b"") -> bytes:
    length = _START + len(body)
    return (
        _HEADER.pack(length, NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, 0, 0)
        + _FAMILY.pack(family, 0, 0)
        + body
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & _NESTED] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _source(entry: bytes, version: int) -> bytes | None:
    return _attributes(_attributes(entry).get(_TUPLE_IP, b"")).get(_SOURCE[version])
