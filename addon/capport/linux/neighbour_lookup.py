"""Asks the kernel for its neighbour table and its routes, once per call (rtnetlink(7))."""

import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from capport.core.client import Address, Mac, Way, parse_mac
from capport.linux import netlink
from capport.linux.netlink import DUMP, ROUTE, Message, attributes

# linux/rtnetlink.h, linux/neighbour.h
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # ndmsg: family, -, -, interface, state, flags, type
_NEW_NEIGHBOUR, _DELETED_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_PROXY = 0x8
_DESTINATION, _LINK_ADDRESS = 1, 2
# REACHABLE, STALE, DELAY, PROBE, PERMANENT. A FAILED or INCOMPLETE entry has no MAC, or one that
# did not answer. NOARP is multicast and loopback.
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80

_OWN = struct.Struct("=4Bi")  # ifaddrmsg: family, -, -, scope, interface
_GET_ADDRESS = 22
_EVERYWHERE = 0  # a scope: not limited to one link or to this machine

_INTERFACE, _GATEWAY, _VIA = 4, 5, 18
_UNICAST = 1
_AS_LISTED = 0x2000  # RTM_F_FIB_MATCH: the route as it is in the table, with its prefix
# linux/sockios.h, linux/if.h
_GET_FLAGS, _LOOPBACK, _NO_ARP = 0x8913, 0x8, 0x80
# The kernel's errors if there is no route: none at all, unreachable, prohibited, a black hole.
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One entry: on the interface with number `interface`, `address` has this MAC, or none."""

    interface: int
    address: Address
    mac: Mac | None


def table() -> dict[Address, Mac]:
    """Each address on the links and its MAC, IPv4 and IPv6, at this moment: for short commands.

    An address with different MACs on two interfaces is left out. Raises OSError if the kernel gives
    no dump.
    """
    found: dict[Address, set[Mac]] = {}
    for one in entries():
        if one.mac is not None:
            found.setdefault(one.address, set()).add(one.mac)
    return {address: next(iter(macs)) for address, macs in found.items() if len(macs) == 1}


def entries() -> list[Neighbour]:
    """The entries of the table, all of one moment. Raises OSError."""
    asked = _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)
    with netlink.connect(ROUTE) as kernel:
        messages = netlink.listing(kernel, _GET_NEIGHBOUR, asked)
    return [found for message in messages if (found := entry(message))]


def is_of_the_table(message: Message) -> bool:
    """Whether a message is about an entry of the table."""
    return message.kind in (_NEW_NEIGHBOUR, _DELETED_NEIGHBOUR)


def entry(message: Message) -> Neighbour | None:
    """The entry in a message; None for an entry that no client can have."""
    family, _, _, interface, state, flags, _ = _NEIGHBOUR.unpack_from(message.body)
    values = attributes(message.body[_NEIGHBOUR.size :])
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & _PROXY:
        return None
    if (address := values.get(_DESTINATION)) is None:
        return None
    mac = None
    if message.kind == _NEW_NEIGHBOUR and state & _USABLE:
        with suppress(ValueError):  # a neighbour in a tunnel has an address there, not a MAC
            mac = parse_mac(values.get(_LINK_ADDRESS, b"").hex(":"))
    return Neighbour(interface, ip_address(address), mac)


def way(address: Address, interfaces: Collection[int] | None = None) -> Way | None:
    """How frames go to `address` on one of `interfaces` (numbers), or on any interface.

    None if they do not go there, and for this machine's own addresses. Raises OSError if the kernel
    gives no answer. Takes 30 us.
    """
    if isinstance(address, IPv6Address) and address.is_link_local:
        return Way(address)  # never routed; the address does not say which link
    route = _route(address)
    if route is None or not route.is_unicast or route.interface is None:
        return None
    if interfaces is not None and route.interface not in interfaces:
        return None
    return Way((route.gateway or address) if _has_macs(route.interface) else None)


def numbers(names: Iterable[str]) -> frozenset[int]:
    """The numbers of those interfaces that exist."""
    found = set()
    for name in names:
        with suppress(OSError):  # it does not exist yet
            found.add(socket.if_nametoindex(name))
    return frozenset(found)


def families(interface: str) -> frozenset[int]:
    """The IP versions, 4 and 6, of this machine's addresses there; link-local ones do not count.

    Empty if there is no such interface. Raises OSError if the kernel gives no answer.
    """
    mine, found = numbers([interface]), set()
    for message in netlink.ask(ROUTE, _GET_ADDRESS, _OWN.pack(socket.AF_UNSPEC, 0, 0, 0, 0), DUMP):
        family, _, _, scope, number = _OWN.unpack_from(message.body)
        if number in mine and scope == _EVERYWHERE:
            found.add(4 if family == socket.AF_INET else 6)
    return frozenset(found)


def is_behind(address: Address, interface: str) -> bool:
    """Whether the kernel sends to `address` by `interface`, and not by the default route.

    False if there is no such interface. Raises OSError if the kernel gives no answer.
    """
    route = _route(address)
    if route is None or route.interface not in numbers([interface]):
        return False
    match = _route(address, _AS_LISTED)
    return match is None or match.prefix > 0


@dataclass(frozen=True, slots=True)
class _Route:
    """One route: the length of its prefix, and the number of the interface that it leads to.

    Without a `gateway` the next hop is the destination itself.
    """

    prefix: int
    interface: int | None
    is_unicast: bool
    gateway: Address | None


def _route(address: Address, flags: int = 0) -> _Route | None:
    """The route to `address`; None if there is none. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    asked = netlink.ROUTE_HEADER.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    try:
        asked += netlink.attribute(netlink.ROUTE_TO, address.packed)
        ((_, _, body),) = netlink.ask(ROUTE, netlink.GET_ROUTE, asked)
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise
    _, prefix, _, _, _, _, _, kind, _ = netlink.ROUTE_HEADER.unpack_from(body)
    values = attributes(body[netlink.ROUTE_HEADER.size :])
    number = struct.unpack("=i", values[_INTERFACE])[0] if _INTERFACE in values else None
    hop = values.get(_GATEWAY) or values.get(_VIA, b"")[2:]  # RTA_VIA starts with the family
    return _Route(prefix, number, kind == _UNICAST, ip_address(hop) if hop else None)


def _has_macs(interface: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("=16sH14x", socket.if_indextoname(interface).encode(), 0)
        flags: int = struct.unpack_from("=16xH", fcntl.ioctl(asking, _GET_FLAGS, request))[0]
    return not flags & (_LOOPBACK | _NO_ARP)
