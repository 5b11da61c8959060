"""Knows which addresses are this machine's own, because they are closed to clients."""

import socket
import threading
from collections.abc import Container
from ipaddress import IPv4Address, IPv6Address

from capport.core.client import Address, parse_address
from capport.core.policy import Network
from capport.core.reach import Machine
from capport.linux import local_routes, netlink

# RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, of linux/rtnetlink.h
_CHANGES = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class OwnAddresses(Container[Address]):
    """All addresses of this machine, in the network namespace in which it is first asked.

    The kernel reports each change (rtnetlink(7)). Each question first looks for reports, without
    waiting (1 us), and reads the table of local routes again after a change.
    """

    def __init__(self) -> None:
        self._changes: socket.socket | None = None
        self._hosts: frozenset[Address] = frozenset()
        self._networks: tuple[Network, ...] = ()
        self._lock = threading.Lock()

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPv4Address | IPv6Address):
            return False
        try:
            with self._lock:
                if self._has_changed():
                    self._read()
                hosts, networks = self._hosts, self._networks
        except OSError:  # the next question starts from nothing
            self._changes = None
            # A machine that sends to its own address also sends from it.
            return source_for(address) == address
        return address in hosts or any(address in network for network in networks)

    def _has_changed(self) -> bool:
        if self._changes is None:
            self._changes = netlink.listen(netlink.ROUTE, _CHANGES)
            return True
        changes = [
            not datagram or any(map(local_routes.may_be_local, netlink.messages(datagram)))
            for datagram in netlink.reports(self._changes)
        ]
        return any(changes)

    def _read(self) -> None:
        mine = local_routes.local_networks()
        self._hosts = frozenset(n.network_address for n in mine if n.prefixlen == n.max_prefixlen)
        self._networks = tuple(n for n in mine if n.prefixlen < n.max_prefixlen)


OWN = OwnAddresses()

HERE = Machine(OWN)
"""This machine, without the ports of a proxy."""


def source_for(address: Address) -> Address | None:
    """The address from which this machine sends to `address`; None if no route leads there."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))  # UDP: looks up the route, sends nothing
        except OSError:
            return None
        return parse_address(probe.getsockname()[0])
