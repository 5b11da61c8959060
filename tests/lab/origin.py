"""The lab's origin: answers HTTP, HTTPS, echo and DNS, and writes down every packet it gets.

`python origin.py FOLDER`: with cert.pem and key.pem in it; packets.jsonl is written there, one
line a packet, ARP and neighbour discovery left out; `ready` when all is up.
"""

import asyncio
import json
import socket
import ssl
import struct
import sys
from contextlib import suppress
from pathlib import Path

HTTP, HTTPS, ECHO, DNS = (80, 8080), (443, 8443), 7, 53
ADDRESSES = {4: ("198.51.100.2", "198.51.100.3"), 6: ("2001:db8:2::2", "2001:db8:2::3")}
"""`status.*` has the second one."""

_ICMP6_DISCOVERY = range(130, 138)
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with one line; `/slow` with a line each 50 ms, endlessly."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.split(b" ")[1] == b"/slow":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
                while True:
                    writer.write(b"still here\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            peer = writer.get_extra_info("peername")[0]
            body = f"origin, to {peer}\n".encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except (OSError, EOFError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RFC 862."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class UdpEcho(asyncio.DatagramProtocol):
    """RFC 862."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert isinstance(self.transport, asyncio.DatagramTransport)
        self.transport.sendto(data, addr)


class Dns(UdpEcho):
    """Every name has the origin's addresses, for a minute; `status.*` has its second ones."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert isinstance(self.transport, asyncio.DatagramTransport)
        self.transport.sendto(self.answer(data), addr)

    @staticmethod
    def answer(data: bytes) -> bytes:
        """The answer to one question."""
        end = data.index(0, 12) + 5
        question = data[12:end]
        (kind,) = struct.unpack_from("!H", data, end - 4)
        family = {1: (4, socket.AF_INET), 28: (6, socket.AF_INET6)}.get(kind)
        record = b""
        if family:
            address = ADDRESSES[family[0]][question[1:7].lower() == b"status"]
            packed = socket.inet_pton(family[1], address)
            record = struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(packed)) + packed
        head = data[:2] + struct.pack("!HHHHH", 0x8580, 1, bool(record), 0, 0)
        return head + question + record


async def dns_by_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same answers over TCP (RFC 7766)."""
    with suppress(OSError, EOFError):
        while size := int.from_bytes(await reader.readexactly(2)):
            answer = Dns.answer(await reader.readexactly(size))
            writer.write(len(answer).to_bytes(2) + answer)
            await writer.drain()
    writer.close()


def describe(frame: bytes) -> dict[str, object] | None:
    """What a frame carries from where to where; None for ARP and neighbour discovery."""
    kind = int.from_bytes(frame[12:14])
    if kind == 0x0800:
        start = 14 + (frame[14] & 15) * 4
        protocol, size = frame[23], 4
        addresses = frame[26:34]
        family = socket.AF_INET
    elif kind == 0x86DD:
        start, protocol, size = 54, frame[20], 16
        addresses = frame[22:54]
        family = socket.AF_INET6
        if protocol == 0 or (protocol == 58 and frame[start] in _ICMP6_DISCOVERY):
            return None
    else:
        return None
    ports: tuple[int | None, int | None] = (None, None)
    if protocol in (6, 17) and len(frame) >= start + 4:
        ports = struct.unpack_from("!HH", frame, start)
    return {
        "from": socket.inet_ntop(family, addresses[:size]),
        "to": socket.inet_ntop(family, addresses[size:]),
        "protocol": {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}.get(protocol, protocol),
        "from_port": ports[0],
        "to_port": ports[1],
        # SYN without ACK: a new connection.
        "begins": protocol == 6 and len(frame) > start + 13 and frame[start + 13] & 0x12 == 2,
        "payload": frame[start + 8 :][:64].decode("latin-1") if protocol == 17 else "",
    }


def record(into: Path) -> None:
    """Has every packet that arrives written down, from the loop's reader."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)  # for times without a processor
    raw.bind(("eth0", 0))
    raw.setblocking(False)
    log = into.open("w", buffering=1)

    def heard() -> None:
        frame, (_, _, kind, *_) = raw.recvfrom(65536)
        if kind != _PACKET_OUTGOING and (packet := describe(frame)) is not None:
            log.write(json.dumps(packet) + "\n")

    asyncio.get_running_loop().add_reader(raw, heard)


async def main(folder: Path) -> None:
    """Serves until it is killed."""
    record(folder / "packets.jsonl")
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    for port in HTTP:
        await asyncio.start_server(http, None, port)
    for port in HTTPS:
        await asyncio.start_server(http, None, port, ssl=tls)
    await asyncio.start_server(echo, None, ECHO)
    await asyncio.start_server(dns_by_tcp, None, DNS)
    for address in (address for version in (4, 6) for address in ADDRESSES[version]):
        for protocol, port in ((UdpEcho, ECHO), (UdpEcho, 443), (Dns, DNS)):
            await loop.create_datagram_endpoint(protocol, (address, port))
    (folder / "ready").touch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
