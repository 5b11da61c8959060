"""How much memory all connections of one unknown client keep, in a real process."""

import asyncio
import contextlib
import gc
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from capport.core.cost import ANSWERS, RESTING
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.hellos import extension, message, over_tls, records, trusting_all
from proxy.http2 import Http2
from proxy.mitmdump import SCRIPT, Process, memory, policy, started, status
from proxy.wire import Streams, garden, until

MB = 1024 * 1024
MOST = 64 * MB  # for all connections of one unknown client
CONNECTIONS = 500
SIZE = 4 * MB
ANSWER = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode() + bytes(SIZE)

PATIENT = """
import sys
sys.path.insert(0, {addon!r})
from capport.proxy import backpressure, connections
backpressure.WAIT = connections.PATIENCE = 600
"""

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000
HELLO = records(message(extension(21, bytes(8_000))))[:-1]


@contextlib.asynccontextmanager
async def mitmdump(folder: Path, text: str, *more: str) -> AsyncIterator[Process]:
    """A mitmdump that waits for a client longer than a test takes."""
    script = folder / "patient.py"
    patient = PATIENT.format(addon=str(SCRIPT.parent))
    script.write_text(f"{patient}from captive_portal import addons\n")
    arguments = ["--set", f"portal_policy={policy(folder, text)}", "--set", "flow_detail=0"]
    async with started(folder, *arguments, *more, script=script) as it:
        yield it


@contextlib.asynccontextmanager
async def appliance(folder: Path, text: str) -> AsyncIterator[Process]:
    """`capport run`, as patient."""
    (folder / "sitecustomize.py").write_text(PATIENT.format(addon=str(SCRIPT.parent)))
    arguments = ["--policy", str(policy(folder, text))]
    env = {"PYTHONPATH": str(folder)}
    async with started(folder, *arguments, tool="capport run", script=None, env=env) as it:
        yield it


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where nothing answers, as at a host that is down: its backlog is full."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port: int = listening.getsockname()[1]
        for _ in range(4):
            full = opened.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(("127.0.0.1", port))
        yield port


async def connected(port: int, data: bytes) -> Streams:
    """A client that has sent `data`, as far as the portal has taken it, and reads nothing."""
    talk = socket.socket()
    # Segments as on Ethernet: with those of loopback, megabytes would wait in the kernel.
    talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    # A small buffer: what the client does not read stays with the portal.
    talk.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    talk.setblocking(False)
    await asyncio.get_running_loop().sock_connect(talk, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=talk, limit=1)
    writer.transport.set_write_buffer_limits(0)
    writer.write(data)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await writer.drain()
    return reader, writer


async def settled(it: Process) -> int:
    """The process's memory, once it waits for something and no longer grows.

    A process that the machine gives no time does not wait: its state is running.
    """
    most, looks = 0, 0
    async with asyncio.timeout(SOON):
        while looks < 10:
            await asyncio.sleep(0.05)
            now, is_waiting = memory(it), " (sleeping)" in status(it, "State")
            looks = looks + 1 if is_waiting and now <= most else 0
            most = max(most, now)
    return now


async def many_more(it: Process, data: bytes) -> tuple[list[Streams], int]:
    """Connections that have each sent `data`, and the memory that all but the first one take."""
    clients = [await connected(it.port, data)]
    before = await settled(it)
    for _ in range(CONNECTIONS // 100):
        clients += await asyncio.gather(*(connected(it.port, data) for _ in range(100)))
    taken = await settled(it) - before
    assert sum(reader.at_eof() for reader, _ in clients) == 0  # all of them are open
    return clients, taken


def upload(place: str) -> bytes:
    """The beginning of an upload to `place`."""
    head = f"PUT http://{place}/ HTTP/1.1\r\nHost: {place}\r\nContent-Length: 9000000\r\n\r\n"
    return head.encode() + bytes(3 * MB)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "sent",
    [
        *("a head without an end", "a hello without an end"),
        *("an upload to a garden that is down", "a download that is not read"),
    ],
)
async def test_five_hundred_connections_of_one_client_keep_less_than_64_mb(
    tmp_path: Path, many_descriptors: None, silent: int, origin: Origin, sent: str
) -> None:
    origin.answer = ANSWER
    down, big = f"127.0.0.1:{silent}", f"127.0.0.1:{origin.port}"
    download = f"GET http://{big}/ HTTP/1.1\r\nHost: {big}\r\n\r\n"
    data = {
        "a head without an end": HEAD,
        "a hello without an end": HELLO,
        "an upload to a garden that is down": upload(down),
        "a download that is not read": download.encode(),
    }[sent]
    async with mitmdump(tmp_path, garden(down, big)) as it:
        clients, taken = await many_more(it, data)
        assert taken < MOST
        if sent == "a download that is not read":
            assert await clients[0][0].read(12) == b"HTTP/1.1 200"
        for _, writer in clients:
            writer.transport.abort()


@pytest.mark.timeout(600)
async def test_uvloop_reads_no_more_of_an_upload_than_may_be_kept(
    tmp_path: Path, many_descriptors: None, silent: int
) -> None:
    """By default it reads 256 kB at once, so the connections kept 110 MB."""
    down = f"127.0.0.1:{silent}"
    async with appliance(tmp_path, garden(down)) as it:
        clients, taken = await many_more(it, upload(down))
        assert taken < MOST
        for _, writer in clients:
            writer.transport.abort()


async def test_a_connection_at_rest_keeps_less_than_32_kb(
    tmp_path: Path, many_descriptors: None
) -> None:
    """Before its first request, and after its 511."""

    async def at_rest(data: bytes) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        if data:
            writer.write(data)
            assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        return reader, writer

    many, ask = 200, b"GET http://192.0.2.80/ HTTP/1.1\r\nHost: 192.0.2.80\r\n\r\n"
    async with mitmdump(tmp_path, "") as it:
        clients = [await at_rest(b""), await at_rest(ask)]
        for data in (b"", ask):
            before = await settled(it)
            for _ in range(many // 50):
                clients += await asyncio.gather(*(at_rest(data) for _ in range(50)))
            assert await settled(it) - before < many * RESTING
        assert sum(reader.at_eof() for reader, _ in clients) == 0
        for _, writer in clients:
            writer.transport.abort()


GET = b"GET http://outside.example.com/ HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"


async def refusals(port: int, count: int) -> int:
    """Sends `count` requests, on as many connections as needed; returns how many were refused."""

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET * ANSWERS)
        received = (await until_closed(reader)).count(b"HTTP/1.1 511 ")
        writer.close()
        return received

    refused = 0
    for _ in range(count // ANSWERS // 10):
        refused += sum(await asyncio.gather(*(one() for _ in range(10))))
    return refused


async def test_refusals_leave_nothing_in_memory(tmp_path: Path) -> None:
    async with mitmdump(tmp_path, "") as it:
        assert await refusals(it.port, 2000) == 2000
        before = await settled(it)
        assert await refusals(it.port, 10_000) == 10_000
        assert await settled(it) - before < 3 * MB


INTERCEPT = "tls: {unknown: intercept, connect: alert}\n"


async def http2(it: Process | Portal, port: int = 443) -> Http2:
    """HTTP/2 inside a tunnel that is intercepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    writer.write(f"CONNECT 192.0.2.80:{port} HTTP/1.1\r\nHost: 192.0.2.80\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    await over_tls((reader, writer), trusting_all(["h2"]))
    return Http2(reader, writer)


async def test_openssls_memory_is_freed_at_the_end_of_a_connection_without_a_collection(
    portal: StartPortal,
) -> None:
    def has_tls() -> bool:
        kinds = {type(it) for it in gc.get_objects()}
        return any((it.__module__, it.__name__) == ("OpenSSL.SSL", "Connection") for it in kinds)

    async with portal(INTERCEPT) as it:
        gc.collect()
        gc.disable()
        try:
            client = await http2(it)
            assert has_tls()
            await client.close()
            await until(lambda: not it.keeper.connections and not has_tls())
        finally:
            gc.enable()


async def test_answers_that_a_client_does_not_take_in_keep_their_origins_waiting(
    tmp_path: Path, secure_origin: Origin
) -> None:
    secure_origin.answer = ANSWER
    place = f"127.0.0.1:{secure_origin.port}"
    text = f"{garden(place)}{INTERCEPT}"
    async with mitmdump(tmp_path, text, "--set", "ssl_insecure=true") as it:
        client = await http2(it, secure_origin.port)
        stream = await client.answer(client.ask(authority=place))
        assert (stream.status, len(stream.body)) == (200, SIZE)
        before = await settled(it)
        client.takes = False
        streams = [client.ask(authority=place) for _ in range(10)]
        await until(lambda: client.untaken > 30_000)
        assert await settled(it) - before < 4 * MB
        client.takes = True
        client.take()
        for stream in streams:  # and nothing of them is lost
            await client.answer(stream)
            assert (stream.status, len(stream.body)) == (200, SIZE)
        await client.close()


async def test_a_connection_with_tls_counts_as_five(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capport.proxy.connections.MOST_A_CLIENT", 20)
    async with portal(INTERCEPT) as it:
        clients = [await http2(it) for _ in range(6)]
        await until(lambda: sum(client.gone for client in clients) == 2)
        assert [client.gone for client in clients] == [True] * 2 + [False] * 4
        assert (await clients[-1].answer(clients[-1].ask())).status == 511
        for client in clients:
            await client.close()


async def test_a_frame_of_16_mb_ends_the_connection_before_it_is_kept(portal: StartPortal) -> None:
    async with portal(INTERCEPT) as it:
        client = await http2(it)
        client.writer.write(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
        await until(lambda: client.gone)
        assert client.goodbye is not None
        assert b"16777215 bytes" in (client.goodbye.additional_data or b"")
        await client.close()
