"""Clients that are refused: `python redirected.py ADDRESS PORT SECONDS` prints how many refusals.

Each connects to a port of an address that the rules of the namespace redirect to a proxy, sends a
ClientHello (443) or a request (80), and reads what it gets until the end.
"""

import asyncio
import ssl
import sys
import time

REQUEST = b"GET /page HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"


def hello() -> bytes:
    """What OpenSSL sends first."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="www.example.com")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


async def client(address: str, port: int, first: bytes, until: float) -> int:
    """How many refusals one client met."""
    count, start = 0, b"\x15" if port == 443 else b"HTTP/1.1 511 "
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(first)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        if not answer.startswith(start):
            raise ValueError(f"no refusal, but {answer[:40]!r}")
        count += 1
    return count


async def main(address: str, port: int, seconds: float) -> None:
    """Eight clients at once."""
    until, first = time.monotonic() + seconds, hello() if port == 443 else REQUEST
    clients = (client(address, port, first, until) for _ in range(8))
    print(sum(await asyncio.gather(*clients)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
