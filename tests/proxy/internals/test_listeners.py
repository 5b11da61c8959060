"""A connection is handed over to mitmproxy, on either event loop."""

import asyncio
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from capport.proxy.internals.listeners import Ends, Instance, hand_over
from capport.proxy.processes.event_loop import LoopFactory
from conftest import SOON

CONNECT, ESTABLISHED = b"CONNECT a:443 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
LOOPS = pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])


class Mitmproxy:
    """Stands for a server instance of mitmproxy: answers a CONNECT, and reads the rest."""

    def __init__(self) -> None:
        self.read = b""

    async def handle_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if (start := await reader.read(7)) == b"CONNECT":
            head = start + await reader.readuntil(b"\r\n\r\n")
            assert head == CONNECT
            with pytest.raises(TimeoutError):  # nothing comes before the CONNECT is answered
                await asyncio.wait_for(reader.read(1), 0.01)
            writer.write(ESTABLISHED)
        else:
            self.read += start
        while data := await reader.read(65536):
            self.read += data
        writer.write(b"read " + self.read[-4:])
        writer.close()


def run(factory: LoopFactory, coro: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SOON):
            await coro

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


async def handed(sent: bytes, first: bytes, answered: tuple[bytes, bytes] | None) -> bytes:
    """What a client receives that sends `first`, which is already read, then `sent`, and closes."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as mitmproxy does
    client, ours = socket.socketpair(socket.AF_UNIX)
    client.setblocking(False)
    loop, it = asyncio.get_running_loop(), Mitmproxy()
    sending = asyncio.create_task(send(client, sent))
    await hand_over(
        cast(Instance, it),
        ours,
        first,
        limit=8192,
        in_turn=partial(Ends().add, "it"),
        attached=lambda _, begin: begin(),
        answered=answered,
    )
    received = b""
    while data := await loop.sock_recv(client, 1000):
        received += data
    await sending
    assert it.read == first + sent
    client.close()
    loop.set_task_factory(None)
    return received


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, data)
    client.shutdown(socket.SHUT_WR)


@LOOPS
def test_what_was_read_comes_before_what_comes_later(factory: LoopFactory) -> None:
    async def talk() -> None:
        assert await handed(b"late" * 99_999, b"early", None) == b"read late"

    run(factory, talk())


@LOOPS
@pytest.mark.parametrize("first", [b"", b"\x16\x03"])
def test_what_is_in_a_tunnel_waits_until_its_connect_was_answered(
    factory: LoopFactory, first: bytes
) -> None:
    async def talk() -> None:
        answered = CONNECT, ESTABLISHED
        assert await handed(b"late" * 99_999, first, answered) == b"read late"
        assert await handed(b"", first + b"late", answered) == b"read late"

    run(factory, talk())


@LOOPS
def test_a_connection_that_was_ended_meanwhile_never_begins(factory: LoopFactory) -> None:
    begun: list[object] = []

    def attached(transport: asyncio.Transport, _: object) -> None:
        transport.abort()

    async def talk() -> None:
        client, ours = socket.socketpair(socket.AF_UNIX)
        it = cast(Instance, SimpleNamespace(handle_stream=lambda *them: begun.append(them)))
        in_turn = partial(Ends().add, "it")
        await hand_over(it, ours, b"GET", limit=8192, in_turn=in_turn, attached=attached)
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        client.close()

    run(factory, talk())
    assert not begun
