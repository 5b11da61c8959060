"""The lab's router advertisements (RFC 4861), with the portal's URL in option 37 (RFC 8910 2.3).

dnsmasq 2.90 has no option 37 and radvd has it from 2.20 only, so the lab sends its own.
"""

import os
import select
import socket
import struct
import threading
from ipaddress import IPv6Address

_SOLICITATION, _ADVERTISEMENT = 133, 134
_ICMP6_FILTER = 1  # linux/icmpv6.h
_INTERVAL = 3.0  # seconds; the least that RFC 4861 section 6.2.1 allows
_ALL_NODES, _ALL_ROUTERS = "ff02::1", "ff02::2"


class Advertiser:
    """Advertises `prefix`/64, `dns` and `captive_portal` on `interface` until it is closed.

    Make it on a thread in the router's namespace.
    """

    def __init__(self, interface: str, prefix: str, dns: str, captive_portal: str) -> None:
        self._scope = socket.if_nametoindex(interface)
        self._message = _message(prefix, dns, captive_portal)
        self._closed = os.eventfd(0, os.EFD_CLOEXEC)
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        only = [0xFFFFFFFF] * 8
        only[_SOLICITATION >> 5] &= ~(1 << (_SOLICITATION & 31))
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *only))
        # RFC 4861 section 6.1: receivers drop what has come through a router.
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        group = socket.inet_pton(socket.AF_INET6, _ALL_ROUTERS) + struct.pack("=I", self._scope)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        self._thread = threading.Thread(target=self._serve, name="advertiser", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        os.eventfd_write(self._closed, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._closed)

    def _serve(self) -> None:
        while True:
            wait = _INTERVAL
            try:
                self._socket.sendto(self._message, (_ALL_NODES, 0, 0, self._scope))
            except OSError:  # the interface has no link-local address yet
                wait = 0.05
            ready, _, _ = select.select((self._socket.fileno(), self._closed), (), (), wait)
            if self._closed in ready:
                return
            if ready:
                self._socket.recv(1500)


def advertised(seconds: float = 10) -> dict[int, bytes]:
    """The options of the next router advertisement that comes (RFC 4861 section 4.2), by type."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.settimeout(seconds)
        while (packet := raw.recv(1500))[0] != _ADVERTISEMENT:
            pass
    found, options = {}, packet[16:]
    while options:
        found[options[0]] = options[2 : options[1] * 8]
        options = options[options[1] * 8 :]
    return found


def _message(prefix: str, dns: str, captive_portal: str) -> bytes:
    head = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, 1800, 0, 0)
    # On-link and autonomous (RFC 4861 section 4.6.2); RDNSS (RFC 8106 section 5.1).
    on_link = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + IPv6Address(prefix).packed
    resolver = struct.pack("!BBHI", 25, 3, 0, 1800) + IPv6Address(dns).packed
    url = captive_portal.encode()
    padded = url + bytes(-(len(url) + 2) % 8)
    portal = struct.pack("!BB", 37, (len(padded) + 2) // 8) + padded
    return head + on_link + resolver + portal
