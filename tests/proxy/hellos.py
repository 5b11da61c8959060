"""ClientHellos, whole and otherwise, and TLS over streams that asyncio has opened already."""

import asyncio
import ssl
from collections.abc import Iterable

RECORD = b"\x16\x03\x01"
ECH = 0xFE0D  # encrypted_client_hello, RFC 9849
ALERT_49 = b"\x15\x03\x01\x00\x02\x02\x31"


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def server_name(*names: bytes) -> bytes:
    """RFC 6066 section 3."""
    listed = b"".join(b"\x00" + len(name).to_bytes(2) + name for name in names)
    return extension(0, len(listed).to_bytes(2) + listed)


def message(
    *extensions: bytes, version: bytes = b"\x03\x03", ciphers: bytes = b"\x13\x01\xc0\x2f"
) -> bytes:
    """A ClientHello as RFC 8446 section 4.1.2 has it, less its record."""
    body = version + b"R" * 32 + b"\x00" + len(ciphers).to_bytes(2) + ciphers + b"\x01\x00"
    if extensions:
        body += len(b"".join(extensions)).to_bytes(2) + b"".join(extensions)
    return b"\x01" + len(body).to_bytes(3) + body


def records(hello: bytes, size: int = 2**14) -> bytes:
    """`hello` in records of `size` bytes."""
    pieces = (hello[at : at + size] for at in range(0, len(hello), size))
    return b"".join(RECORD + len(piece).to_bytes(2) + piece for piece in pieces)


def real(sni: str | None = "outside.example.com", alpn: Iterable[str] = ()) -> bytes:
    """What OpenSSL sends."""
    context = trusting_all(alpn)
    nothing, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(nothing, sent, server_hostname=sni)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake with nobody")


def trusting_all(alpn: Iterable[str] = ()) -> ssl.SSLContext:
    """A client that does not look at the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def over_tls(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    context: ssl.SSLContext | None = None,
    sni: str | None = "outside.example.com",
) -> ssl.SSLObject:
    """Has `streams` go on in TLS. Raises ssl.SSLError for what the other end says to it."""
    _, writer = streams
    await writer.start_tls(context or trusting_all(), server_hostname=sni or "")
    inside: ssl.SSLObject = writer.get_extra_info("ssl_object")
    return inside
