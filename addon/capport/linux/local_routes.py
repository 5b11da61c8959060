"""Reads the kernel's table of local routes, which lead to this machine itself (rtnetlink(7))."""

import socket
import struct
from ipaddress import ip_network

from capport.core.policy import Network
from capport.linux.netlink import DUMP, ROUTE, Message, ask, attributes

_ROUTE = struct.Struct("=8BI")  # rtmsg: family, prefix lengths (2), -, table, -, -, type, flags
_NEW_ROUTE, _DELETED_ROUTE, _GET_ROUTE = 24, 25, 26
_TO = 1
_LOCAL_TABLE, _LOCAL = 255, 2


def may_be_local(message: Message) -> bool:
    """Whether a change that the kernel reports may concern a local route."""
    if message.kind not in (_NEW_ROUTE, _DELETED_ROUTE):
        return True  # it is about an interface or an address
    table: int = _ROUTE.unpack_from(message.body)[4]
    return table == _LOCAL_TABLE


def local_networks() -> list[Network]:
    """The networks in which every address is this machine's own. Raises OSError."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = _ROUTE.pack(family, 0, 0, 0, _LOCAL_TABLE, 0, 0, _LOCAL, 0)
        for message in ask(ROUTE, _GET_ROUTE, asked, DUMP, strict=True):
            _, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message.body)
            to = attributes(message.body[_ROUTE.size :]).get(_TO)
            if to is not None and (table, kind) == (_LOCAL_TABLE, _LOCAL):
                found.append(ip_network((to, prefix)))
    return found
