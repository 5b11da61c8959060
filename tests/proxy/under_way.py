"""What a known client may have under way when its session ends."""

import asyncio

from conftest import Origin, Portal, one_answer
from proxy.tls import connected
from proxy.wire import until

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
    await until(lambda: data in origin.received)
