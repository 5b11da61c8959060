"""Assembles a ClientHello from its records and parses it within bounds.

mitmproxy's parser makes an object for each item, so 60 000 empty ALPN names cost it 8 MB and 0.2 s.
This one reads each byte once, and refuses a hello with more items than any client sends. It is then
safe that mitmproxy parses a hello that was accepted here.
"""

import struct
from functools import lru_cache
from typing import Final

from capport.core.place import Place, parse_host
from capport.core.value import value

HELLO: Final = 8 * 1024  # bytes of a ClientHello; browsers send 2.3 KB, with ECH and ML-KEM
RECORD: Final = 2**14  # bytes of a record that is not encrypted: RFC 8446 section 5.1
RECORDS: Final = 1024  # records of one hello; most hellos are in one record
ITEMS: Final = 100  # extensions, protocols, names; a browser sends 20 of each at most
CIPHERS: Final = 1000  # cipher suites; IANA has registered 400

ACCESS_DENIED: Final = b"\x31"  # RFC 8446 section 6.2
SERVER_NAME: Final = 0  # RFC 6066 section 3
ALPN: Final = 16  # RFC 7301 section 3.1
EARLY_DATA: Final = 42  # RFC 8446 section 4.2.10
ECH: Final = 0xFE0D  # RFC 9849 section 5
_SHORT: Final = "it ends in the middle of a field"
_RECORD: Final = struct.Struct(">BBBH")  # its type, version and size: RFC 8446 section 5.1
_EXTENSION: Final = struct.Struct(">HH")  # its type, and its size: section 4.2
SHOWN: Final = 200  # characters of an SNI in events and logs
_KEPT: Final = 512  # places that SNIs have named
_LISTS: Final = 64  # lists of names and protocols that are remembered: 2 MB at most


@value
class Hello:
    """What a ClientHello asks for.

    `server_name` is the name in the SNI; None if it has none, or more than one. `sni` is the whole
    content of the SNI for display; None if there is no SNI. `has_ech` is whether the hello may hide
    another name behind that one (RFC 9849). `has_early_data` is whether the client sends something
    with it, before it has an answer (RFC 8446 section 4.2.10).
    """

    server_name: str | None = None
    sni: str | None = None
    protocols: tuple[bytes, ...] = ()
    has_ech: bool = False
    has_early_data: bool = False


class HelloReader:
    """Assembles a ClientHello from its records (RFC 8446 section 5.1). Reads each byte once."""

    def __init__(self) -> None:
        self.raw = b""
        self._record = 0  # where in `raw` the next record begins
        self._records = 0
        self._message = b""  # what the whole records contain

    def feed(self, data: bytes) -> Hello | None:
        """The ClientHello; None until it is complete. Raises ValueError if it is not one."""
        self.raw = raw = self.raw + data
        self._read_records()
        start = self._message[:4]  # its type and its size
        if len(start) < 4:  # there may be more of it in the record that is not whole
            start += raw[self._record + 5 : self._record + 9 - len(start)]
        if start and start[0] != 1:
            raise ValueError(f"its first message is of type {start[0]}, not 1")
        size = 4 + int.from_bytes(start[1:4])
        if len(start) == 4 and size > HELLO:
            raise ValueError(f"it says that it has {size} bytes; {HELLO} are allowed")
        if len(start) < 4 or len(self._message) < size:
            if len(raw) > HELLO:
                raise ValueError(f"it has more than {HELLO} bytes")
            return None
        return read_hello(self._message[4:size])

    @property
    def is_all(self) -> bool:
        """Whether nothing has come after the records of the hello."""
        return self._record == len(self.raw)

    def access_denied(self) -> bytes:
        """The fatal alert that refuses the hello, as one TLS record (RFC 8446 sections 5.1 and 6).

        It has the version of the client's own record (appendix D).
        """
        return b"\x15" + self.raw[1:3] + b"\x00\x02\x02" + ACCESS_DENIED

    def _read_records(self) -> None:
        """Takes what is in the records that have become whole."""
        raw, at, have = self.raw, self._record, len(self.raw)
        while have >= at + _RECORD.size:
            kind, major, minor, size = _RECORD.unpack_from(raw, at)
            if kind != 22 or major != 3 or minor > 3 or not 0 < size <= RECORD:
                raise ValueError(f"{raw[at : at + 5].hex()} is not the start of a handshake record")
            body, at = at + 5, at + 5 + size
            if have < at:
                return
            self._records += 1
            if self._records > RECORDS:
                raise ValueError(f"it is in more than {RECORDS} records")
            self._message += raw[body:at]
            self._record = at


def claim_of(hello: Hello, dialled: Place | None) -> Place | None:
    """The place that the hello's SNI names; None if it names none."""
    if hello.server_name is None or not dialled:
        return None
    try:
        return _place(hello.server_name, dialled.port)
    except ValueError:  # the SNI is no valid name
        return None


@lru_cache(_KEPT)
def _place(name: str, port: int) -> Place:
    return Place(parse_host(name), port)


def asked_for(claim: Place | None, dialled: Place | None) -> Place | None:
    """The place to decide on: in a tunnel to a name, the place that the SNI names.

    Otherwise a client could name a garden host in its CONNECT, and reach another site of the same
    server with another SNI, or with none.
    """
    return claim if dialled and isinstance(dialled.host, str) else dialled


def read_hello(body: bytes) -> Hello:
    """The ClientHello in `body` (RFC 8446 section 4.1.2). Raises ValueError if it is not one."""
    try:
        at = 35 + body[34]  # after legacy_version, random and legacy_session_id
        ciphers = body[at] << 8 | body[at + 1]
        if ciphers > 2 * CIPHERS:
            raise ValueError(f"it has more than {CIPHERS} cipher suites")
        at += 2 + ciphers
        at += 1 + body[at]  # legacy_compression_methods
        if at == len(body):  # extensions are optional in TLS 1.2: RFC 5246 section 7.4.1.2
            return Hello()
        extensions = _only(body, at)
    except IndexError:
        raise ValueError(_SHORT) from None
    found = _starts(extensions)
    server_name, sni = _names(_content(extensions, found.get(SERVER_NAME)))
    protocols = _protocols(_content(extensions, found.get(ALPN)))
    return Hello(server_name, sni, protocols, ECH in found, EARLY_DATA in found)


@lru_cache(_LISTS)
def _names(content: bytes | None) -> tuple[str | None, str | None]:
    """The name in an SNI, if that has one name, and all that is in it for display."""
    if content is None:
        return None, None
    names = _items(content, 1, 2)
    server_name = _text(names[0][1]) if len(names) == 1 and names[0][0] == b"\0" else None
    return server_name, _text(b" ".join(name for _, name in names))[:SHOWN]


@lru_cache(_LISTS)
def _protocols(content: bytes | None) -> tuple[bytes, ...]:
    return tuple(protocol for _, protocol in _items(content or b"", 0, 1))


def _starts(data: bytes) -> dict[int, int]:
    """Where the extension of each type begins. A browser sends twenty, of which two are read."""
    found: dict[int, int] = {}
    read, at, end = _EXTENSION.unpack_from, 0, len(data)
    try:
        for count in range(ITEMS + 1):
            if at == end:
                if len(found) < count:
                    raise ValueError("it has an extension twice")  # RFC 8446 section 4.2
                return found
            kind, size = read(data, at)
            found[kind] = at
            at += 4 + size
    except struct.error:  # there is nothing at `at`, or not enough
        raise ValueError(_SHORT) from None
    raise ValueError(f"it has more than {ITEMS} extensions")


def _content(data: bytes, start: int | None) -> bytes | None:
    """What is in the extension that begins at `start`, if there is one."""
    if start is None:
        return None
    _, size = _EXTENSION.unpack_from(data, start)
    return data[start + 4 : start + 4 + size]


def _items(content: bytes, before: int, size: int) -> list[tuple[bytes, bytes]]:
    """The items of the list in an extension, each with the `before` bytes in front of it.

    After those come the item's length, in `size` bytes, and the item.
    """
    items, at = _only(content, 0) if content else b"", 0
    found: list[tuple[bytes, bytes]] = []
    while at < len(items):
        start, at = at + before, _end(items, at + before, size)
        found.append((items[start - before : start], items[start + size : at]))
        if len(found) > ITEMS:
            raise ValueError(f"it has a list of more than {ITEMS} items")
    return found


def _only(data: bytes, at: int) -> bytes:
    """The field whose length is at `at`, in two bytes. Raises ValueError if it is not the last."""
    if _end(data, at, 2) != len(data):
        raise ValueError("it has bytes after its last field")
    return data[at + 2 :]


def _end(data: bytes, at: int, size: int) -> int:
    """Where a field ends. Its length is at `at`, in `size` bytes (RFC 8446 section 3.4)."""
    start = at + size
    end = start + int.from_bytes(data[at:start])
    if end > len(data):
        raise ValueError(_SHORT)
    return end


def _text(name: bytes) -> str:
    return name.decode("latin-1").encode("unicode_escape").decode("ascii")
