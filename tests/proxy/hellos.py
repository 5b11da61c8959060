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
    """A ClientHello (RFC 8446 section 4.1.2), without a record around it."""
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


def trusting_none() -> ssl.SSLContext:
    """A client that takes no certificate. (Reading the CAs of the system takes 25 ms.)"""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def trusting_all(alpn: Iterable[str] = ()) -> ssl.SSLContext:
    """A client that accepts any certificate."""
    context = trusting_none()
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
    """Begins TLS on `streams`. Raises ssl.SSLError for an alert of the other end."""
    _, writer = streams
    await writer.start_tls(context or trusting_all(), server_hostname=sni or "")
    inside: ssl.SSLObject = writer.get_extra_info("ssl_object")
    return inside


ALPN_OF_NOTHING = extension(16, (60_000).to_bytes(2) + bytes(60_000))
HELLO_OF_OUTSIDE = message(server_name(b"outside.example.com"))
WHOLE = {
    "OpenSSL's": real(),
    "without an SNI": real(None),
    "with an address for its SNI": message(server_name(b"192.0.2.1")),
    "with ALPN h2": real(alpn=["h2", "http/1.1"]),
    "with an odd ALPN": real(alpn=["\x7f odd", "spdy/1"]),
    "with odd bytes in its SNI": message(server_name(b"a\x00b\r\n\xff")),
    "with an empty SNI": message(server_name(b"")),
    "with two names": message(server_name(b"www.example.org", b"outside.example.com")),
    "with ECH": message(server_name(b"public.example.net"), extension(ECH, b"\x00" * 200)),
    "without extensions": message(),
    "of TLS 1.0": message(version=b"\x03\x01", ciphers=b"\x00\x2f"),
    "of SSL 3": message(version=b"\x03\x00", ciphers=b"\x00\x0a"),
    "with 40 KB of padding": message(server_name(b"x.test"), extension(21, b"\x00" * 40_000)),
}
WHOLE = {
    name: hello if hello.startswith(RECORD) else records(hello) for name, hello in WHOLE.items()
}
BROKEN = {
    "garbage after its first bytes": b"\x16\x03\x01\x02\x00" + b"\xde\xad\xbe\xef" * 200,
    "a length of 16 MB": records(b"\x01\xff\xff\xff" + b"x" * 500),
    "a ServerHello": records(b"\x02" + HELLO_OF_OUTSIDE[1:]),
    "an empty record": RECORD + b"\x00\x00" + records(HELLO_OF_OUTSIDE),
    "a record too long": RECORD + b"\xff\xff" + HELLO_OF_OUTSIDE,
    "application data in between": records(HELLO_OF_OUTSIDE, 30)[:35] + b"\x17\x03\x03\x00\x01x",
    "60 000 protocols without a name": records(message(ALPN_OF_NOTHING)),
    "15 000 extensions": records(message(*(extension(kind, b"") for kind in range(100, 15_100)))),
    "20 000 names": records(message(server_name(*[b""] * 20_000))),
    "30 000 cipher suites": records(message(ciphers=b"\x13\x01" * 30_000)),
    "5000 records": records(message(extension(21, bytes(5000))), 1),
    "a name twice": records(message(server_name(b"www.example.org"), server_name(b"x.test"))),
    "an end before its fields": records(b"\x01\x00\x00\x05\x03\x03abc"),
}
