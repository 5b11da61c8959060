"""The MAC that sent a TCP connection's first frame, the SYN, which the kernel keeps (tcp(7)).

The neighbour table says which MAC an address has, but not which device sent a frame. A device that
writes another's address into its own frames looks like that other device to the table. The kernel
keeps the SYN with its Ethernet header, if the listening socket asks for it (Linux 5.10). It does
not keep a SYN that it answered with a cookie (net.ipv4.tcp_syncookies).
"""

import socket
from functools import cache

from capport.core.client import UNSEEN, Address, Mac, parse_address, parse_mac

# linux/tcp.h
_SAVE_SYN, _SAVED_SYN = 27, 28
_WITH_MAC_HEADER = 2
_LONGEST = 256  # bytes: more than an Ethernet header with a tag and two headers of 60 bytes

_LINK_HEADERS = (14, 18, 0)  # bytes: Ethernet, Ethernet with a tag, none (a tunnel)
_SOURCES = {4: slice(12, 16), 6: slice(8, 24)}  # the source address in an IP header
_NOBODY = bytes(6)  # the MAC in frames of the loopback interface


def keep(listening: socket.socket) -> None:
    """Makes the kernel keep the SYN of each connection to a TCP socket, from Linux 5.10 on."""
    if is_kept():
        listening.setsockopt(socket.IPPROTO_TCP, _SAVE_SYN, _WITH_MAC_HEADER)


@cache
def is_kept() -> bool:
    """Whether this kernel keeps a SYN with its Ethernet header."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        try:
            tried.setsockopt(socket.IPPROTO_TCP, _SAVE_SYN, _WITH_MAC_HEADER)
        except OSError:
            return False
    return True


def sender(connected: socket.socket) -> Mac | None:
    """The MAC that opened the connection `connected`. Call it once, right after accept(2).

    None if there is no MAC: loopback, a tunnel, a socket that is not TCP, an older kernel. UNSEEN
    if the kernel has not kept the SYN.
    """
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if connected.type != socket.SOCK_STREAM:
        return None
    try:
        peer = parse_address(connected.getpeername()[0])
    except OSError:  # the connection has ended
        return UNSEEN if is_kept() else None
    return sender_from(peer, connected)


def sender_from(peer: Address, connected: socket.socket) -> Mac | None:
    """The same for a TCP connection whose `peer` is known."""
    if not is_kept():
        return None
    try:
        syn = connected.getsockopt(socket.IPPROTO_TCP, _SAVED_SYN, _LONGEST)
    except OSError:  # the connection has ended
        return UNSEEN
    return sender_in(syn, peer)


def sender_in(syn: bytes, peer: Address) -> Mac | None:
    """The MAC in a SYN from `peer`, in the form in which the kernel keeps it."""
    source = _SOURCES[peer.version]
    for length in _LINK_HEADERS:
        head = syn[length:]
        if head and head[0] >> 4 == peer.version and head[source] == peer.packed:
            mac = syn[6:12] if length else _NOBODY
            return None if mac == _NOBODY else parse_mac(mac.hex(":"))
    return UNSEEN
