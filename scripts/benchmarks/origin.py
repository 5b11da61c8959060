"""An HTTP server that answers everything with 200, as fast as Python can: `python origin.py PORT`.

It reads bodies by their Content-Length and discards them.
"""

import asyncio
import re
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)


class Origin(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers where to answer."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        self.pending = b""
        self.body = 0

    def data_received(self, data: bytes) -> None:
        """Answers each request that is whole."""
        while data:
            taken = min(self.body, len(data))
            data, self.body = data[taken:], self.body - taken
            if taken and not self.body:
                self.transport.write(ANSWER)
            if self.body or not data:
                return
            head, end, rest = (self.pending + data).partition(b"\r\n\r\n")
            if not end:
                self.pending = head
                return
            length = _LENGTH.search(head)
            self.pending, data, self.body = b"", rest, int(length[1]) if length else 0
            if not self.body:
                self.transport.write(ANSWER)


async def main(port: int) -> None:
    """Serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
