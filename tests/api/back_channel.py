"""The API for an external login server, and a client of the API."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capport.api.back_channel import BackChannel
from capport.core.place import Place
from conftest import SOON
from login.house import LOOPBACK, House, house


@dataclass
class Answer:
    """The API's answer."""

    status: int
    headers: http.client.HTTPMessage
    json: Any


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SOON)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


@dataclass
class Api:
    """A house with its back channel, as an external login server sees it."""

    house: House
    path: Path
    port: int | None = None

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        return await asyncio.to_thread(self._call, _Unix(self.path), method, path, body, headers)

    async def call_tcp(self, method: str, path: str, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, SOON)
        return await asyncio.to_thread(self._call, connection, method, path, None, headers)

    def _call(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str],
    ) -> Answer:
        sent = body if isinstance(body, str | None) else json.dumps(body)
        typed = {"Content-Type": "application/json"} if sent is not None else {}
        try:
            connection.request(method, "/api/v1" + path, sent, typed | headers)
            answer = connection.getresponse()
            got = answer.read()
            return Answer(answer.status, answer.headers, json.loads(got) if got else None)
        finally:
            connection.close()


@asynccontextmanager
async def api(folder: Path, *, tcp: bool = False) -> AsyncIterator[Api]:
    async with house() as h:
        channel = BackChannel(h.context, folder / "api.sock", Place(LOOPBACK, 0) if tcp else None)
        channel.start()
        try:
            yield Api(h, channel.path, channel.port)
        finally:
            await channel.stop()
