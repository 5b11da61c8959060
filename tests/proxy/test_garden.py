"""What is forwarded to the walled garden: to that name as we resolve it, and nowhere else."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader

from capport.core.policy import Router
from capport.linux import neighbour_lookup
from conftest import SOON, Origin, StartPortal, one_answer, until_closed
from proxy.bypasses import AMBIGUOUS
from proxy.wire import (
    GARDEN,
    OUTSIDE,
    WAYS,
    Dialled,
    Way,
    answers,
    garden,
    reset,
    say,
    until,
    with_names,
)

each_way = pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[3], WAYS[4]], ids=str)

SECRETS = (
    b"Cookie: a=secret1\r\nCookie: b=secret2\r\nAuthorization: Basic secret3\r\n"
    b"Proxy-Authorization: Basic secret4\r\n"
)


@pytest.fixture
async def decoy() -> AsyncIterator[Origin]:
    """The place that a client has dialled, which must get nothing."""
    async with Origin().serving() as it:
        yield it


def asking(
    way: Way, host: str, fields: bytes = b"", *, method: str = "GET", path: str = "/p?q"
) -> bytes:
    head = f"{method} {way.target(host, path)} HTTP/1.1\r\nHost: {host}\r\n"
    return head.encode() + fields + b"\r\n"


@each_way
async def test_a_request_goes_to_the_name_whatever_was_dialled(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    # In transparent mode and by SOCKS5 the client dials an address where nobody listens, on the
    # garden's port: by its name it reaches the garden all the same.
    host = f"{GARDEN}:{origin.port}"
    elsewhere = Way(way.mode, "192.0.2.80", way.socks_name)
    async with elsewhere.portal(portal, dialled, origin, garden(host)) as it:
        names = with_names(it, GARDEN)
        data = await say(await elsewhere.connect(it, origin.port), asking(way, host), ends=False)
        (answer,) = answers(data)
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.fields["connection"] == "close"
        assert names.asked == [GARDEN]
    expected = f"GET /p?q HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert origin.received == expected.encode()
    assert origin.connections == 1


@each_way
async def test_what_is_meant_for_a_proxy_or_one_hop_does_not_go_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    host = f"{GARDEN}:{origin.port}"
    fields = (
        b"Connection: x-one, Keep-Alive\r\nConnection: x-two\r\nKeep-Alive: 5\r\nX-One: 1\r\n"
        b"X-Two: 2\r\nX-Three: 3\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: websocket\r\n"
        b"HTTP2-Settings: AAMAAABk\r\nProxy-Connection: keep-alive\r\nExpect: 100-continue\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0\r\n"
    )
    async with way.portal(portal, dialled, origin, garden(host)) as it:
        with_names(it, GARDEN)
        await say(await way.connect(it, origin.port), asking(way, host, fields), ends=False)
    expected = f"GET /p?q HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nX-Three: 3\r\n\r\n"
    assert origin.received == expected.encode()


async def test_credentials_reach_the_garden_and_nobody_else(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    host, saved = f"{GARDEN}:{origin.port}", tmp_path / "flows"
    seen: list[bytes] = []

    class Watching:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

        def look(self, flow: http.HTTPFlow) -> None:
            seen.append(repr(flow.get_state()).encode())

        requestheaders = request = responseheaders = response = error = look

    async with portal(garden(host), save_stream_file=str(saved)) as it:
        with_names(it, GARDEN)
        it.master.addons.add(Watching())
        data = await it.talk(asking(WAYS[0], host, SECRETS))
        assert answers(data)[0].status == 200
        (flow,) = it.flows.requests
        assert flow.marked == ":seedling:"
    (head,) = origin.heads
    fields = head.split(b"\r\n")[1:]
    assert b"Cookie: a=secret1" in fields
    assert b"Cookie: b=secret2" in fields
    assert b"Authorization: Basic secret3" in fields
    assert b"secret4" not in head
    assert len(seen) == 4
    assert not [state for state in seen if b"secret" in state]
    raw = saved.read_bytes()
    assert b"secret" not in raw
    (kept,) = FlowReader(io.BytesIO(raw)).stream()
    assert isinstance(kept, http.HTTPFlow)
    assert kept.request.headers["authorization"] == "[redacted]"


BODY = b"0123456789" * 20_000


def chunked(body: bytes, size: int = 4096, end: bytes = b"0\r\n\r\n") -> bytes:
    parts = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + end


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[tuple[int, asyncio.Queue[bytes]]]:
    """An origin that answers once the request is whole, and reports bytes as they come."""
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                received += data
                got.put_nowait(data)
                head, _, body = received.partition(b"\r\n\r\n")
                length = [x for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")]
                whole = (
                    len(body) >= int(length[0].split(b":")[1])
                    if length
                    else body.endswith(b"0\r\n\r\n")
                )
                if whole:
                    writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], got
    finally:
        server.close()


async def drained(got: asyncio.Queue[bytes], until: bytes) -> bytes:
    received = b""
    while until not in received:
        received += await asyncio.wait_for(got.get(), SOON)
    return received


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: %d\r\n" % len(BODY), BODY),
        (b"Transfer-Encoding: chunked\r\n", chunked(BODY)),
        (b"Transfer-Encoding: chunked\r\n", chunked(BODY, end=b"0\r\nX-Trailer: y\r\n\r\n")),
        # Fields that Connection names are dropped, but never those that say where the body ends.
        (b"Connection: content-length\r\nContent-Length: %d\r\n" % len(BODY), BODY),
        (b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", chunked(BODY)),
    ],
)
async def test_a_body_streams_through(portal: StartPortal, fields: bytes, body: bytes) -> None:
    async with sink() as (port, got):
        host = f"{GARDEN}:{port}"
        async with portal(garden(host)) as it:
            with_names(it, GARDEN)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            half = len(body) // 2
            writer.write(asking(WAYS[0], host, fields, method="PUT") + body[:half])
            began = await drained(got, b"0123456789")  # the origin has some before it has all
            writer.write(body[half:])
            (answer,) = answers(await until_closed(reader))
            assert answer.status == 201
            writer.close()
            while not got.empty():
                began += got.get_nowait()
        sent = began.partition(b"\r\n\r\n")[2]
        if b"chunked" in fields:
            assert b"".join(unchunked(sent)) == BODY
        else:
            assert sent == BODY


def unchunked(data: bytes) -> list[bytes]:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        if (length := int(size, 16)) == 0:
            assert data == b"\r\n"
            break
        parts.append(data[:length])
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
    return parts


async def test_a_client_that_waits_for_100_continue_gets_it_and_its_answer(
    portal: StartPortal,
) -> None:
    async with sink() as (port, got):
        host = f"{GARDEN}:{port}"
        async with portal(garden(host)) as it:
            with_names(it, GARDEN)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            fields = b"Content-Length: 3\r\nExpect: 100-continue\r\n"
            writer.write(asking(WAYS[0], host, fields, method="POST"))
            interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
            assert interim.startswith(b"HTTP/1.1 100 ")
            writer.write(b"abc")
            (answer,) = answers(await until_closed(reader))
            assert answer.status == 201
            writer.close()
        assert (await drained(got, b"abc")).lower().count(b"expect") == 0


async def test_a_response_streams_through(portal: StartPortal) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        first.set()
        await asyncio.wait_for(second.wait(), SOON)
        writer.write(b"other")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"{GARDEN}:{server.sockets[0].getsockname()[1]}"
    async with server, portal(garden(host)) as it:
        with_names(it, GARDEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(asking(WAYS[0], host))
        head = await asyncio.wait_for(reader.readuntil(b"first"), SOON)
        assert b"200 OK" in head
        second.set()
        assert await until_closed(reader) == b"other"
        writer.close()


SMUGGLED = b"GET http://127.0.0.1:DECOY/ HTTP/1.1\r\nHost: 127.0.0.1:DECOY\r\n\r\n"
INSIDE = b"GET /smuggled HTTP/1.1\r\nHost: GARDEN\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "body", "reaches"),
    [
        (b"", SMUGGLED, b""),
        (b"", INSIDE, b""),
        (b"Content-Length: 3\r\n", b"abc" + SMUGGLED, b"abc"),
        (b"Content-Length: 3\r\n", b"abc" + INSIDE, b"abc"),
        (b"Content-Length: 0\r\n", INSIDE, b""),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED, b"0\r\n\r\n"),
        (
            b"Transfer-Encoding: chunked\r\n",
            b"1\r\na\r\n0\r\n\r\n" + INSIDE,
            b"1\r\na\r\n0\r\n\r\n",
        ),
        (b"Connection: keep-alive\r\n", INSIDE, b""),
        (b"Upgrade: h2c\r\nConnection: upgrade\r\n", INSIDE, b""),
    ],
)
async def test_what_follows_the_one_request_is_for_nobody(
    portal: StartPortal, origin: Origin, decoy: Origin, fields: bytes, body: bytes, reaches: bytes
) -> None:
    host = f"{GARDEN}:{origin.port}"
    body = body.replace(b"DECOY", b"%d" % decoy.port).replace(b"GARDEN", host.encode())
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        data = await it.talk(asking(WAYS[0], host, fields, method="POST") + body)
        assert [answer.status for answer in answers(data)] == [200]
    assert origin.received.partition(b"\r\n\r\n")[2] == reaches
    assert (origin.connections, decoy.connections) == (1, 0)


@pytest.mark.parametrize(("fields", "body"), AMBIGUOUS)
async def test_what_can_be_read_in_two_ways_does_not_go_on(
    portal: StartPortal, origin: Origin, fields: bytes, body: bytes
) -> None:
    host = f"{GARDEN}:{origin.port}"
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        data = await it.talk(asking(WAYS[0], host, fields, method="POST") + body)
        assert [answer.status for answer in answers(data)] == [400]
    assert origin.connections == 0


@pytest.mark.parametrize(
    ("fields", "body", "more"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n", b"zz\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\nzz\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nab", b"c"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\nbad trailer\r\n\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n" + b"1" * 70_000, b"1" * 70_000),
    ],
)
async def test_a_body_that_goes_wrong_ends_both_connections(
    portal: StartPortal, origin: Origin, fields: bytes, body: bytes, more: bytes
) -> None:
    host = f"{GARDEN}:{origin.port}"
    origin.answer = b""
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(asking(WAYS[0], host, fields, method="POST") + body)
        await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            writer.write(more)
            await writer.drain()
        assert not [a for a in answers(await until_closed(reader)) if a.status < 400]
        writer.close()
        await until(lambda: not origin.open)
    assert not origin.received.endswith(b"0\r\n\r\n")


async def test_a_client_that_hangs_up_in_its_body_ends_the_origins_connection(
    portal: StartPortal, origin: Origin
) -> None:
    host = f"{GARDEN}:{origin.port}"
    origin.answer = b""
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        _, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(asking(WAYS[0], host, b"Content-Length: 9\r\n", method="POST") + b"abc")
        await until(lambda: bool(origin.open))
        writer.close()
        await until(lambda: not origin.open)


@pytest.mark.parametrize(
    ("entry", "host", "status"),
    [
        ("www.example.org:PORT", "www.example.org:PORT", 200),
        ("www.example.org:PORT", "WWW.Example.ORG.:PORT", 200),
        ("www.example.org:PORT", "www.example.org.evil.example:PORT", 511),
        ("www.example.org:PORT", "notwww.example.org:PORT", 511),
        ("www.example.org:PORT", "sub.www.example.org:PORT", 511),
        ("www.example.org:PORT", "www.example.org:OTHER", 511),
        ("www.example.org:PORT", "user@www.example.org:PORT", 511),
        ("www.example.org", "www.example.org:PORT", 511),
        ("*.example.org:PORT", "sub.example.org:PORT", 200),
        ("*.example.org:PORT", "a.b.example.org:PORT", 200),
        ("*.example.org:PORT", "example.org:PORT", 511),
        ("*.example.org:PORT", "evilexample.org:PORT", 511),
        ("127.0.0.1:PORT", "127.0.0.1:PORT", 200),
        ("127.0.0.1:PORT", "127.1:PORT", 511),
        ("127.0.0.1:PORT", "0x7f.0.0.1:PORT", 511),
        ("127.0.0.1:PORT", "2130706433:PORT", 511),
        ("127.0.0.1:PORT", "localhost:PORT", 511),
    ],
)
@pytest.mark.parametrize("way", WAYS[:2], ids=str)
async def test_the_garden_holds_what_it_says(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    decoy: Origin,
    way: Way,
    entry: str,
    host: str,
    status: int,
) -> None:
    def ported(text: str) -> str:
        return text.replace("PORT", str(origin.port)).replace("OTHER", str(decoy.port))

    async with way.portal(portal, dialled, origin, garden(ported(entry))) as it:
        names = ("www.example.org", "sub.example.org", "a.b.example.org", "example.org")
        with_names(it, *names)
        if way.mode == "transparent":
            dialled("192.0.2.80" if status == 200 else "127.0.0.1", origin.port)
        if entry.startswith("127.") and way.mode == "transparent":
            status = 200  # the address that was dialled is in the garden
            dialled("127.0.0.1", origin.port)
        streams = await way.connect(it, origin.port)
        data = await say(streams, asking(way, ported(host)), ends=status == 511)
        assert [answer.status for answer in answers(data)] == [status]
    assert origin.connections == (status == 200)
    assert decoy.connections == 0


async def test_by_an_address_in_the_garden_every_name_on_it_is_reached(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    for host in (b"any.example.com", b"any.example.com:81", b"bad\xffname", b""):
        async with portal(garden(f"127.0.0.1:{origin.port}"), mode="transparent") as it:
            with_names(it)
            await it.talk(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
    hosts = [head.split(b"\r\n")[1] for head in origin.heads]
    own = b"Host: 127.0.0.1:%d" % origin.port
    assert hosts == [b"Host: any.example.com", b"Host: any.example.com:81", own, own]


@pytest.mark.parametrize("method", ["connect", "CONNECT"])
async def test_no_tunnel_opens_where_connect_means_nothing(
    portal: StartPortal, origin: Origin, dialled: Dialled, method: str
) -> None:
    host = f"{GARDEN}:{origin.port}"
    dialled("127.0.0.1", origin.port)
    policy = garden(host, f"127.0.0.1:{origin.port}")
    async with portal(policy, mode="transparent") as it:
        with_names(it, GARDEN)
        head = f"{method} {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        data = await it.talk(head + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [answer.status for answer in answers(data)] == [400]
    if method == "connect":
        async with portal(policy) as it:
            with_names(it, GARDEN)
            head = f"{method} http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            data = await it.talk(head)
            assert [answer.status for answer in answers(data)] == [400]
    assert origin.connections == 0


async def test_a_name_that_does_not_resolve_is_an_error_of_the_gardens(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal(garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it)
        data = await it.talk(asking(WAYS[0], f"{GARDEN}:{origin.port}"))
        (answer,) = answers(data)
        assert answer.status == 502
        assert answer.fields["cache-control"] == "no-store"
        assert "server" not in answer.fields
        assert b"mitmproxy" not in data
    assert origin.connections == 0


async def test_an_origin_that_speaks_no_http_is_an_error_of_the_gardens(
    portal: StartPortal, origin: Origin
) -> None:
    host = f"{GARDEN}:{origin.port}"
    for said in (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n"):
        origin.answer = said
        async with portal(garden(host)) as it:
            with_names(it, GARDEN)
            data = await it.talk(asking(WAYS[0], host))
            assert [answer.status for answer in answers(data)] == [502]
            assert b"mitmproxy" not in data


async def test_garden_connections_count_for_the_most_a_client_may_have(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capport.proxy.connections.MOST_A_CLIENT", 5)
    origin.answer = b""
    host = f"{GARDEN}:{origin.port}"
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        clients = []
        for _ in range(8):
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(asking(WAYS[0], host))
            clients.append((reader, writer))
            await asyncio.sleep(0.02)
        await until(lambda: len(it.keeper.connections) == 5)
        await until(lambda: len(origin.open) == 5)
        for _, writer in clients:
            writer.close()


async def test_a_refused_request_before_the_gardens_changes_nothing(
    portal: StartPortal, origin: Origin
) -> None:
    host = f"{GARDEN}:{origin.port}"
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        for _ in range(3):
            writer.write(asking(WAYS[0], OUTSIDE, SECRETS))
            assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        writer.write(asking(WAYS[0], host))
        assert b" 200 " in await asyncio.wait_for(one_answer(reader), SOON)
        assert await until_closed(reader) == b""
        writer.close()
    assert b"secret" not in origin.received


@each_way
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_client_that_closes_its_half_gets_its_answer(
    portal: StartPortal, dialled: Dialled, way: Way, method: str
) -> None:
    """RFC 9293 section 3.6: an end that closes has no more to send, and may still receive."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n" if method == "GET" else b"body")
        asked.set()
        await asyncio.wait_for(answer.wait(), SOON)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = Origin(port=server.sockets[0].getsockname()[1])
    host = f"{GARDEN}:{origin.port}"
    async with server, way.portal(portal, dialled, origin, garden(host)) as it:
        with_names(it, GARDEN)
        reader, writer = await way.connect(it, origin.port)
        body = b"body" if method == "PUT" else b""
        writer.write(asking(way, host, b"Content-Length: %d\r\n" % len(body), method=method) + body)
        writer.write_eof()
        await asyncio.wait_for(asked.wait(), SOON)
        await asyncio.sleep(0.05)
        answer.set()
        found = answers(await until_closed(reader))
        assert [(it.status, it.body) for it in found] == [(200, b"ok")]
        writer.close()


async def test_a_client_that_has_gone_ends_the_origins_connection(portal: StartPortal) -> None:
    """It looks like one that has closed its half, until something is sent to it."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b"." * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)
        over.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"{GARDEN}:{server.sockets[0].getsockname()[1]}"
    async with server, portal(garden(host)) as it:
        with_names(it, GARDEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(asking(WAYS[0], host))
        await reader.readuntil(b"....")
        writer.close()
        await asyncio.wait_for(over.wait(), SOON)
        await until(lambda: len(it.keeper.connections) == 0)


async def test_a_client_that_has_gone_is_not_waited_for_for_long(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capport.proxy.layers.http1.HALF_CLOSED", 0.5)
    origin.answer = b""
    host = f"{GARDEN}:{origin.port}"
    async with portal(garden(host)) as it:
        with_names(it, GARDEN)
        for end in (lambda writer: writer.close(), reset):
            _, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(asking(WAYS[0], host))
            await until(lambda: bool(origin.open))
            end(writer)
            await until(lambda: not origin.open)
            await until(lambda: len(it.keeper.connections) == 0)


@each_way
async def test_options_of_the_gardens_server_as_a_whole_goes_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    """RFC 9112 section 3.2.4: the asterisk form, which names its server by the Host field alone."""
    host = f"{GARDEN}:{origin.port}"
    async with way.portal(portal, dialled, origin, garden(host)) as it:
        with_names(it, GARDEN)
        dialled("192.0.2.80", origin.port)
        request = f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        data = await say(await way.connect(it, origin.port), request, ends=False)
        assert [answer.status for answer in answers(data)] == [200]
        other = f"GET * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        refused = answers(await say(await way.connect(it, origin.port), other))
        assert [answer.status for answer in refused] == [511]
    expected = f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert origin.received == expected.encode()


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        (["*.example.org:PORT"], 502),
        (["www.example.org:PORT"], 502),
        (["*.example.org:PORT", "127.0.0.1:PORT"], 200),
        (["www.example.org:PORT", "127.0.0.1:OTHER"], 502),
    ],
)
@pytest.mark.parametrize("network", ["127.0.0.0/8", "10.0.0.0/8"])
async def test_no_name_of_the_garden_leads_among_the_clients(
    portal: StartPortal,
    origin: Origin,
    decoy: Origin,
    monkeypatch: pytest.MonkeyPatch,
    entries: list[str],
    status: int,
    network: str,
) -> None:
    """Here their network is this machine's own; listing the address opens it."""
    monkeypatch.setattr(
        neighbour_lookup, "is_behind", lambda address, _: address in ip_network(network)
    )
    ports = {"PORT": origin.port, "OTHER": decoy.port}
    places = [entry.replace(n, str(p)) for entry in entries for n, p in ports.items() if n in entry]
    async with portal(garden(*places)) as it:
        with_names(it, GARDEN)
        it.gate.policy = replace(it.gate.policy, router=Router("lan", "wan"))
        data = await it.talk(asking(WAYS[0], f"{GARDEN}:{origin.port}"))
        expected = status if network == "127.0.0.0/8" else 200
        assert [answer.status for answer in answers(data)] == [expected]
        assert origin.connections == (expected == 200)
        it.grant("127.0.0.1")  # a known client goes wherever there is a way
        data = await it.talk(asking(WAYS[0], f"{GARDEN}:{origin.port}", b"Connection: close\r\n"))
        assert [answer.status for answer in answers(data)] == [200]
