"""The resolver that a command behind a portal asks, in a network namespace of its own."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from mitmproxy import dns
from mitmproxy.net.dns import types

from capport import lasting

TTL = 60  # seconds: a lie is remembered for as long as any answer
WAIT = 5.0  # seconds for the machine's own name server to answer


class ClientsResolver:
    """Answers questions about names. `address` returns the address of every name; None: its own.

    There is only IPv4 in the namespace, so questions about IPv6 addresses have no answer.
    """

    def __init__(self, listening: socket.socket, address: Callable[[], IPv4Address | None]) -> None:
        self._listening = listening
        self._address = address
        asyncio.get_running_loop().add_reader(listening, self._read)

    def _read(self) -> None:
        with contextlib.suppress(ValueError, struct.error, BlockingIOError):  # it is no DNS
            data, peer = self._listening.recvfrom(65535)
            asked = dns.DNSMessage.unpack(data)
            if asked.question is None:
                return
            address, kind = self._address(), asked.question.type
            if address is None and kind != types.AAAA:
                lasting.start(self._relay(data, peer))
                return
            answers = []
            if address is not None and kind == types.A:
                answers = [dns.ResourceRecord.A(asked.question.name, address, ttl=TTL)]
            self._listening.sendto(asked.succeed(answers).packed, peer)

    async def _relay(self, data: bytes, peer: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # without an answer the client asks again
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.setblocking(False)
                asking.connect((_name_server(), 53))
                await loop.sock_sendall(asking, data)
                async with asyncio.timeout(WAIT):
                    self._listening.sendto(await loop.sock_recv(asking, 65535), peer)


def _name_server() -> str:
    """The machine's first name server with an IPv4 address."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        word, _, server = line.partition(" ")
        if word == "nameserver" and "." in server:
            return server.strip()
    raise OSError("/etc/resolv.conf names no name server with an IPv4 address")
