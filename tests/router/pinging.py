"""Sends echo requests, and counts the answers."""

import contextlib
import socket

from conftest import SOON

QUIET = 0.5  # seconds within which an answer would come


def pings(address: str, expected: int, count: int = 1) -> int:
    """How many of `count` echo requests are answered; it waits longer for the `expected` ones."""
    sixth = ":" in address
    family, protocol, request, answer, at = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6, b"\x80\0\0\0\0\0\0\1", 129, 0)
        if sixth
        else (socket.AF_INET, socket.IPPROTO_ICMP, b"\x08\0\xf7\xfe\0\0\0\1", 0, 20)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        answered = 0
        with contextlib.suppress(OSError):
            for _ in range(count):
                raw.sendto(request, (address, 0))
            while answered < count:
                raw.settimeout(SOON if expected > answered else QUIET)
                packet, source = raw.recvfrom(1500)
                answered += source[0] == address and packet[at] == answer
    return answered
