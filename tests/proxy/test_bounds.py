"""What an unknown client may cost: memory, time, sockets."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from capport.core.client import Address
from capport.core.place import Host
from capport.proxy import backpressure
from capport.proxy.open_connection import Open
from conftest import SOON, Origin, Portal, StartPortal, one_answer
from proxy.conftest import has_answered
from proxy.mitmdump import SCRIPT, Process, memory, policy, started
from proxy.wire import GARDEN, SmallResolver, Streams, answers, garden, reset, say, until

MB = 1024 * 1024
ADDON = Path(__file__).resolve().parents[2] / "addon"


@contextlib.asynccontextmanager
async def mitmdump(folder: Path, script: Path = SCRIPT) -> AsyncIterator[Process]:
    arguments = ["--set", f"portal_policy={policy(folder)}", "--set", "flow_detail=0"]
    async with started(folder, *arguments, script=script) as it:
        yield it


def forget_the_peak(it: Process) -> None:
    Path(f"/proc/{it.process.pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM


def descriptors(it: Process) -> int:
    return len(list(Path(f"/proc/{it.process.pid}/fd").iterdir()))


async def upload(port: int, head: bytes, piece: bytes, most: int) -> tuple[bytes, int]:
    """Sends `piece` after `head` again and again, up to `most` bytes, whatever comes back.

    Returns what came back, and how many bytes it could send until the other end was gone.
    """
    return await asyncio.to_thread(_upload, port, head, piece, most)


def _upload(port: int, head: bytes, piece: bytes, most: int) -> tuple[bytes, int]:
    # A plain socket: asyncio's reader forgets what came before a reset.
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as client:
        sent, received = 0, b""
        with contextlib.suppress(ConnectionError):
            client.sendall(head)
            while sent < most:
                client.sendall(piece)
                sent += len(piece)
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                received += data
        return received, sent


HEAD = b"POST http://192.0.2.80/ HTTP/1.1\r\nHost: 192.0.2.80\r\n"
CHUNK = b"10000\r\n" + bytes(65536) + b"\r\n"
UPLOADS = {
    "declared": (HEAD + b"Content-Length: 1000000000\r\n\r\n", bytes(65536)),
    "chunked": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "with Expect": (
        HEAD + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
        bytes(65536),
    ),
    "one endless chunk": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n",
        bytes(65536),
    ),
}
ENDLESS = {
    "request line": (b"GET /", b"a" * 65536, {431}),
    "method": (b"", b"A" * 65536, {400, 431}),
    "field": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 65536, {431}),
    "fields": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 10_000, {431}),
    "empty lines": (b"", b"\r\n" * 32_768, {400, 431}),
    "chunk extension": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"a" * 65536,
        {511},
    ),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n" * 10_000,
        {511, 400, 431},
    ),
}


@pytest.mark.timeout(600)
async def test_an_upload_is_answered_at_once_and_costs_less_than_a_megabyte(
    tmp_path: Path,
) -> None:
    async with mitmdump(tmp_path) as it:
        for _ in range(4):  # the first request costs more, and not because of an upload
            for head, piece in UPLOADS.values():
                await upload(it.port, head, piece, 2 * MB)
        for name, (head, piece) in UPLOADS.items():
            before = memory(it)
            forget_the_peak(it)
            data, sent = await upload(it.port, head, piece, 300 * MB)
            (answer,) = answers(data)
            assert (name, answer.status) == (name, 511)
            assert answer.fields["connection"] == "close"
            assert sent < 32 * MB, name  # the rest is in the kernel's buffers
            assert memory(it, "VmHWM") - before < MB, name


async def test_an_upload_gets_its_answer_before_any_of_its_body(
    portal: StartPortal, origin: Origin, answerer: str
) -> None:
    async with portal() as it:
        for head, _ in UPLOADS.values():
            answer = await it.ask(head)
            assert answer.startswith(b"HTTP/1.1 511 ")
            assert b"100 Continue" not in answer
        few, many = (0, len(UPLOADS) - 1) if answerer == "the front" else (len(UPLOADS),) * 2
        assert few <= it.flows.handed_over <= many


@pytest.mark.timeout(600)
async def test_what_has_no_end_is_refused_and_closed_and_kept_nowhere(tmp_path: Path) -> None:
    async with mitmdump(tmp_path) as it:
        for _ in range(3):
            for head, piece, _ in ENDLESS.values():
                await upload(it.port, head, piece, 2 * MB)
        for name, (head, piece, statuses) in ENDLESS.items():
            before = memory(it)
            forget_the_peak(it)
            data, sent = await upload(it.port, head, piece, 300 * MB)
            (answer,) = answers(data)
            assert answer.status in statuses, name
            assert answer.fields["connection"] == "close"
            assert answer.fields["cache-control"] == "no-store"
            assert sent < 32 * MB, name
            assert memory(it, "VmHWM") - before < 2 * MB, name


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000 + b"\r\n\r\n", 511),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 66_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 66_000 + b"\r\n\r\n", 431),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 499 + b"\r\n", 511),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 500 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X:y\r\n" * 10_000 + b"\r\n", 431),
    ],
)
async def test_a_head_has_bounds(
    portal: StartPortal, origin: Origin, head: bytes, status: int
) -> None:
    async with portal() as it:
        streams = await asyncio.open_connection("127.0.0.1", it.port)
        (answer,) = answers(await say(streams, head), head.split(b" ")[0].decode())
        assert answer.status == status
        assert answer.fields.get("connection") == ("close" if status == 431 else None)
        if status == 431:
            assert b"header" in answer.body.lower() or head.startswith(b"HEAD")
    assert origin.connections == 0


async def drip(streams: Streams, head: bytes, pause: float) -> float:
    """Sends `head`, then a byte each `pause` seconds; the loop's time when the portal closed."""
    reader, writer = streams
    gone = asyncio.create_task(reader.read())
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(head)
            while not gone.done():
                writer.write(b"a")
                await writer.drain()
                await asyncio.wait([gone], timeout=pause)
        return asyncio.get_running_loop().time()
    finally:
        gone.cancel()
        writer.close()


async def all_are_closed_on(port: int, pause: float) -> list[float]:
    """Clients that drip, in each protocol; when each was cut off. TimeoutError if one is not."""
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in DRIPS]
    async with asyncio.timeout(SOON):
        return await asyncio.gather(
            *(drip(c, head, pause) for c, head in zip(clients, DRIPS.values(), strict=True))
        )


DRIPS = {
    "nothing at all": b"",
    "the method": b"G",
    "the head": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
    "the body": HEAD + b"Content-Length: 1000\r\n\r\n",
    "a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n",
    "a chunk's size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    "a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    "the second head": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ",
    "a handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "a record's start": b"\x16",
}


@pytest.mark.parametrize("mode", ["regular", "transparent", "socks5"])
async def test_a_client_that_drips_is_cut_off(
    portal: StartPortal,
    origin: Origin,
    dialled: object,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    answerer: str,
) -> None:
    monkeypatch.setattr("capport.proxy.connections.PATIENCE", 0.5)
    monkeypatch.setattr("capport.proxy.layers.lingering.STAGE", 0.5)
    assert callable(dialled)
    dialled("127.0.0.1", origin.port)
    async with portal(mode=mode) as it:
        await all_are_closed_on(it.port, 0.05)
        await until(lambda: len(it.keeper.connections) == 0)
        if answerer == "the front" and mode != "socks5":
            assert it.flows.handed_over < len(DRIPS)
        else:
            assert it.flows.handed_over > 0
    assert origin.connections == 0


@pytest.mark.slow
async def test_a_client_that_sends_a_byte_a_second_is_cut_off_after_ten_seconds(
    portal: StartPortal, origin: Origin
) -> None:
    loop = asyncio.get_running_loop()
    async with portal() as it:
        began = loop.time()
        first, *_ = await all_are_closed_on(it.port, 1.0)
        assert first - began > 9.9
    assert origin.connections == 0


async def refused_cleanly(port: int) -> int:
    streams = await asyncio.open_connection("127.0.0.1", port)
    return len(answers(await say(streams, GET * 5)))


async def refused_and_reset(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET * 5)
    await one_answer(reader)
    reset(writer)
    return 5


async def reset_at_once(port: int) -> int:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET * 5)
    await writer.drain()
    reset(writer)
    return 5


async def closed_in_a_body(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(70_000))
    await one_answer(reader)
    writer.close()
    return 1


async def half_closed_in_a_head(port: int) -> int:
    streams = await asyncio.open_connection("127.0.0.1", port)
    await say(streams, GET * 4 + b"GET / HT")
    return 4


async def refused_tls(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(CONNECT)
    await one_answer(reader)
    writer.close()
    return 1


GET = b"GET http://192.0.2.80/ HTTP/1.1\r\nHost: 192.0.2.80\r\n\r\n"
CONNECT = b"CONNECT 192.0.2.80:443 HTTP/1.1\r\nHost: 192.0.2.80:443\r\n\r\n"
CLIENTS = (
    refused_cleanly,
    refused_and_reset,
    reset_at_once,
    closed_in_a_body,
    half_closed_in_a_head,
    refused_tls,
)


@pytest.mark.timeout(600)
async def test_no_socket_is_left_after_ten_thousand_refusals(tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.py"
    quiet.write_text(PATIENT.format(addon=str(ADDON), patience=600.0))
    async with mitmdump(tmp_path, quiet) as it:
        await refused_cleanly(it.port)
        await it.says("The login server does not answer")  # the resolver has its descriptors now
        before, refused, number = descriptors(it), 0, 0
        while refused < 10_000:
            batch = [CLIENTS[(number + at) % len(CLIENTS)](it.port) for at in range(60)]
            refused += sum(await asyncio.gather(*batch))
            number += 1
        await until(lambda: descriptors(it) <= before)


PATIENT = """
import logging, sys
sys.path.insert(0, {addon!r})
from capport.proxy import connections
connections.PATIENCE = {patience}
from captive_portal import addons
logging.getLogger("mitmproxy.proxy.server").setLevel(logging.ERROR)
"""


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Descriptors: as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(600)
async def test_five_thousand_idle_connections_keep_nobody_from_the_511(
    tmp_path: Path, many_descriptors: int
) -> None:
    idle = min(5000, many_descriptors - 1000)
    patient = tmp_path / "patient.py"
    patient.write_text(PATIENT.format(addon=str(ADDON), patience=3600.0))
    async with mitmdump(tmp_path, patient) as it:
        clients: list[Streams] = []
        for batch in range(0, idle, 50):
            local = f"127.0.1.{1 + batch // 500}"
            clients += await asyncio.gather(
                *(
                    asyncio.open_connection("127.0.0.1", it.port, local_addr=(local, 0))
                    for _ in range(min(50, idle - batch))
                )
            )
            # mitmproxy's backlog is 100, and a client that finds it full waits a second. Once this
            # is answered, all before it were accepted.
            await it.ask(GET)
        await until(lambda: descriptors(it) > idle, pause=0.5)
        assert b" 511 " in await it.ask(GET)
        for _, writer in clients:
            writer.transport.abort()
        await until(lambda: descriptors(it) < 100, pause=0.5)


async def test_one_client_cannot_have_all_the_connections(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch, answerer: str
) -> None:
    monkeypatch.setattr("capport.proxy.connections.MOST_A_CLIENT", 20)
    async with portal() as it:
        clients = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(50)]
        reader, writer = clients[-1]
        writer.write(GET)
        assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        await until(lambda: len(it.keeper.connections) == 20)
        other = await asyncio.open_connection("127.0.0.1", it.port, local_addr=("127.0.0.9", 0))
        assert b" 511 " in await say(other, GET)
        assert has_answered(it, answerer)
        for _, each in clients:
            each.close()


class SlowResolver(SmallResolver):
    """A resolver that answers once `now` is set."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(names)
        self.now = asyncio.Event()

    async def resolve(self, host: Host) -> list[Address]:
        await self.now.wait()
        return await super().resolve(host)


@pytest.mark.parametrize("who", ["known", "unknown"])
async def test_little_is_kept_of_what_waits_for_a_connection(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """mitmproxy would keep all of it, and gives a host that is down up only after two minutes."""
    monkeypatch.setattr(backpressure, "WAIT", 10 * SOON)
    body = b"x" * 6 * MB
    place = f"{GARDEN}:{origin.port}"
    head = f"PUT http://{place}/ HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with portal(garden(place)) as it:
        it.keeper.dialling.resolver = resolver = SlowResolver({GARDEN: "127.0.0.1"})
        if who == "known":
            it.grant("127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(head.encode() + body)
        sending = asyncio.create_task(writer.drain())
        (entry,) = await opened(it)
        most = backpressure.MOST_KEPT if who == "known" else backpressure.LITTLE
        await until(lambda: entry.kept > most)
        await asyncio.sleep(0.3)  # all of it would be read meanwhile
        assert entry.kept <= most + 65536
        resolver.now.set()
        await until(lambda: len(origin.received) >= len(body))
        assert origin.received.endswith(body)
        assert b" 200 " in await one_answer(reader)
        assert entry.kept == 0
        await sending
        writer.close()


async def opened(it: Portal) -> list[Open]:
    """The connections that are open, once there are any."""
    entries = it.keeper.connections.entries
    await until(lambda: bool(entries))
    return list(entries.values())
