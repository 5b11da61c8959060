"""HTTP inside the TLS that `tls.unknown: intercept` opens: each stream is decided on its own."""

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import pytest

from capport.proxy import connections
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.http2 import INTERCEPT, Fields, Http2, tls, tls_streams
from proxy.wire import (
    GARDEN,
    OUTSIDE,
    Dialled,
    answers,
    garden,
    later,
    say,
    until,
    with_names,
)


async def test_every_stream_is_answered_511(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        methods = ["GET", "HEAD", "POST", "OPTIONS", "PROPFIND", "DELETE", "BREW"] * 5
        streams = [client.ask(method=method) for method in methods]
        for method, stream in zip(methods, streams, strict=True):
            await client.answer(stream)
            assert (stream.status, bool(stream.body)) == (511, method != "HEAD")
            assert stream.fields["cache-control"] == "no-store"
            assert "connection" not in stream.fields
            assert "server" not in stream.fields
        await client.close()
    assert origin.connections == 0


@pytest.mark.parametrize("mode", ["regular", "transparent", "a tunnel"])
async def test_http2_in_the_clear_is_answered_511_by_http2(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    """With prior knowledge, RFC 9113 section 3.3."""
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent" if mode == "transparent" else "regular") as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        if mode == "a tunnel":
            writer.write(b"CONNECT 192.0.2.80:80 HTTP/1.1\r\nHost: 192.0.2.80:80\r\n\r\n")
            assert b" 200 " in await one_answer(reader)
        client = Http2(reader, writer)
        for method in ("GET", "HEAD", "POST"):
            stream = await client.answer(client.ask(method=method, scheme="http"))
            assert (stream.status, bool(stream.body)) == (511, method != "HEAD")
        await client.close()
    assert origin.connections == 0


async def test_a_method_that_begins_as_http2_does_is_read_as_http1(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        for piece in (b"P", b"R", b"OPFIND / HTTP/1.1\r\nHost: x\r\n\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        assert b" 511 " in await one_answer(reader)
        writer.close()


@pytest.mark.parametrize(
    "fields", [[], [("content-length", "1000000000")], [("expect", "100-continue")]], ids=str
)
async def test_an_upload_is_answered_before_its_body_and_the_next_stream_too(
    portal: StartPortal, origin: Origin, dialled: Dialled, fields: Fields
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        upload = client.ask(*fields, method="POST", ends=False)
        assert (await client.answer(upload)).status == 511
        (flow,) = it.flows.requests
        client.send(upload, bytes(32768))
        assert (await client.answer(client.ask())).status == 511
        assert not flow.request.raw_content
        await client.close()
    assert origin.connections == 0


ODD: dict[str, tuple[Fields, dict[str, str]]] = {
    "path with a URL": ([], {"path": "http://ORIGIN/"}),
    "path with a URL of its own": ([], {"path": "https://ORIGIN/"}),
    "path *": ([], {"path": "*", "method": "OPTIONS"}),
    "path without a slash": ([], {"path": "x"}),
    "path of two slashes": ([], {"path": "//ORIGIN/"}),
    "authority elsewhere": ([], {"authority": "ORIGIN"}),
    "authority with userinfo": ([], {"authority": "a@ORIGIN"}),
    "no authority": ([], {"authority": "-"}),
    "a host beside the authority": ([("host", "ORIGIN")], {}),
    "only a host": ([("host", "ORIGIN")], {"authority": "-"}),
    "two hosts": ([("host", "ORIGIN"), ("host", OUTSIDE)], {"authority": "-"}),
    "scheme http": ([], {"scheme": "http", "authority": "ORIGIN"}),
    "scheme ftp": ([], {"scheme": "ftp"}),
    "connect": ([], {"method": "CONNECT", "authority": "ORIGIN", "path": "-", "scheme": "-"}),
    "connect with a path": ([], {"method": "CONNECT", "authority": "ORIGIN"}),
    "lower-case connect": ([], {"method": "connect", "authority": "ORIGIN"}),
    "extended connect": ([], {"method": "CONNECT", "protocol": "websocket", "authority": "ORIGIN"}),
    "transfer-encoding": ([("transfer-encoding", "chunked")], {}),
    "connection": ([("connection", "upgrade"), ("upgrade", "websocket")], {}),
    "CRLF in a value": ([("x", "a\r\nhost: ORIGIN")], {}),
    "CRLF in a path": ([], {"path": "/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n"}),
    "upper case": ([("X-Upper", "a")], {}),
    "a negative length": ([("content-length", "-1")], {}),
}  # fmt: skip


@pytest.mark.parametrize("by", ["an address", "the garden's name"])
async def test_nothing_of_any_odd_stream_goes_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, by: str
) -> None:
    dialled("127.0.0.1", origin.port)
    async with Origin().serving() as other:
        place = f"127.0.0.1:{other.port}"
        async with portal(INTERCEPT + garden(f"{GARDEN}:443"), mode="transparent") as it:
            with_names(it, GARDEN)
            for name, (fields, pseudo) in ODD.items():
                sni = OUTSIDE if by == "an address" else f"not-{GARDEN}"
                client = await tls(it, "h2", sni=sni)
                named: dict[str, Any] = {n: v.replace("ORIGIN", place) for n, v in pseudo.items()}
                said = ((n, v.replace("ORIGIN", place)) for n, v in fields)
                stream = client.ask(*said, **named)
                await client.answer(stream)
                assert stream.status in {0, 400, 511}, name
                await client.close()
                assert (name, origin.connections, other.connections) == (name, 0, 0)


async def test_a_stream_to_the_garden_goes_on_and_the_next_one_elsewhere_does_not(
    portal: StartPortal, secure_origin: Origin, origin: Origin, dialled: Dialled
) -> None:
    # The client has dialled another address, on the garden's port: the name that it gives counts.
    dialled("127.0.0.2", secure_origin.port)
    place = f"{GARDEN}:{secure_origin.port}"
    async with portal(INTERCEPT + garden(place), mode="transparent", ssl_insecure=True) as it:
        with_names(it, GARDEN)
        client = await tls(it, "h2")
        secrets = [("cookie", "a=secret1"), ("cookie", "b=secret2"), ("authorization", "secret3")]
        inside = await client.answer(client.ask(*secrets, authority=place, path="/in"))
        assert (inside.status, inside.body) == (200, b"ok")
        outside = await client.answer(client.ask(*secrets))
        assert outside.status == 511
        again = await client.answer(client.ask(authority=place, path="/again"))
        assert again.status == 200
        shown = b"".join(it.flows.shown)
        assert b"secret" not in shown
        assert shown.count(b"[redacted]") == 6
        await client.close()
    heads = [head.decode().lower().split("\r\n") for head in secure_origin.heads]
    assert [head[0] for head in heads] == ["get /in http/1.1", "get /again http/1.1"]
    assert all(f"host: {place}" in head for head in heads)
    assert "cookie: a=secret1; b=secret2" in heads[0]
    assert "authorization: secret3" in heads[0]
    assert "secret" not in "".join(heads[1])
    assert origin.connections == 0


async def test_a_garden_that_is_down_costs_the_stream_and_not_the_connection(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    place = f"{GARDEN}:{origin.port}"
    dialled("127.0.0.2", origin.port)
    async with portal(INTERCEPT + garden(place), mode="transparent") as it:
        with_names(it)  # it does not resolve
        client = await tls(it, "h2")
        failed = await client.answer(client.ask(authority=place))
        assert (failed.status, failed.body) == (502, b"502 Bad Gateway\r\n")
        assert failed.fields["cache-control"] == "no-store"
        assert "server" not in failed.fields
        assert (await client.answer(client.ask())).status == 511
        await client.close()
    assert origin.connections == 0


HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: hidden.example.net\r\n\r\n"


@asynccontextmanager
async def to_garden(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> AsyncIterator[tuple[Portal, Http2, str]]:
    """An HTTP/2 client, and a place in the garden whose origin speaks HTTP/1."""
    dialled("127.0.0.2", origin.port)
    place = f"{GARDEN}:{origin.port}"
    async with portal(INTERCEPT + garden(place), mode="transparent", ssl_insecure=True) as it:
        with_names(it, GARDEN)
        yield it, await tls(it, "h2"), place


async def test_an_http1_origin_reads_a_body_without_a_length_as_a_body(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled
) -> None:
    """HTTP/2 needs no Content-Length: to the origin, the body would be the next request."""
    async with to_garden(portal, secure_origin, dialled) as (_, client, place):
        stream = client.ask(method="POST", authority=place, ends=False)
        client.send(stream, HIDDEN, ends=True)
        assert (await client.answer(stream)).status == 200
        whole = b"\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
        await until(lambda: secure_origin.received.endswith(whole))
        assert b"\r\ntransfer-encoding: chunked" in secure_origin.heads[0]
        await client.close()


async def test_a_length_without_its_body_takes_nothing_of_the_next_request(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled
) -> None:
    async with to_garden(portal, secure_origin, dialled) as (_, client, place):
        for fields in [("content-length", "40")], []:
            stream = client.ask(*fields, method="POST", authority=place)
            assert (await client.answer(stream)).status == 200
        await client.close()
    assert secure_origin.connections == 2
    assert all(b"\r\nconnection: close" in head for head in secure_origin.heads)


async def test_what_is_no_head_in_http1_does_not_go_on_as_one(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled
) -> None:
    odd: list[tuple[Fields, dict[str, Any]]] = [
        ([], {"method": "GET http://hidden.example.net/ HTTP/1.1 X"}),
        ([], {"method": ""}),
        ([], {"path": "/ HTTP/1.0"}),
        ([], {"path": "/\tHTTP/1.0"}),
        ([("x", "a\x01b")], {}),
        ([("x", "a\x7fb")], {}),
    ]
    async with to_garden(portal, secure_origin, dialled) as (it, client, place):
        for fields, pseudo in odd:
            answer = await client.answer(client.ask(*fields, authority=place, **pseudo))
            assert (answer.status, answer.fields["cache-control"]) == (400, "no-store"), pseudo
            assert it.flows.requests[-1].comment.startswith("400: "), pseudo
        assert secure_origin.connections == 0
        assert (await client.answer(client.ask(authority=place, path="/é"))).status == 200
        await client.close()


async def test_trailers_to_an_http1_origin_cost_nothing_but_themselves(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled, written: Counter[str]
) -> None:
    async with to_garden(portal, secure_origin, dialled) as (_, client, place):
        stream = client.ask(method="POST", authority=place, ends=False)
        client.send(stream, b"hello")
        client.h2.send_headers(1, [("x-checksum", "1")], end_stream=True)
        client.flush()
        assert (await client.answer(stream)).status == 200
        assert stream.ended
        await until(lambda: secure_origin.received.endswith(b"\r\n5\r\nhello\r\n0\r\n\r\n"))
        assert (await client.answer(client.ask())).status == 511  # the others go on
        assert written["fault"] == 0
        await client.close()


async def test_nothing_is_kept_of_what_waited_for_a_garden_that_is_busy(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled
) -> None:
    secure_origin.answer = b""
    async with to_garden(portal, secure_origin, dialled) as (it, client, place):
        for _ in range(20):
            client.ask(authority=place)
        named = it.keeper.dialling.named
        await until(lambda: len(named) > 10)  # mitmproxy opens five at a time
        await client.close()
        await until(lambda: not it.keeper.connections and not secure_origin.open)

        def is_forgotten() -> bool:
            gc.collect()
            return not named

        await until(is_forgotten)


async def test_http1_inside_tls_is_answered_in_the_same_way(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        for alpn in ((), ("http/1.1",)):
            streams = await tls_streams(it, *alpn)
            request = f"GET / HTTP/1.1\r\nHost: {OUTSIDE}\r\n\r\n".encode()
            streams[1].write(request * 2 + request.replace(b"GET", b"POST").replace(
                b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"))  # fmt: skip
            found = answers(await until_closed(streams[0]))
            assert [answer.status for answer in found] == [511] * 3
            assert found[-1].fields["connection"] == "close"
            streams[1].close()
        for junk in (b"\n", b"G", b"SSH-2.0-x\r\n\r\n", bytes(range(256))):
            reader, writer = await tls_streams(it)
            writer.write(junk)
            await asyncio.sleep(0.05)
            writer.write(b"ET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.close()
            assert b" 200 " not in await until_closed(reader)
    assert origin.connections == 0


async def test_a_secure_web_proxy_answers_inside_its_own_tls(
    portal: StartPortal, origin: Origin
) -> None:
    """A browser may speak TLS to the proxy itself: HTTP/1, whatever it offers."""
    async with portal() as it:
        place = f"127.0.0.1:{origin.port}"
        reader, writer = await tls_streams(it, "http/1.1", sni="proxy.example.net")
        data = await say_tls(reader, writer, f"GET http://{place}/ HTTP/1.0\r\n\r\n".encode())
        assert [answer.status for answer in answers(data)] == [511]
    assert origin.connections == 0


async def say_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    return await say((reader, writer), data, ends=False)


async def test_a_connection_that_asks_nothing_more_is_closed(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        upload = client.ask(method="POST", ends=False)
        await client.answer(upload)
        for _ in range(2):
            client.send(upload, b"a")  # which extends no limit
            await asyncio.sleep(0.1)
            later(connections.PATIENCE / 2)
        async with asyncio.timeout(SOON):
            while not client.gone:
                client.send(upload, b"a")
                await asyncio.sleep(0.1)
        await until(lambda: len(it.keeper.connections) == 0)
        await client.close()


async def test_a_connection_has_a_hundred_answers_and_then_a_goodbye(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        for _ in range(99):
            assert (await client.answer(client.ask())).status == 511
        streams = [client.ask() for _ in range(5)]  # of which the first one is the hundredth
        for stream in streams:
            await client.answer(stream)
        await until(lambda: client.gone)
        assert [stream.status for stream in streams] == [511, 0, 0, 0, 0]
        assert {stream.reset for stream in streams[1:]} <= {
            None,
            h2.errors.ErrorCodes.REFUSED_STREAM,
        }
        assert client.goodbye is not None
        assert client.goodbye.error_code == h2.errors.ErrorCodes.NO_ERROR
        assert client.goodbye.last_stream_id == 199
        await until(lambda: len(it.keeper.connections) == 0)
        await client.close()
    assert origin.connections == 0


async def test_the_goodbye_waits_for_what_is_being_said_to_the_garden(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.2", secure_origin.port)
    place = f"{GARDEN}:{secure_origin.port}"
    async with portal(INTERCEPT + garden(place), mode="transparent", ssl_insecure=True) as it:
        with_names(it, GARDEN)
        client = await tls(it, "h2")
        length = ("content-length", "4")
        upload = client.ask(length, authority=place, method="POST", ends=False)
        for _ in range(99):
            assert (await client.answer(client.ask())).status == 511
        beyond = await client.answer(client.ask())
        assert (beyond.status, beyond.reset) == (0, h2.errors.ErrorCodes.REFUSED_STREAM)
        assert client.goodbye is None
        client.send(upload, b"data", ends=True)
        assert (await client.answer(upload)).status == 200
        await until(lambda: client.gone)
        assert client.goodbye is not None
        await client.close()
    assert secure_origin.received.endswith(b"data")


async def test_answers_that_a_client_does_not_take_in_are_not_cut_short(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    """A hundred pages are more than the window of 64 KiB that a client has for them at first."""
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        client.takes = False
        streams = [client.ask() for _ in range(100)]
        await until(lambda: client.untaken > 65_000)
        assert client.goodbye is None
        client.takes = True
        client.take()
        for stream in streams:
            await client.answer(stream)
        await until(lambda: client.gone)
        sizes = {len(stream.body) for stream in streams}
        assert {stream.status for stream in streams} == {511}
        assert sizes == {int(streams[0].fields["content-length"])}
        assert client.goodbye is not None
        await client.close()


async def test_each_credential_is_counted_inside_tls_too(
    portal: StartPortal, origin: Origin, dialled: Dialled, tmp_path: Path
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent", events=True) as it:
        client = await tls(it, "h2")
        secrets = [("cookie", "a=secret1"), ("authorization", "secret2")]
        assert (await client.answer(client.ask(*secrets))).status == 511
        await client.close()
    events_written = [
        json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()
    ]
    (refused,) = [it for it in events_written if it["event"] == "refused"]
    assert (refused["cookies"], refused["authorizations"]) == (1, 1)
    assert "secret" not in str(events_written)


async def test_an_answer_has_the_time_in_it(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        answer = await client.answer(client.ask())
        said = parsedate_to_datetime(answer.fields["date"]).timestamp()
        assert abs(time.time() - said) < 60
        await client.close()


async def test_streams_that_are_reset_at_once_end_the_connection_and_are_no_fault(
    portal: StartPortal, origin: Origin, dialled: Dialled, written: Counter[str]
) -> None:
    """Rapid reset (CVE-2023-44487), beyond the requests that a connection may have."""
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        client = await tls(it, "h2")
        for _ in range(300):
            number = client.h2.get_next_available_stream_id()
            head = [(":method", "GET"), (":scheme", "https"), (":authority", OUTSIDE)]
            client.h2.send_headers(number, [*head, (":path", "/")], end_stream=True)
            client.h2.reset_stream(number)
        client.flush()
        await until(lambda: client.gone)
        assert written["fault"] == 0
        await client.close()
    assert origin.connections == 0
