"""Assembles a ClientHello from its records and parses it within bounds.

mitmproxy's parser makes an object for each item, so 60 000 empty ALPN names cost it 8 MB and 0.2 s.
This one reads each byte once, and refuses a hello with more items than any client sends. It is then
safe that mitmproxy parses a hello that was accepted here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from capport.core.cost import INPUT
from capport.core.place import Place, parse_host

HELLO: Final = INPUT  # bytes of a ClientHello; with post-quantum keys and ECH one has 2 KB
RECORD: Final = 2**14  # bytes of a record that is not encrypted: RFC 8446 section 5.1
RECORDS: Final = 1024  # records of one hello; most hellos are in one record
ITEMS: Final = 100  # extensions, protocols, names; a browser sends 20 of each at most
CIPHERS: Final = 1000  # cipher suites; IANA has registered 400

ACCESS_DENIED: Final = b"\x31"  # RFC 8446 section 6.2
SERVER_NAME: Final = 0  # RFC 6066 section 3
ALPN: Final = 16  # RFC 7301 section 3.1
ECH: Final = 0xFE0D  # RFC 9849 section 5
_SHORT: Final = "it ends in the middle of a field"
_EXTENSION: Final = struct.Struct(">HH")  # its type, and its size: RFC 8446 section 4.2
SHOWN: Final = 200  # characters of an SNI in events and logs


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello asks for.

    `server_name` is the name in the SNI; None if it has none, or more than one. `sni` is the whole
    content of the SNI for display; None if there is no SNI. `has_ech` is whether the hello may hide
    another name behind that one (RFC 9849).
    """

    server_name: str | None = None
    sni: str | None = None
    protocols: tuple[bytes, ...] = ()
    has_ech: bool = False


class HelloReader:
    """Assembles a ClientHello from its records (RFC 8446 section 5.1). Reads each byte once."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self._record = 0  # where in `raw` the next record begins
        self._records = 0
        self._start = b""  # the first bytes of the message: its type and its size
        self._have = 0  # bytes of the message that are in whole records

    def feed(self, data: bytes) -> Hello | None:
        """The ClientHello once it is complete, None before. Raises ValueError if it is none."""
        self.raw += data
        while self._has_record():
            pass
        seen = self.raw[self._record + 5 : self._record + 9]
        start = self._start + bytes(seen[: 4 - len(self._start)])
        if start[:1] not in (b"", b"\x01"):
            raise ValueError(f"its first message is of type {start[0]}, not 1")
        size = 4 + int.from_bytes(start[1:4])
        if len(start) == 4 and size > HELLO:
            raise ValueError(f"it says that it has {size} bytes; {HELLO} are allowed")
        if len(start) < 4 or self._have < size:
            if len(self.raw) > HELLO:
                raise ValueError(f"it has more than {HELLO} bytes")
            return None
        return read_hello(b"".join(self._payloads())[4:size])

    def access_denied(self) -> bytes:
        """The fatal alert that refuses the hello, as one TLS record (RFC 8446 sections 5.1 and 6).

        It has the version of the client's own record (appendix D).
        """
        return b"\x15" + bytes(self.raw[1:3]) + b"\x00\x02\x02" + ACCESS_DENIED

    def _has_record(self) -> bool:
        header = bytes(self.raw[self._record : self._record + 5])
        if len(header) < 5:
            return False
        size = int.from_bytes(header[3:])
        if header[:2] != b"\x16\x03" or header[2] > 3 or not 0 < size <= RECORD:
            raise ValueError(f"{header.hex()} is not the start of a handshake record")
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


def claim_of(hello: Hello, dialled: Place | None) -> Place | None:
    """The place that the hello's SNI names; None if it names none."""
    if hello.server_name is None or not dialled:
        return None
    try:
        return Place(parse_host(hello.server_name), dialled.port)
    except ValueError:  # the SNI is no valid name
        return None


def asked_for(claim: Place | None, dialled: Place | None) -> Place | None:
    """The place to decide on: in a tunnel to a name, the place that the SNI names.

    Otherwise a client could name a garden host in its CONNECT, and reach another site of the same
    server with another SNI, or with none.
    """
    return claim if dialled and isinstance(dialled.host, str) else dialled


def read_hello(body: bytes) -> Hello:
    """The ClientHello in `body` (RFC 8446 section 4.1.2). Raises ValueError if it is none."""
    fields = _Fields(body)
    fields.take(2 + 32)  # legacy_version, random
    fields.vector(1)  # legacy_session_id
    ciphers = fields.vector(2)
    if len(ciphers) > 2 * CIPHERS:
        raise ValueError(f"it has more than {CIPHERS} cipher suites")
    fields.vector(1)  # legacy_compression_methods
    # Extensions are optional in TLS 1.2: RFC 5246 section 7.4.1.2.
    extensions = _extensions(fields.only(2)) if fields.has_more else {}
    names = list(_names(extensions.get(SERVER_NAME, b"")))
    return Hello(
        _text(names[0][1]) if len(names) == 1 and names[0][0] == 0 else None,
        _text(b" ".join(name for _, name in names))[:SHOWN] if SERVER_NAME in extensions else None,
        tuple(_protocols(extensions.get(ALPN, b""))),
        ECH in extensions,
    )


def _extensions(data: bytes) -> dict[int, bytes]:
    """The extensions by their types. A browser sends twenty, so no object is made for each."""
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        start = at + _EXTENSION.size
        if start > end:
            raise ValueError(_SHORT)
        kind, size = _EXTENSION.unpack_from(data, at)
        at = start + size
        if at > end:
            raise ValueError(_SHORT)
        if kind in found:
            raise ValueError("it has an extension twice")  # RFC 8446 section 4.2
        found[kind] = data[start:at]
        _bound(len(found), "extensions")
    return found


def _names(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each name in an SNI."""
    count, names = 0, _Fields(_Fields(content).only(2) if content else b"")
    while names.has_more:
        yield names.number(1), names.vector(2)
        _bound(count := count + 1, "names")


def _protocols(content: bytes) -> Iterator[bytes]:
    count, protocols = 0, _Fields(_Fields(content).only(2) if content else b"")
    while protocols.has_more:
        yield protocols.vector(1)
        _bound(count := count + 1, "protocols")


def _bound(count: int, what: str) -> None:
    if count > ITEMS:
        raise ValueError(f"it has more than {ITEMS} {what}")


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


class _Fields:
    """Reads the fields of a message one after the other. Raises ValueError at a short one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError(_SHORT)
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """The next field, which has its length in front, in `size` bytes (RFC 8446 section 3.4)."""
        start = self._at + size
        end = start + int.from_bytes(self._data[self._at : start])
        if end > len(self._data):
            raise ValueError(_SHORT)
        self._at = end
        return self._data[start:end]

    def only(self, size: int) -> bytes:
        """The next field, as `vector`, which must be the last one."""
        inner = self.vector(size)
        if self.has_more:
            raise ValueError("it has bytes after its last field")
        return inner
