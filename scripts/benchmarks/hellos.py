"""TLS clients that are refused: `python hellos.py ADDRESS SECONDS` prints how many were.

Each connects to port 443 of an address that the rules of the namespace redirect to a proxy, sends
one ClientHello, and reads the alert until the end.
"""

import asyncio
import ssl
import sys
import time


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


async def client(address: str, first: bytes, until: float) -> int:
    """How many refusals one client met."""
    count = 0
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection(address, 443)
        writer.write(first)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        if answer[:1] != b"\x15":
            raise ValueError(f"no alert, but {answer[:40]!r}")
        count += 1
    return count


async def main(address: str, seconds: float) -> None:
    """Eight clients at once."""
    until, first = time.monotonic() + seconds, hello()
    print(sum(await asyncio.gather(*(client(address, first, until) for _ in range(8)))))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
