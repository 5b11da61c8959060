"""An origin with TLS, and clients that begin TLS with a portal."""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass, field

from conftest import SOON, Portal
from proxy.hellos import trusting_none
from proxy.wire import OUTSIDE, Streams


@dataclass
class TlsOrigin:
    """An origin with TLS and a certificate of its own, which answers each request with 200."""

    context: ssl.SSLContext
    certificate: bytes
    port: int = 0
    connections: int = 0
    sni: list[str | None] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await writer.start_tls(self.context)
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()


async def connected(it: Portal, mode: str, port: int, host: str = "127.0.0.1") -> Streams:
    """A connection on which TLS may begin."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    if mode == "regular":
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    elif mode == "socks5":
        writer.write(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(host)]) + host.encode())
        writer.write(port.to_bytes(2))
        assert (await reader.readexactly(12))[2:4] == b"\x05\x00"
    return reader, writer


def check_the_certificate(port: int) -> None:
    """TLS as most clients do it; asyncio hangs up without the alert that OpenSSL has ready."""
    context = trusting_none()
    with (
        socket.create_connection(("127.0.0.1", port), SOON) as plain,
        context.wrap_socket(plain, server_hostname=OUTSIDE),
    ):
        pass
