"""An HTTP/3 client that accepts any certificate: prints the status of each of its two answers.

`python http3.py ADDRESS SECONDS`, which is how long it waits for both answers.
"""

import asyncio
import ssl
import sys
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent


class Client(QuicConnectionProtocol):
    """Asks one thing after the other."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.http = H3Connection(self._quic)
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    def quic_event_received(self, event: QuicEvent) -> None:
        for one in self.http.handle_event(event):
            if isinstance(one, HeadersReceived):
                self.answers.put_nowait(dict(one.headers)[b":status"].decode())

    async def ask(self) -> str:
        """The status of the answer to a GET."""
        stream = self._quic.get_next_available_stream_id()
        named = {":method": "GET", ":scheme": "https", ":authority": "elsewhere.example.com"}
        fields = {**named, ":path": "/", "cookie": "secret=1"}
        head = [(name.encode(), value.encode()) for name, value in fields.items()]
        self.http.send_headers(stream, head, end_stream=True)
        self.transmit()
        return await self.answers.get()


async def main(address: str) -> None:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        verify_mode=ssl.CERT_NONE,
        server_name="elsewhere.example.com",
    )
    async with connect(address, 443, configuration=configuration, create_protocol=Client) as client:
        assert isinstance(client, Client)
        for _ in range(2):
            print(await client.ask())


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(sys.argv[1]), float(sys.argv[2])))
