"""What a client had open ends with its session, and what was refused goes the new way."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import Origin, Portal, StartPortal, one_answer, until_closed
from enforcement.hellos import over_tls
from enforcement.test_tls import TlsOrigin, connected, secure
from enforcement.wire import Dialled, Streams, until

__all__ = ["secure"]  # a fixture

SOON = 1.0  # seconds; some 5 ms on a machine with nothing else to do

type Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def kept_alive(it: Portal, origin: Origin) -> Opened:
    reader, writer = await connected(it, "transparent", 0)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in await one_answer(reader)
    return reader, writer


async def a_running_download(it: Portal, origin: Origin) -> Opened:
    origin.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000
    reader, writer = await connected(it, "transparent", 0)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"xxxx")
    return reader, writer


async def a_running_upload(it: Portal, origin: Origin) -> Opened:
    origin.answer = b""
    reader, writer = await connected(it, "transparent", 0)
    writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
    await reached(origin, b"xxxx")
    return reader, writer


async def a_websocket(it: Portal, origin: Origin) -> Opened:
    origin.answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    reader, writer = await connected(it, "transparent", 0)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x81\x85\x00\x00\x00\x00hello")
    await reached(origin, b"\x81\x85")
    return reader, writer


async def raw_tcp(it: Portal, origin: Origin) -> Opened:
    origin.answer, origin.greeting = b"", b"220 origin ready\r\n"
    reader, writer = await connected(it, "transparent", 0)
    assert await reader.readline() == origin.greeting
    writer.write(b"EHLO x\r\n")
    await reached(origin, b"EHLO")
    return reader, writer


async def reached(origin: Origin, data: bytes) -> None:
    for _ in range(500):
        if data in origin.received:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{data!r} did not reach the origin")


WAYS = [kept_alive, a_running_download, a_running_upload, a_websocket, raw_tcp]
ENDINGS = ["revoked", "over", "blocked"]


async def end(it: Portal, how: str) -> float:
    """Has the session end; returns when it did."""
    if how == "revoked":
        it.revoke("127.0.0.1")
    elif how == "over":
        it.grant("127.0.0.1", 0.2)
        await asyncio.sleep(0.2)
    else:
        file = it.master.options.portal_policy
        with open(file, "a") as policy:  # noqa: ASYNC230, PTH123
            policy.write("clients:\n  - {address: 127.0.0.1, access: blocked}\n")
        await asyncio.sleep(1.5)  # two looks at the file, and some
    return time.monotonic()


@contextlib.asynccontextmanager
async def known(portal: StartPortal) -> AsyncIterator[Portal]:
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1")
        yield it


async def assert_ended(it: Portal, streams: Streams, since: float) -> None:
    await until_closed(streams[0])
    assert time.monotonic() - since < SOON
    streams[1].close()
    with contextlib.suppress(ConnectionError):
        again = await it.talk(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 511 " in again


@pytest.mark.parametrize("way", WAYS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("how", ENDINGS)
async def test_what_was_open_ends_with_the_session(
    portal: StartPortal, origin: Origin, dialled: Dialled, how: str, way: object
) -> None:
    dialled("127.0.0.1", origin.port)
    async with known(portal) as it:
        assert callable(way)
        streams = await way(it, origin)
        await assert_ended(it, streams, await end(it, how))
        for _ in range(200):
            if not origin.open:
                break
            await asyncio.sleep(0.01)
        assert not origin.open, "the origin's side is open still"


@pytest.mark.parametrize("mode", ["transparent", "regular"])
@pytest.mark.parametrize("how", ["revoked", "over"])
async def test_a_tunnel_ends_with_the_session(
    portal: StartPortal, secure: TlsOrigin, dialled: Dialled, how: str, mode: str
) -> None:
    dialled("127.0.0.1", secure.port)
    async with portal(mode=mode) as it:
        it.grant("127.0.0.1")
        streams = await connected(it, mode, secure.port)
        inside = await over_tls(streams)
        assert inside.getpeercert(True) == secure.certificate
        since = await end(it, how)
        await until_closed(streams[0])
        assert time.monotonic() - since < SOON
        streams[1].close()


async def test_a_session_that_is_extended_cuts_nothing(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1", 0.5)
        reader, writer = await raw_tcp(it, origin)
        it.grant("127.0.0.1", 60)
        await asyncio.sleep(0.8)
        writer.write(b"still here\r\n")
        await reached(origin, b"still here")
        it.grant("127.0.0.1", 0.1)  # and one that is shortened does
        await until_closed(reader)
        writer.close()


async def test_another_clients_revocation_cuts_nothing(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with known(portal) as it:
        it.grant("192.0.2.9")
        _, writer = await raw_tcp(it, origin)
        it.revoke("192.0.2.9")
        it.revoke("127.0.0.2")
        await asyncio.sleep(0.2)
        writer.write(b"still here\r\n")
        await reached(origin, b"still here")
        writer.close()


@pytest.mark.parametrize("mode", ["regular", "transparent"])
async def test_a_grant_has_the_next_request_go_the_new_way(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    target = f"http://127.0.0.1:{origin.port}/" if mode == "regular" else "/"
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{origin.port}\r\n\r\n".encode()
    async with portal(mode=mode) as it:
        reader, writer = await connected(it, "transparent", 0)
        writer.write(request)
        assert b" 511 " in await one_answer(reader)
        it.grant("127.0.0.1")
        since = time.monotonic()
        assert await until_closed(reader) == b""
        assert time.monotonic() - since < SOON
        writer.close()
        assert (await it.ask(request)).startswith(b"HTTP/1.1 200 ")
    assert origin.connections == 1


async def test_a_session_store_that_cannot_be_used_is_told(
    portal: StartPortal, tmp_path: Path
) -> None:
    store = tmp_path / "state" / "sessions.db"
    store.parent.mkdir()
    async with portal(events=True, sessions=str(store)) as it:
        store.rename(tmp_path / "away.db")
        await until(lambda: it.keeper.gate.events.counts.get("fault") == 1)
        answer = await it.ask(
            b"GET http://www.example.org/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 511 ")
        (tmp_path / "away.db").rename(store)
        await until(lambda: it.keeper.gate.store.fault is None)
        assert it.keeper.gate.events.counts["fault"] == 1
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (told,) = [line for line in map(json.loads, lines) if line["event"] == "fault"]
    assert f"{store}" in told["what"]
