"""The kernel's connection tracking: what a client has open past mitmproxy is forgotten here."""

import errno
import socket
import struct
from collections.abc import Iterator
from itertools import batched, islice

from capport.core.client import Address
from capport.linux import netlink

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*.
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_FAMILY = struct.Struct("=BBH")  # nfgenmsg
_TUPLE_ORIG, _STATUS, _TUPLE_IP = 1, 3, 1  # CTA_*, and CTA_TUPLE_IP inside the first
_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC

# Redirected: mitmproxy ends these itself, and its last words to the client need the entry.
_IPS_DST_NAT = 1 << 5

_BATCH = 100  # deletions asked for at a time: their answers fit in the receive buffer


def forget(address: Address) -> int:
    """Drops the entries of connections that `address` opened past mitmproxy; how many there were.

    Waits for the kernel. Raises OSError.
    """
    family = _FAMILY.pack(socket.AF_INET if address.version == 4 else socket.AF_INET6, 0, 0)
    mine = [
        entry[_TUPLE_ORIG]
        for entry in _entries(family, address.packed)
        if _source(entry[_TUPLE_ORIG], address.version) == address.packed
        and not int.from_bytes(entry[_STATUS]) & _IPS_DST_NAT
    ]
    with netlink.connect(netlink.NETFILTER) as kernel:
        return sum(_delete(kernel, family, some) for some in batched(mine, _BATCH))


def _entries(family: bytes, within: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each entry of a family that has these bytes in it.

    The kernel's own filter has IPv6 the wrong way round: Linux 6.18 gives all the others.
    """
    for _, _, body in netlink.ask(netlink.NETFILTER, _GET, family, netlink.DUMP):
        if within in body:
            yield netlink.attributes(body[_FAMILY.size :])


def _delete(kernel: socket.socket, family: bytes, tuples: tuple[bytes, ...]) -> int:
    """Deletes the entries with these tuples; how many there still were."""
    kind = netlink.NESTED | _TUPLE_ORIG
    bodies = [family + netlink.attribute(kind, one) for one in tuples]
    kernel.send(b"".join(netlink.message(_DELETE, body, netlink.ACK) for body in bodies))
    answers = netlink.answers(kernel, errno.ENOENT)  # it may have ended
    return sum(not answer.code for answer in islice(answers, len(tuples)))


def _source(entry: bytes, version: int) -> bytes | None:
    addresses = netlink.attributes(entry).get(_TUPLE_IP, b"")
    return netlink.attributes(addresses).get(_SOURCE[version])
