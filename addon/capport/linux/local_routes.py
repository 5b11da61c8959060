"""Reads the kernel's table of local routes, which lead to this machine itself (rtnetlink(7))."""

import socket
from ipaddress import ip_network

from capport.core.policy import Network
from capport.linux import netlink

_NEW_ROUTE, _DELETED_ROUTE = 24, 25
_LOCAL_TABLE, _LOCAL = 255, 2


def may_be_local(message: netlink.Message) -> bool:
    """Whether a change that the kernel reports may concern a local route."""
    if message.kind not in (_NEW_ROUTE, _DELETED_ROUTE):
        return True  # it is about an interface or an address
    table: int = netlink.ROUTE_HEADER.unpack_from(message.body)[4]
    return table == _LOCAL_TABLE


def local_networks() -> list[Network]:
    """The networks in which every address is this machine's own. Raises OSError."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = netlink.ROUTE_HEADER.pack(family, 0, 0, 0, _LOCAL_TABLE, 0, 0, _LOCAL, 0)
        for message in netlink.ask(
            netlink.ROUTE, netlink.GET_ROUTE, asked, netlink.DUMP, strict=True
        ):
            _, prefix, _, _, table, _, _, kind, _ = netlink.ROUTE_HEADER.unpack_from(message.body)
            to = netlink.attributes(message.body[netlink.ROUTE_HEADER.size :]).get(netlink.ROUTE_TO)
            if to is not None and (table, kind) == (_LOCAL_TABLE, _LOCAL):
                found.append(ip_network((to, prefix)))
    return found
