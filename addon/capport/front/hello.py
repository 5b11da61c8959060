"""A ClientHello, put together from its records and read within bounds.

mitmproxy's own reader makes an object for each item: 60 000 empty ALPN names cost it 8 MB and
0.2 s. Here each byte is read once, and a hello with more items than any client sends is none. So
what is a hello here may be read by mitmproxy again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from capport.core.cost import INPUT

HELLO: Final = INPUT  # bytes of a ClientHello; with post-quantum keys and ECH one has 2 KB
RECORD: Final = 2**14  # bytes in a record before there are keys: RFC 8446 section 5.1
RECORDS: Final = 1024  # that a hello may be cut into; most come in one
ITEMS: Final = 100  # extensions, protocols, names: a browser sends 20 at the most of each
CIPHERS: Final = 1000  # cipher suites; IANA has registered 400

SERVER_NAME: Final = 0  # RFC 6066 section 3
ALPN: Final = 16  # RFC 7301 section 3.1
ECH: Final = 0xFE0D  # RFC 9849 section 5
SHOWN: Final = 200  # characters of an SNI in events and logs


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello asks for.

    `server_name` is the one name in its SNI, None where there is none, or more than one. `sni` is
    all that its SNI holds, to be shown, and None only where it has no SNI. `has_ech`: RFC 9849 may
    hide another name behind that one.
    """

    server_name: str | None = None
    sni: str | None = None
    protocols: tuple[bytes, ...] = ()
    has_ech: bool = False


class HelloReader:
    """Puts a ClientHello together from its records (RFC 8446 section 5.1), each byte read once."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self._record = 0  # where in `raw` the next record begins
        self._records = 0
        self._start = b""  # of the message: its type, and its size
        self._have = 0  # bytes of the message

    def feed(self, data: bytes) -> Hello | None:
        """The ClientHello once it is whole, None until then. Raises ValueError for what is none."""
        self.raw += data
        while self._has_record():
            pass
        seen = self.raw[self._record + 5 : self._record + 9]
        start = self._start + bytes(seen[: 4 - len(self._start)])
        if start[:1] not in (b"", b"\x01"):
            raise ValueError(f"its first message is of type {start[0]}, not 1")
        size = 4 + int.from_bytes(start[1:4])
        if len(start) == 4 and size > HELLO:
            raise ValueError(f"it says that it has {size} bytes, and {HELLO} may be")
        if len(start) < 4 or self._have < size:
            if len(self.raw) > HELLO:
                raise ValueError(f"it has more than {HELLO} bytes")
            return None
        return read_hello(b"".join(self._payloads())[4:size])

    def _has_record(self) -> bool:
        header = bytes(self.raw[self._record : self._record + 5])
        if len(header) < 5:
            return False
        size = int.from_bytes(header[3:])
        if header[:2] != b"\x16\x03" or header[2] > 3 or not 0 < size <= RECORD:
            raise ValueError(f"{header.hex()} begins no handshake record")
        body, end = self._record + 5, self._record + 5 + size
        if len(self.raw) < end:
            return False
        self._records += 1
        if self._records > RECORDS:
            raise ValueError(f"it is in more than {RECORDS} records")
        self._start += bytes(self.raw[body : min(end, body + 4 - len(self._start))])
        self._have += size
        self._record = end
        return True

    def _payloads(self) -> Iterator[bytes]:
        at = 0
        while at < self._record:
            size = int.from_bytes(self.raw[at + 3 : at + 5])
            yield bytes(self.raw[at + 5 : at + 5 + size])
            at += 5 + size


def read_hello(body: bytes) -> Hello:
    """The ClientHello in `body` (RFC 8446 section 4.1.2). Raises ValueError for what is none."""
    fields = _Fields(body)
    fields.take(2 + 32)  # legacy_version, random
    fields.vector(1)  # legacy_session_id
    ciphers = fields.vector(2)
    if len(ciphers) > 2 * CIPHERS:
        raise ValueError(f"it has more than {CIPHERS} cipher suites")
    fields.vector(1)  # legacy_compression_methods
    extensions: dict[int, bytes] = {}
    if fields.has_more:  # TLS 1.2 had them as an option: RFC 5246 section 7.4.1.2
        listed = fields.only(2)
        while listed.has_more:
            kind, content = listed.number(2), listed.vector(2)
            if kind in extensions:
                raise ValueError("it has an extension twice")  # RFC 8446 section 4.2
            extensions[kind] = content
            _bound(len(extensions), "extensions")
    names = list(_names(extensions.get(SERVER_NAME, b"")))
    return Hello(
        _text(names[0][1]) if len(names) == 1 and names[0][0] == 0 else None,
        _text(b" ".join(name for _, name in names))[:SHOWN] if SERVER_NAME in extensions else None,
        tuple(_protocols(extensions.get(ALPN, b""))),
        ECH in extensions,
    )


def _names(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each name in an SNI."""
    count, names = 0, _Fields(content).only(2) if content else _Fields(b"")
    while names.has_more:
        yield names.number(1), names.vector(2)
        _bound(count := count + 1, "names")


def _protocols(content: bytes) -> Iterator[bytes]:
    count, protocols = 0, _Fields(content).only(2) if content else _Fields(b"")
    while protocols.has_more:
        yield protocols.vector(1)
        _bound(count := count + 1, "protocols")


def _bound(count: int, what: str) -> None:
    if count > ITEMS:
        raise ValueError(f"it has more than {ITEMS} {what}")


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


class _Fields:
    """The fields of a message one after the other. Each raises ValueError where they end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError("it ends before its fields do")
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """What follows its own length, of `size` bytes (RFC 8446 section 3.4)."""
        return self.take(self.number(size))

    def only(self, size: int) -> "_Fields":
        """The same, with nothing behind it."""
        inner = _Fields(self.vector(size))
        if self.has_more:
            raise ValueError("it goes on behind its last field")
        return inner
