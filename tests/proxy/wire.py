"""For tests of HTTP on the wire: ways to the portal, names, and parsed answers."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from capport.core.client import Address
from capport.core.place import Host
from capport.proxy.resolver import SystemResolver
from conftest import SOON, Origin, Portal, StartPortal, until_closed

type Dialled = Callable[[str, int], None]
type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GARDEN = "www.example.org"
OUTSIDE = "outside.example.com"


class SmallResolver(SystemResolver):
    """A resolver that knows a few names, and records what it was asked."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names
        self.asked: list[Host] = []

    async def resolve(self, host: Host) -> list[Address]:
        self.asked.append(host)
        if not isinstance(host, str):
            return [host]
        if host not in self.names:
            raise OSError(f"{host} does not resolve")
        return [ip_address(self.names[host])]


def with_names(it: Portal, *names: str, at: str = "127.0.0.1") -> SmallResolver:
    """Makes `names` resolve to an address of this machine."""
    found = SmallResolver(dict.fromkeys(names, at))
    it.keeper.dialling.resolver = found
    return found


def garden(*places: str) -> str:
    """A policy with these in its walled garden."""
    return "walled_garden:\n" + "".join(f'  - "{place}"\n' for place in places)


@dataclass(frozen=True)
class Answer:
    """One response. `fields` by lower-case name, the last of each."""

    version: str
    status: int
    fields: dict[str, str]
    body: bytes
    order: tuple[str, ...]


def answers(data: bytes, *methods: str) -> list[Answer]:
    """The responses in `data`, to requests by `methods` (GET if not given)."""
    found: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"no whole head in {head!r}"
        line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        pairs = [
            (name.lower(), value.strip()) for name, _, value in (it.partition(":") for it in lines)
        ]
        fields = dict(pairs)
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        interim = 100 <= int(status) < 200
        size = 0 if method == "HEAD" or interim else int(fields.get("content-length", "0"))
        assert len(data) >= size, f"{len(data)} bytes of a body of {size}"
        body, data = data[:size], data[size:]
        found.append(Answer(version, int(status), fields, body, tuple(name for name, _ in pairs)))
    return found


@dataclass(frozen=True)
class Way:
    """How a client comes to the portal, and what it wants there."""

    mode: str
    origin_at: str = "127.0.0.1"
    socks_name: str | None = None

    @contextlib.asynccontextmanager
    async def portal(
        self, start: StartPortal, dialled: Dialled, origin: Origin, policy: str = ""
    ) -> AsyncIterator[Portal]:
        """A portal in this mode; in transparent mode clients have dialled `origin`."""
        dialled(self.origin_at, origin.port)
        async with start(policy, mode=self.mode) as it:
            yield it

    async def connect(self, it: Portal, port: int, local: str | None = None) -> Streams:
        """A connection on which HTTP may begin."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", it.port, local_addr=(local, 0) if local else None
        )
        if self.mode == "socks5":
            writer.write(b"\x05\x01\x00")
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.write(b"\x05\x01\x00" + self._socks_address() + port.to_bytes(2))
            assert (await reader.readexactly(10))[:2] == b"\x05\x00"
        return reader, writer

    def _socks_address(self) -> bytes:
        if self.socks_name:
            return b"\x03" + bytes([len(self.socks_name)]) + self.socks_name.encode()
        return b"\x01" + socket.inet_aton(self.origin_at)

    def target(self, host: str, path: str = "/") -> str:
        """A request target for `path` on `host`."""
        return f"http://{host}{path}" if self.mode == "regular" else path

    def __str__(self) -> str:
        name = " by name" if self.socks_name else ""
        return f"{self.mode}{name}{' over IPv6' if ':' in self.origin_at else ''}"


WAYS = (
    Way("regular"),
    Way("transparent"),
    Way("transparent", origin_at="::1"),
    Way("socks5"),
    Way("socks5", socks_name=OUTSIDE),
)


async def say(
    streams: Streams,
    data: bytes | Sequence[bytes],
    *,
    timeout: float | None = None,
    ends: bool = True,
) -> bytes:
    """Sends `data` (each piece in a segment of its own), and all that comes back until the end.

    `ends` closes our half once all is sent, so that the portal closes too.
    """
    reader, writer = streams
    try:
        for piece in [data] if isinstance(data, bytes) else data:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if ends:
            with contextlib.suppress(OSError):
                writer.write_eof()
        return await until_closed(reader, timeout)
    except ConnectionError:
        return await until_closed(reader, timeout)
    finally:
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST, as if the device were switched off."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def later(seconds: float) -> None:
    """Moves the event loop's clock on by `seconds`: each deadline within them has come.

    So what has to happen before it has enough time, which a shorter deadline would not give.
    """
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


async def until(holds: Callable[[], bool], seconds: float = SOON, pause: float = 0.01) -> None:
    """Returns once `holds` does. Raises TimeoutError if it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(pause)
