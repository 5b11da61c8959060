"""Makes the kernel's connection tracking forget the connections that bypass mitmproxy."""

import errno
import socket
from collections.abc import Collection, Iterator
from itertools import batched, islice

from capport.core.client import Address
from capport.linux import netlink

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*.
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _STATUS, _TUPLE_IP = 1, 3, 1  # CTA_*, and CTA_TUPLE_IP inside the first
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC

# The connection was redirected to mitmproxy. mitmproxy ends it itself, and needs the entry for its
# last packets to the client.
_IPS_DST_NAT = 1 << 5

_FEW = 8  # for fewer addresses, it is faster to search for them in the raw entry first
_BATCH = 100  # deletions in one request: their answers fit in the receive buffer


def forget(addresses: Collection[Address]) -> int:
    """Deletes the entries of connections from `addresses` that bypass mitmproxy; returns how many.

    The table is read once per IP version: with a hundred thousand entries, that takes 0.3 s for
    one address and 0.45 s for a thousand. Waits for the kernel. Raises OSError.
    """
    forgotten = 0
    for version, family in _FAMILIES.items():
        wanted = {address.packed for address in addresses if address.version == version}
        if wanted:
            header = netlink.NETFILTER_HEADER.pack(family, 0, 0)
            mine = [*_entries(header, version, wanted)]
            with netlink.connect(netlink.NETFILTER) as kernel:
                forgotten += sum(_delete(kernel, header, some) for some in batched(mine, _BATCH))
    return forgotten


def _entries(header: bytes, version: int, sources: Collection[bytes]) -> Iterator[bytes]:
    """Yields the tuple of each entry that has one of `sources` and was not redirected.

    The kernel's own filter takes only one address, and is inverted for IPv6: Linux 6.18 gives all
    entries but those of the address.
    """
    few = sources if len(sources) < _FEW else ()
    for _, _, body in netlink.ask(netlink.NETFILTER, _GET, header, netlink.DUMP):
        if few and not any(source in body for source in few):
            continue
        entry = body[netlink.NETFILTER_HEADER.size :]
        if netlink.find(entry, _TUPLE_ORIG, _TUPLE_IP, _SOURCE[version]) not in sources:
            continue
        if not int.from_bytes(netlink.find(entry, _STATUS)) & _IPS_DST_NAT:
            yield netlink.find(entry, _TUPLE_ORIG)


def _delete(kernel: socket.socket, family: bytes, tuples: tuple[bytes, ...]) -> int:
    """Deletes the entries with these tuples. Returns how many still existed."""
    kind = netlink.NESTED | _TUPLE_ORIG
    bodies = [family + netlink.attribute(kind, one) for one in tuples]
    kernel.send(b"".join(netlink.message(_DELETE, body, netlink.ACK) for body in bodies))
    answers = netlink.answers(kernel, errno.ENOENT)  # the connection may have ended
    return sum(not answer.code for answer in islice(answers, len(tuples)))
