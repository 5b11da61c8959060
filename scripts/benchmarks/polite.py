"""A client at a fixed rate: `python polite.py PORT RATE SECONDS` prints milliseconds, one a line.

It opens a connection for each request, from 127.0.0.2, whether or not the last one has been
answered; a time counts from the moment at which the request was due.
"""

import asyncio
import sys
import time

REQUEST = (
    b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"
)


async def ask(port: int, due: float) -> float:
    """Seconds until the answer was there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    if b" 511 " not in answer[:20]:
        raise ValueError(f"no 511, but {answer[:40]!r}")
    return time.monotonic() - due


async def main(port: int, rate: float, seconds: float) -> None:
    """Asks at each instant, and prints at the end."""
    begun, asked = time.monotonic(), []
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(asyncio.create_task(ask(port, due)))
    for took in await asyncio.gather(*asked):
        print(f"{took * 1000:.3f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
