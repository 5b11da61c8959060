"""An unknown client's HTTP is answered 511, and no origin gets anything of it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import pytest

from capport.proxy import connections
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.bypasses import ODD
from proxy.wire import (
    GARDEN,
    OUTSIDE,
    WAYS,
    Dialled,
    Way,
    answers,
    garden,
    later,
    say,
    until,
    with_names,
)

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"

each_way = pytest.mark.parametrize("way", WAYS, ids=str)

METHODS = [
    *("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"),
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH"),
    *("PURGE", "BREW", "M-SEARCH", "get", "connect", "head"),
]


def get(origin: Origin, more: bytes = b"") -> bytes:
    return b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n%s\r\n" % (origin.port, more)


@pytest.fixture
async def origin(request: pytest.FixtureRequest) -> AsyncIterator[Origin]:
    """An origin, on IPv6 if the way is one that dials it there."""
    way = getattr(request.node, "callspec", None) and request.node.callspec.params.get("way")
    async with Origin().serving(way.origin_at if isinstance(way, Way) else "127.0.0.1") as it:
        yield it


async def test_an_unknown_client_gets_a_511(portal: StartPortal, origin: Origin) -> None:
    async with portal() as it:
        answer = await it.ask(get(origin))
        assert answer.startswith(b"HTTP/1.1 511 Network Authentication Required\r\n")
        assert b"https://login.example.net/" in answer
    assert origin.connections == 0


async def test_a_known_client_passes(portal: StartPortal, origin: Origin) -> None:
    async with portal(KNOWN) as it:
        assert (await it.ask(get(origin))).startswith(b"HTTP/1.1 200 OK\r\n")
    assert origin.connections == 1


@each_way
async def test_every_method_and_both_versions_are_answered_511(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    async with way.portal(portal, dialled, origin) as it:
        for method in METHODS:
            for version in ("HTTP/1.0", "HTTP/1.1"):
                target = way.target(f"127.0.0.1:{origin.port}")
                head = f"{method} {target} {version}\r\nHost: 127.0.0.1:{origin.port}\r\n\r\n"
                data = await say(await way.connect(it, origin.port), head.encode())
                (answer,) = answers(data, method)
                assert (method, answer.status, answer.version) == (method, 511, "HTTP/1.1")
                assert answer.fields["cache-control"] == "no-store"
                closes = "close" if version == "HTTP/1.0" else None
                assert answer.fields.get("connection") == closes, method
    assert origin.connections == 0


@each_way
async def test_head_has_the_fields_of_get_and_no_body(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    async with way.portal(portal, dialled, origin) as it:
        request = f" {way.target('x')} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        got = await say(await way.connect(it, origin.port), b"GET" + request + b"HEAD" + request)
        full, bare = answers(got, "GET", "HEAD")
        assert full.body
        assert not bare.body
        without_date = [{k: v for k, v in a.fields.items() if k != "date"} for a in (full, bare)]
        assert without_date[0] == without_date[1]
    assert origin.connections == 0


# What a client may send, and the statuses it gets; None is an end without an answer. ORIGIN is
# a server that must get nothing.


def odd(name: str, origin: Origin, at: str = "127.0.0.1") -> bytes:
    host = f"[{at}]" if ":" in at else at
    return ODD[name][0].replace(b"ORIGIN", f"{host}:{origin.port}".encode())


@each_way
async def test_nothing_of_any_odd_request_goes_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    async with way.portal(portal, dialled, origin) as it:
        got = {}
        for name in ODD:
            method = ODD[name][0].split(b" ")[0].decode("latin-1")
            data = await say(await way.connect(it, origin.port), odd(name, origin, way.origin_at))
            got[name] = [answer.status for answer in answers(data, method)]
            assert (name, origin.connections) == (name, 0)
    assert got == {name: statuses for name, (_, statuses) in ODD.items()}


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
async def test_a_request_in_segments_of_one_byte_is_a_request(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    async with way.portal(portal, dialled, origin) as it:
        for first in (1, 2, 3, 5):
            request = odd("absolute", origin)
            pieces = [request[:first], *(request[i : i + 1] for i in range(first, len(request)))]
            reader, writer = await way.connect(it, origin.port)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.001)
            assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
            writer.close()
    assert origin.connections == 0


@each_way
async def test_a_client_that_waits_for_the_server_to_speak_first_gets_nothing(
    portal: StartPortal, dialled: Dialled, way: Way
) -> None:
    async with Origin(greeting=b"220 smtp.example.com\r\n").serving(way.origin_at) as origin:
        async with way.portal(portal, dialled, origin) as it:
            reader, writer = await way.connect(it, origin.port)
            await until(lambda: len(it.keeper.connections) == 1)
            later(connections.PATIENCE)
            assert await until_closed(reader) == b""
            writer.close()
        assert origin.connections == 0


@each_way
async def test_pipelined_requests_are_answered_in_their_order(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    languages = ["de", "fr", "es", "en"] * 5
    target = way.target(OUTSIDE)
    async with way.portal(portal, dialled, origin) as it:
        sent = "".join(
            f"GET {target} HTTP/1.1\r\nHost: x\r\nAccept-Language: {tag}\r\n\r\n"
            for tag in languages
        )
        data = await say(await way.connect(it, origin.port), sent.encode())
        assert [answer.fields["content-language"] for answer in answers(data)] == languages
    assert origin.connections == 0


async def test_a_connection_has_a_hundred_answers_and_then_ends(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        data = await it.talk(get(origin) * 150)
        found = answers(data)
        assert [answer.status for answer in found] == [511] * 100
        assert ["connection" in answer.fields for answer in found] == [False] * 99 + [True]
    assert origin.connections == 0


async def test_a_kept_connection_is_answered_again_and_again(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        for _ in range(5):
            writer.write(get(origin))
            assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        writer.close()
    assert origin.connections == 0


async def test_an_answer_to_a_body_says_that_it_is_the_last(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        (answer,) = answers(await it.talk(get(origin, b"Content-Length: 9\r\n") + b"abc"))
        assert (answer.status, answer.fields["connection"]) == (511, "close")


@each_way
async def test_of_mixed_pipelined_requests_exactly_the_gardens_first_one_leaves(
    portal: StartPortal, origin: Origin, dialled: Dialled, way: Way
) -> None:
    inside, outside = f"www.example.org:{origin.port}", f"127.0.0.1:{origin.port}"
    if ":" in way.origin_at:
        outside = f"[::1]:{origin.port}"

    def request(host: str, path: str) -> str:
        return f"GET {way.target(host, path)} HTTP/1.1\r\nHost: {host}\r\n\r\n"

    async with way.portal(portal, dialled, origin, garden(inside)) as it:
        with_names(it, "www.example.org", at=way.origin_at)
        sent = request(outside, "/1") + request(inside, "/2") + request(outside, "/3")
        data = await say(await way.connect(it, origin.port), sent.encode(), ends=False)
        assert [answer.status for answer in answers(data)] == [511, 200]
    assert len(origin.heads) == 1
    assert origin.heads[0].startswith(b"GET /2 HTTP/1.1\r\n")
    assert origin.received.count(b"HTTP/1.1") == 1


async def test_a_client_that_becomes_known_between_connecting_and_asking_comes_again(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(get(origin))
        assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        it.grant("127.0.0.1")
        assert await asyncio.wait_for(reader.read(), SOON) == b""
        writer.close()
        assert b" 200 " in await it.ask(get(origin))
        it.revoke("127.0.0.1")
        assert b" 511 " in await it.ask(get(origin))
    assert origin.connections == 1


async def test_a_request_sent_while_its_client_becomes_known_is_not_answered_by_a_reset(
    portal: StartPortal, origin: Origin
) -> None:
    """RFC 9112 section 9.6: to a reset Squid answers 502; after an orderly end it asks again."""
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(get(origin))
        assert b" 511 " in await asyncio.wait_for(one_answer(reader), SOON)
        (entry,) = it.keeper.connections.entries.values()
        it.grant("127.0.0.1")
        await until(lambda: entry.over)
        writer.write(get(origin))  # the client has not noticed yet that the connection ends
        assert await asyncio.wait_for(reader.read(), SOON) == b""
        writer.close()
        await until(lambda: not it.keeper.connections)
        assert b" 200 " in await it.ask(get(origin))
    assert len(origin.heads) == 1


async def test_a_client_that_becomes_known_and_does_not_hang_up_is_cut_off(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capport.proxy.connections.STAGE", 0.01)
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        await until(lambda: len(it.keeper.connections) == 1)
        it.grant("127.0.0.1")
        assert await asyncio.wait_for(reader.read(), SOON) == b""
        await until(lambda: not it.keeper.connections)
        writer.close()


async def test_a_client_that_is_known_before_the_portal_has_noticed_goes_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another process's notification were late: the request itself is decided again."""
    dialled("127.0.0.1", origin.port)
    for mode in ("regular", "transparent"):
        async with portal(mode=mode) as it:
            monkeypatch.setattr(it.keeper.connections, "recheck", lambda ids: None)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            await until(lambda: len(it.keeper.connections) == 1)
            it.grant("127.0.0.1")
            writer.write(get(origin))
            assert b" 200 " in await asyncio.wait_for(one_answer(reader), SOON)
            writer.close()


def raising(*args: object, **kwargs: object) -> None:
    raise RuntimeError("a fault, made for this test")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "broken",
    [
        "gate.store.find",
        "gate.neighbours",
        "gate.now",
        "gate.policy",
        "gate.request",
        "gate.client",
        "gate.events.write",
        "marks.event",
        "marks.refused",
    ],
)
async def test_whatever_raises_the_client_is_answered_and_nothing_leaves(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch, broken: str, method: str
) -> None:
    """On a connection that already has its layer; before that, it is closed without an answer."""
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(get(origin))
        await one_answer(reader)
        *way, last = broken.split(".")
        owner: object = it.keeper
        for name in way:
            owner = getattr(owner, name)
        with monkeypatch.context() as patch:
            patch.setattr(owner, last, raising)
            request = get(origin).replace(b"GET", method.encode(), 1)
            data = await say((reader, writer), request)
            reporting = {"gate.events.write", "marks.event", "marks.refused"}
            (answer,) = answers(data, method)
            assert answer.status == (511 if broken in reporting else 503)
            assert answer.fields["cache-control"] == "no-store"
            fresh = await say(await asyncio.open_connection("127.0.0.1", it.port), request)
            assert not fresh or answers(fresh, method)[0].status in {511, 503}
    assert origin.connections == 0


def seen(it: Portal) -> list[int | None]:
    return [f.response.status_code if f.response else None for f in it.flows.requests]


async def test_each_refusal_is_seen_with_its_verdict(portal: StartPortal, origin: Origin) -> None:
    async with portal() as it:
        await it.ask(get(origin))
        (flow,) = it.flows.requests
        assert seen(it) == [511]
        assert flow.marked == ":no_entry:"
        assert "has no session" in flow.comment
        assert flow.metadata["portal"]["verdict"] == "NetworkAuthenticationRequired"
        assert flow.request.url == f"http://127.0.0.1:{origin.port}/"


async def test_nothing_that_an_unknown_client_sends_to_prove_itself_is_shown(
    portal: StartPortal, origin: Origin
) -> None:
    secrets = (
        b"Cookie: a=secret1\r\ncookie: b=secret2\r\nAUTHORIZATION: Basic c2VjcmV0\r\n"
        b"Proxy-Authorization: Bearer secret3\r\n"
    )
    async with portal() as it:
        await it.ask(get(origin, secrets))
        (shown,) = it.flows.shown
        assert b"secret" not in shown
        assert b"c2VjcmV0" not in shown
        assert it.flows.requests[0].metadata["portal"]["credentials"] == {
            "cookie": 2,
            "authorization": 1,
            "proxy-authorization": 1,
        }


@pytest.mark.parametrize(
    ("request_", "status"), [(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 511), (b"GET /\r\n\r\n", 400)]
)
async def test_an_answer_has_the_time_in_it_where_there_is_a_clock(
    portal: StartPortal,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    request_: bytes,
    status: int,
) -> None:
    """RFC 9110 section 6.6.1, in its one form; a router that does not know the time sends none."""
    dialled("192.0.2.80", 80)
    form = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
    async with portal(mode="transparent") as it:
        (answer,) = answers(await it.ask(request_))
        said = answer.fields["date"]
        assert (answer.status, bool(form.fullmatch(said))) == (status, True)
        assert abs(time.time() - parsedate_to_datetime(said).timestamp()) < 60
        assert answer.order.count("date") == 1
        monkeypatch.setattr(time, "time", lambda: 86400.0 * 3)
        (answer,) = answers(await it.ask(request_))
        assert (answer.status, "date" in answer.fields) == (status, False)
        monkeypatch.undo()


@pytest.mark.parametrize("who", ["known", "unknown"])
async def test_an_answer_with_trailers_arrives_whole(
    portal: StartPortal, origin: Origin, dialled: Dialled, who: str
) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    origin.answer = chunked + b"\r\n5\r\nhello\r\n0\r\nX-Checksum: 1\r\n\r\n"
    dialled("127.0.0.1", origin.port)
    place = f"{GARDEN}:{origin.port}"
    request = f"GET / HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n".encode()
    async with portal(garden(place), mode="transparent") as it:
        with_names(it, GARDEN)
        if who == "known":
            it.grant("127.0.0.1")
        answer = await it.talk(request)
        assert answer.startswith(chunked)
        assert answer.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


async def test_a_known_clients_request_with_trailers_is_answered(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1")
        answer = await it.ask(head + b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert origin.received.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
