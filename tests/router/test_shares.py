"""What one unknown client may hold of the garden and of the login server, and for how long."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from capport.proxy import connections
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.hellos import over_tls
from proxy.wire import (
    GARDEN,
    Dialled,
    Streams,
    answers,
    garden,
    later,
    reset,
    say,
    until,
    with_names,
)

DRIP = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


def get(place: str, fields: bytes = b"", method: str = "GET") -> bytes:
    return f"{method} http://{place}/ HTTP/1.1\r\nHost: {place}\r\n".encode() + fields + b"\r\n"


@contextlib.asynccontextmanager
async def dripping() -> AsyncIterator[tuple[int, set[asyncio.StreamWriter]]]:
    """An origin that never ends its answer; it counts its connections."""
    open_: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.add(writer)
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(DRIP)
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.05)
        open_.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], open_
    finally:
        server.close()


async def test_an_answer_of_the_gardens_that_drips_ends(portal: StartPortal) -> None:
    async with dripping() as (port, open_):
        place = f"{GARDEN}:{port}"
        async with portal(garden(place)) as it:
            with_names(it, GARDEN)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(get(place))
            assert b"200 OK" in await reader.readuntil(b"..")
            later(connections.GARDEN)
            await until_closed(reader)
            await until(lambda: not open_)
            await until(lambda: len(it.keeper.connections) == 0)
            writer.close()


async def test_a_body_for_the_garden_that_drips_ends(portal: StartPortal, origin: Origin) -> None:
    origin.answer = b""
    place = f"{GARDEN}:{origin.port}"
    async with portal(garden(place)) as it:
        with_names(it, GARDEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(get(place, b"Content-Length: 1000000\r\n", "PUT"))
        await until(lambda: bool(origin.open))
        later(connections.GARDEN)
        gone = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SOON):
                while not gone.done():
                    writer.write(b".")
                    await writer.drain()
                    await asyncio.wait([gone], timeout=0.05)
        gone.cancel()
        await until(lambda: not origin.open)
        await until(lambda: len(it.keeper.connections) == 0)
        writer.close()


async def test_a_client_that_has_become_known_meanwhile_is_not_cut_off(portal: StartPortal) -> None:
    async with dripping() as (port, open_):
        place = f"{GARDEN}:{port}"
        async with portal(garden(place)) as it:
            with_names(it, GARDEN)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(get(place))
            await reader.readuntil(b"..")
            it.grant("127.0.0.1")
            later(connections.GARDEN)
            await asyncio.sleep(0.2)
            assert open_
            assert await reader.read(1)
            writer.close()


def logging_in(place: str, scheme: str = "http") -> str:
    return f"login_url: {scheme}://{place}/\nprobes: strict\n"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many connections to the login server a client may have here."""
    monkeypatch.setattr("capport.proxy.connections.MOST_TO_LOGIN", 5)
    return 5


async def asking(it: Portal, data: bytes, at: str = "127.0.0.1") -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port, local_addr=(at, 0))
    writer.write(data)
    return reader, writer


@pytest.mark.parametrize("known", [False, True])
async def test_one_client_cannot_have_all_of_the_login_server(
    portal: StartPortal, origin: Origin, few: int, known: bool
) -> None:
    origin.answer = b""
    place = f"127.0.0.1:{origin.port}"
    async with portal(logging_in(place)) as it:
        if known:
            it.grant("127.0.0.1")
        held = [await asking(it, get(place)) for _ in range(few)]
        await until(lambda: len(origin.open) == few)
        reader, writer = await asking(it, get(place, b"Connection: close\r\n"))
        (answer,) = answers(await until_closed(reader))
        assert (answer.status, answer.fields["retry-after"]) == (429, "5")
        writer.close()
        other = await asking(it, get(place), "127.0.0.9")
        await until(lambda: len(origin.open) == few + 1)
        origin.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        for _, each in (*held, other):
            reset(each)
        await until(lambda: not origin.open)
        again = await asking(it, get(place))
        assert b" 200 OK" in await one_answer(again[0])
        again[1].close()


async def ask_for_all_at_once(it: Portal, origin: Origin, few: int) -> None:
    before, request = origin.connections, get(f"127.0.0.1:{origin.port}")
    clients = await asyncio.gather(*(asking(it, request) for _ in range(40)))
    await until(lambda: len(origin.open) == few)
    hearing = [asyncio.create_task(one_answer(reader)) for reader, _ in clients]
    await until(lambda: sum(one.done() for one in hearing) == 40 - few)
    heard = [one.result() for one in hearing if one.done()]
    assert {answer.split(b" ")[1] for answer in heard} <= {b"429", b"502"}
    assert origin.connections == before + few
    for one, (_, writer) in zip(hearing, clients, strict=True):
        one.cancel()
        reset(writer)
    await until(lambda: len(it.keeper.connections) == 0 and not origin.open)


async def test_asking_for_all_connections_at_once_gets_no_more_of_them(
    portal: StartPortal, origin: Origin, few: int
) -> None:
    origin.answer = b""
    async with portal(logging_in(f"127.0.0.1:{origin.port}")) as it:
        for _ in range(2):  # the connections of the first time no longer count
            await ask_for_all_at_once(it, origin, few)


async def test_tunnels_to_the_login_server_get_no_more_connections(
    portal: StartPortal, origin: Origin, dialled: Dialled, few: int
) -> None:
    origin.answer = b""
    place = f"127.0.0.1:{origin.port}"
    connect = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()
    hello = b"\x16\x03\x01"
    async with portal(logging_in(place, "https")) as it:
        held = []
        for _ in range(few):
            reader, writer = await asking(it, connect)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            held.append(asyncio.create_task(over_tls((reader, writer))))
        await until(lambda: len(origin.open) == few)
        data = await say(await asking(it, b""), connect, ends=False)
        assert [answer.status for answer in answers(data)] == [429]
        await until(lambda: origin.received.count(hello) == few)
        for task in held:
            task.cancel()
    dialled("127.0.0.1", origin.port)
    async with portal(logging_in(place, "https"), mode="transparent") as it:
        before = origin.connections
        held = [asyncio.create_task(over_tls(await asking(it, b""))) for _ in range(few)]
        await until(lambda: origin.connections == before + few)
        with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
            await over_tls(await asking(it, b""))
        for task in held:
            task.cancel()
        assert origin.connections == before + few
