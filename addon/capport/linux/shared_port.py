"""Listening sockets that share one address and port: each client's connections go to one of them.

They are a group of SO_REUSEPORT (socket(7)). By default the kernel chooses a socket by the client's
address and port, so two connections of one client may go to two sockets. A program of classic BPF
chooses by the client's address alone. Its result is the number of a socket, in the order in which
they began to listen.
"""

import array
import socket
import struct
from contextlib import ExitStack

_ATTACH_REUSEPORT_CBPF = 51  # SO_ATTACH_REUSEPORT_CBPF, of asm-generic/socket.h

# linux/filter.h and linux/bpf_common.h. The offset is from the IP header (SKF_NET_OFF).
_NETWORK = 0xFFF00000
_LOAD, _MULTIPLY, _SHIFT_RIGHT, _MODULO = 0x20, 0x24, 0x74, 0x94
_TO_X, _XOR_X, _RETURN = 0x07, 0xAC, 0x16
_SPREAD = 0x9E3779B1  # 2**32 divided by the golden ratio: neighbouring addresses are spread

_SOURCE_WORDS = {socket.AF_INET: (12,), socket.AF_INET6: (8, 12, 16, 20)}


def listen(host: str, port: int, count: int, backlog: int) -> list[list[socket.socket]]:
    """Listens at each address of `host` with `count` sockets; returns `count` shares of them.

    Each share has one socket for each address. An empty `host` is all addresses, IPv4 and IPv6.
    Port 0 is any free port, the same for all. Raises OSError, also if another process listens
    there.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    shares: list[list[socket.socket]] = [[] for _ in range(count)]
    with ExitStack() as unless_all:
        for family, *_, address in dict.fromkeys(found):
            where = (address[0], port, *address[2:])
            if not _is_there(family):
                continue
            with _bound(family, where, shared=False) as alone:  # fails if anybody listens there
                where = alone.getsockname()
            port = where[1]
            for share in shares:
                one = unless_all.enter_context(_bound(family, where, shared=True))
                one.listen(backlog)
                share.append(one)
            _choose_by_client(shares[0][-1], family, count)
        unless_all.pop_all()
    if not shares[0]:
        raise OSError(f"{host} has no address to listen on")
    return shares


def _is_there(family: int) -> bool:
    """Whether the kernel has this family: `getaddrinfo` also gives `::` where IPv6 is off."""
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bound(family: int, where: tuple[object, ...], *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(where)
    except OSError as error:
        one.close()
        raise OSError(
            error.errno, f"cannot listen on {where[0]}:{where[1]}: {error.strerror}"
        ) from None
    return one


def _choose_by_client(one: socket.socket, family: int, count: int) -> None:
    """Makes the kernel choose a socket of the group that `one` is in by the client's address."""
    program: list[tuple[int, int]] = []
    for offset in _SOURCE_WORDS[socket.AddressFamily(family)]:
        combine = [(_TO_X, 0), (_LOAD, _NETWORK + offset), (_XOR_X, 0)]
        program += [*(combine if program else combine[1:2]), (_MULTIPLY, _SPREAD)]
    program += [(_SHIFT_RIGHT, 16), (_MODULO, count), (_RETURN, 0)]
    code = array.array("B", b"".join(struct.pack("=HBBI", op, 0, 0, k) for op, k in program))
    where, _ = code.buffer_info()
    one.setsockopt(
        socket.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF, struct.pack("@HP", len(program), where)
    )
