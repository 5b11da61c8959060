"""CONNECT from an unknown client: refused as its kind understands, or a tunnel to one place."""

import asyncio
import json
import socket
import ssl
from pathlib import Path

import pytest

from capport.proxy import connections
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.bypasses import INSIDE_A_TUNNEL
from proxy.hellos import trusting_none
from proxy.wire import (
    GARDEN,
    OUTSIDE,
    Dialled,
    Streams,
    answers,
    garden,
    later,
    say,
    until,
    with_names,
)

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CURL = "curl/8.14.1"


def connect(place: str, agent: str = CURL, more: str = "") -> bytes:
    return (
        f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: {agent}\r\n{more}\r\n".encode()
    )


async def tunnel(it: Portal, place: str, agent: str = CURL) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    writer.write(connect(place, agent))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
    assert head.startswith(b"HTTP/1.1 200 "), head
    return reader, writer


@pytest.mark.parametrize(
    ("way", "agent", "opens"),
    [
        ("auto", CURL, False),
        ("auto", BROWSER, True),
        ("auto", "", False),
        ("auto", f"curl {BROWSER}", False),
        ("answer", BROWSER, False),
        ("alert", CURL, True),
    ],
)
async def test_a_connect_is_refused_as_the_policy_says(
    portal: StartPortal, origin: Origin, way: str, agent: str, opens: bool
) -> None:
    place = f"127.0.0.1:{origin.port}"
    async with portal(f"tls: {{connect: {way}}}\n") as it:
        if not opens:
            data = await it.talk(connect(place, agent))
            (answer,) = answers(data)
            assert (answer.status, answer.fields["connection"]) == (511, "close")
            assert b"https://login.example.net/" in answer.body
        else:
            _, writer = await tunnel(it, place, agent)
            trust = trusting_none()
            with pytest.raises(ssl.SSLError, match=r"(?i)alert access denied"):
                await asyncio.wait_for(writer.start_tls(trust, server_hostname=OUTSIDE), SOON)
            writer.close()
    assert origin.connections == 0


async def test_refused_connects_do_not_pile_up(portal: StartPortal, origin: Origin) -> None:
    async with portal() as it:
        sent = connect(f"127.0.0.1:{origin.port}") * 3
        data = await say(await asyncio.open_connection("127.0.0.1", it.port), sent, ends=False)
        assert [answer.status for answer in answers(data)] == [511]
    assert origin.connections == 0


@pytest.mark.parametrize(
    "place",
    [
        "www.example.org",
        "www.example.org:",
        "www.example.org:0",
        "www.example.org:99999",
        "www.example.org:OTHER",
        "user@www.example.org:PORT",
        "http://www.example.org:PORT/",
        "/",
        "*",
        "[::1]:PORT",
        "::1:PORT",
        "127.1:PORT",
        "127.0.0.1:PORT",
        "0:PORT",
        "www.example.org:PORT/",
        "outside.example.com:PORT",
        "www.example.org.:OTHER",
    ],
)
@pytest.mark.parametrize("agent", [CURL, BROWSER])
async def test_no_tunnel_leads_anywhere_but_to_a_name_and_port_of_the_garden(
    portal: StartPortal, origin: Origin, place: str, agent: str
) -> None:
    async with Origin().serving() as other:
        place = place.replace("PORT", str(origin.port)).replace("OTHER", str(other.port))
        async with portal(garden(f"{GARDEN}:{origin.port}")) as it:
            with_names(it, GARDEN, OUTSIDE)
            request = connect(place, agent).replace(f"Host: {place}".encode(), b"Host: x")
            first = (await it.ask(request)).split(b" ")[1]
            assert first in ({b"511", b"400"} if agent == CURL else {b"511", b"400", b"200"})
            streams = await asyncio.open_connection("127.0.0.1", it.port)
            inside = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            data = await say(streams, [request, inside])
            assert b" 200 OK" not in data
        assert (origin.connections, other.connections) == (0, 0)


async def test_a_tunnel_to_the_garden_passes_tls_unopened(
    portal: StartPortal, origin: Origin
) -> None:
    place = f"{GARDEN}:{origin.port}"
    origin.answer = b""
    async with portal(garden(place)) as it:
        with_names(it, GARDEN)
        for name in (GARDEN.upper() + ".", GARDEN):
            _, writer = await tunnel(it, f"{name}:{origin.port}")
            hello = asyncio.create_task(writer.start_tls(trusting_none(), server_hostname=GARDEN))
            await until(lambda: origin.received.startswith(b"\x16\x03\x01"))
            hello.cancel()
            origin.received = b""
            writer.close()
    assert origin.connections == 2


async def test_what_comes_with_the_connect_is_the_tunnels(
    portal: StartPortal, origin: Origin
) -> None:
    place = f"{GARDEN}:{origin.port}"
    async with portal(garden(place)) as it:
        with_names(it, GARDEN)
        request = f"GET /early HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()
        data = await say(
            await asyncio.open_connection("127.0.0.1", it.port),
            connect(place) + request,
            ends=False,
        )
        assert [answer.status for answer in answers(data, "CONNECT")] == [200, 200]
    assert origin.heads == [f"GET /early HTTP/1.1\r\nHost: {place}\r\nConnection: close".encode()]


async def test_by_auto_a_connect_to_port_80_is_answered_inside(
    portal: StartPortal, origin: Origin
) -> None:
    """undici's ProxyAgent (Node's fetch) opens one, and hides the answer to a CONNECT."""
    async with portal() as it:
        reader, writer = await tunnel(it, "192.0.2.80:80", "undici")
        writer.write(b"GET / HTTP/1.1\r\nHost: 192.0.2.80\r\n\r\n")
        assert b" 511 " in await one_answer(reader)
        writer.close()
    async with portal("tls: {connect: answer}\n") as it:
        (answer,) = answers(await it.talk(connect("192.0.2.80:80", "undici")), "CONNECT")
        assert answer.status == 511
    assert origin.connections == 0


@pytest.mark.parametrize("name", INSIDE_A_TUNNEL)
async def test_nothing_leaves_by_a_tunnel_that_leads_nowhere(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("capport.proxy.layers.lingering.STAGE", 0.2)
    place = f"127.0.0.1:{origin.port}"
    async with portal() as it:
        reader, writer = await tunnel(it, place, BROWSER)
        writer.write(INSIDE_A_TUNNEL[name].replace(b"ORIGIN", place.encode()))
        data = b""
        if name in {"ssh", "one byte", "h2c"}:  # which may still become a request
            await asyncio.sleep(0.1)
            later(connections.PATIENCE)
        elif name in {"a request", "absolute", "a websocket"}:  # after which there may be more
            data = await one_answer(reader)
            later(connections.PATIENCE)
        data += await until_closed(reader)
        expected = {"ssh": [], "one byte": [], "socks": [400], "garbage": [400]}
        if name == "h2c":  # SETTINGS (RFC 9113 section 6.5), and nothing of HTTP/1
            assert (data[3:5], b"HTTP/1" in data) == (b"\x04\x00", False)
            return
        found = [answer.status for answer in answers(data)]
        assert found == expected.get(name, [511])
    assert origin.connections == 0


async def test_plain_http_in_a_tunnel_is_decided_like_any_other(
    portal: StartPortal, origin: Origin
) -> None:
    async with Origin().serving() as other:
        place = f"{GARDEN}:{origin.port}"
        async with portal(garden(place)) as it:
            with_names(it, GARDEN, OUTSIDE)
            # In a tunnel to the garden, a request goes there, with the garden's name as its Host.
            reader, writer = await tunnel(it, place)
            writer.write(f"GET /a HTTP/1.1\r\nHost: {OUTSIDE}:{other.port}\r\n\r\n".encode())
            assert b" 200 OK" in await one_answer(reader)
            writer.close()
            # A CONNECT to elsewhere, but with the garden's name inside, goes to the garden.
            reader, writer = await tunnel(it, f"192.0.2.80:{origin.port}", BROWSER)
            writer.write(f"GET /b HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert b" 200 OK" in await one_answer(reader)
            assert await until_closed(reader) == b""
            writer.close()
        assert other.connections == 0
    assert origin.heads == [
        f"GET /a HTTP/1.1\r\nHost: {place}\r\nConnection: close".encode(),
        f"GET /b HTTP/1.1\r\nHost: {place}\r\nConnection: close".encode(),
    ]


async def test_a_server_that_speaks_first_is_not_even_asked(
    portal: StartPortal,
) -> None:
    async with Origin(greeting=b"220 mail.example.com\r\n").serving() as origin:
        async with portal() as it:
            reader, _ = await tunnel(it, f"127.0.0.1:{origin.port}", BROWSER)
            later(connections.PATIENCE)
            assert await until_closed(reader) == b""
        assert origin.connections == 0


@pytest.mark.parametrize("method", ["CONNECT", "connect"])
async def test_connect_in_transparent_mode_opens_no_tunnel(
    portal: StartPortal, origin: Origin, dialled: Dialled, method: str
) -> None:
    dialled("127.0.0.1", origin.port)
    place = f"127.0.0.1:{origin.port}"
    async with portal("tls: {connect: alert}\n", mode="transparent") as it:
        request = connect(place, BROWSER).replace(b"CONNECT", method.encode())
        data = await say(await asyncio.open_connection("127.0.0.1", it.port), request)
        assert [answer.status for answer in answers(data)] == [511]
    assert origin.connections == 0


async def test_a_connect_is_seen_with_its_verdict_and_without_its_credentials(
    portal: StartPortal, origin: Origin
) -> None:
    place, secret = f"127.0.0.1:{origin.port}", "Proxy-Authorization: Basic c2VjcmV0\r\n"
    async with portal() as it:
        seen: list[bytes] = []

        class Watching:
            def http_connect(self, flow: object) -> None:
                seen.append(repr(flow).encode() + repr(getattr(flow, "request", None)).encode())

        it.master.addons.add(Watching())
        await it.talk(connect(place, CURL, secret))
        (flow,) = it.flows.requests
        assert flow.request.method == "CONNECT"
        assert "has no session" in flow.comment
        assert flow.metadata["portal"]["credentials"] == {"proxy-authorization": 1}
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(connect(place, BROWSER, secret))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert b"c2VjcmV0" not in b"".join([*it.flows.shown, *seen])
    assert origin.connections == 0


async def test_a_known_clients_connect_that_fails_ends_its_connection(portal: StartPortal) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        head = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (port, port)
        async with portal("clients:\n  - {address: 127.0.0.1, access: known}\n") as it:
            answer = await it.talk(head * 2)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(("agent", "status"), [(CURL, 511), (BROWSER, None)])
async def test_what_a_connect_offers_to_prove_itself_is_counted_either_way(
    portal: StartPortal, origin: Origin, tmp_path: Path, agent: str, status: int | None
) -> None:
    place = f"127.0.0.1:{origin.port}"
    offered = (
        "Cookie: a=secret1\r\nAuthorization: Basic secret2\r\nProxy-Authorization: x secret3\r\n"
    )
    async with portal(events=True) as it:
        data = await it.ask(connect(place, agent, offered))
        assert (b" 511 " in data) == (status == 511)
        assert not [shown for shown in it.flows.shown if b"secret" in shown]
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (refused,) = [it for it in written if it["event"] == "refused"]
    assert refused.get("status") == status
    assert (refused["method"], refused["host"]) == ("CONNECT", "127.0.0.1")
    assert (refused["cookies"], refused["authorizations"]) == (1, 2)
    assert "secret" not in str(written)
    assert origin.connections == 0


async def test_a_tunnel_that_offers_nothing_causes_one_event_by_what_is_in_it(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    async with portal(events=True) as it:
        streams = await tunnel(it, f"127.0.0.1:{origin.port}", BROWSER)
        with pytest.raises(ssl.SSLError):
            await asyncio.wait_for(streams[1].start_tls(trusting_none()), SOON)
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [it["event"] for it in written if it["event"] in {"refused", "tls"}] == ["tls"]
