"""The kernel's neighbour table, asked once: for commands, which end before it can change.

pyroute2, by which `neighbours.py` follows the table, takes 0.15 s to import, 0.4 s where nothing
is compiled yet; all else that `capport grant` does takes 0.1 s. One dump is one message of
rtnetlink(7), and its answer is read in twenty lines.
"""

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from capport.core.client import Address, Mac, parse_mac

# linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # ndmsg: family, -, -, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_DONE, _ERROR, _NEW, _GET = 3, 2, 28, 30
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_PROXY = 0x8
_DESTINATION, _LINK_ADDRESS = 1, 2
# REACHABLE, STALE, DELAY, PROBE, PERMANENT: as neighbours.py has them.
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
_TIMEOUT = 2.0  # seconds
_TRIES = 5  # dumps that something changed during
_DATAGRAM = 1 << 16  # bytes; the kernel sends at most 32 KiB in one


def table() -> dict[Address, Mac]:
    """Each address on the link and its MAC, IPv4 and IPv6.

    An address with different MACs on two interfaces has none. Raises OSError where the kernel gives
    no dump.
    """
    found: dict[Address, set[Mac]] = {}
    for address, mac in _entries():
        found.setdefault(address, set()).add(mac)
    return {address: next(iter(macs)) for address, macs in found.items() if len(macs) == 1}


def _entries() -> list[tuple[Address, Mac]]:
    for _ in range(_TRIES):
        interrupted, entries = False, []
        for kind, flags, body in _dump():
            interrupted |= bool(flags & _INTERRUPTED)
            if kind == _NEW and (entry := _entry(body)):
                entries.append(entry)
        if not interrupted:
            return entries
    raise OSError(f"the neighbour table changed during each of {_TRIES} dumps; try again")


def _dump() -> Iterator[tuple[int, int, bytes]]:
    """Each message of one dump: type, flags and body."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(_TIMEOUT)
        body = _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)
        head = _MESSAGE.pack(_MESSAGE.size + len(body), _GET, _REQUEST | _DUMP, 1, 0)
        asking.send(head + body)
        while True:
            datagram = asking.recv(_DATAGRAM)
            while datagram:
                length, kind, flags, _, _ = _MESSAGE.unpack_from(datagram)
                body = datagram[_MESSAGE.size : length]
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, "the kernel gives no neighbour table")
                yield kind, flags, body
                if kind == _DONE:
                    return
                datagram = datagram[_aligned(length) :]


def _entry(body: bytes) -> tuple[Address, Mac] | None:
    family, _, _, _, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & _PROXY or not state & _USABLE:
        return None
    values, rest = {}, body[_NEIGHBOUR.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        values[kind] = rest[_ATTRIBUTE.size : length]
        rest = rest[max(_aligned(length), _ATTRIBUTE.size) :]
    address, link = values.get(_DESTINATION), values.get(_LINK_ADDRESS, b"")
    if address is None or len(link) != 6:  # a tunnel's neighbour: no MAC, but an address
        return None
    return ip_address(address), parse_mac(link.hex(":"))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
