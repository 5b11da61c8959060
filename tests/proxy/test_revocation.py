"""A client's connections end with its session, and after a grant requests are forwarded."""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from mitmproxy import ctx

from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.proxy import connections
from capport.stores import Watcher
from capport.stores.memory import MemoryStore
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.hellos import over_tls
from proxy.http2 import INTERCEPT, tls
from proxy.tls import TlsOrigin, connected
from proxy.under_way import (
    a_running_download,
    a_running_upload,
    a_websocket,
    kept_alive,
    raw_tcp,
    reached,
)
from proxy.wire import GARDEN, OUTSIDE, Dialled, Streams, garden, later, until, with_names

WAYS = [kept_alive, a_running_download, a_running_upload, a_websocket, raw_tcp]
ENDINGS = ["revoked", "over", "blocked"]


def end(it: Portal, how: str) -> None:
    """Ends the session, at once or soon."""
    if how == "revoked":
        it.revoke("127.0.0.1")
    elif how == "over":
        it.grant("127.0.0.1", 0.2)
    else:
        file = it.master.options.portal_policy
        with Path(file).open("a") as policy:
            policy.write("clients:\n  - {address: 127.0.0.1, access: blocked}\n")


@contextlib.asynccontextmanager
async def known(portal: StartPortal) -> AsyncIterator[Portal]:
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1")
        yield it


async def assert_ended(it: Portal, streams: Streams) -> None:
    await until_closed(streams[0])
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
        end(it, how)
        await assert_ended(it, streams)
        await until(lambda: not origin.open)


async def test_a_session_that_ends_while_the_portal_starts_takes_its_connections_with_it(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, watch, opened = ClientId("127.0.0.1"), MemoryStore.watch, list[socket.socket]()
    origin.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000

    def late(store: MemoryStore, watcher: Watcher) -> Callable[[], None]:
        """The client comes and is revoked before the portal watches; mitmproxy listens already."""
        port = ctx.master.addons.get("proxyserver").listen_addrs()[0][1]
        now, received = clock.now(), b""
        store.put(Session(me, now, now + 3600))
        opened.append(socket.create_connection(("127.0.0.1", port), SOON))
        opened[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"xxxx" not in received:
            received += opened[0].recv(4096) or pytest.fail("it was not served")
        store.revoke(me)
        return watch(store, watcher)

    monkeypatch.setattr(MemoryStore, "watch", late)
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        await assert_ended(it, await asyncio.open_connection(sock=opened[0]))


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
        end(it, how)
        await until_closed(streams[0])
        streams[1].close()


@pytest.mark.parametrize("how", ["revoked", "the garden is less"])
async def test_a_stream_to_the_login_server_keeps_no_other_open(
    portal: StartPortal, secure_origin: Origin, dialled: Dialled, tmp_path: Path, how: str
) -> None:
    dialled("127.0.0.1", secure_origin.port)
    login, place = (f"{name}:{secure_origin.port}" for name in ("login.example.net", GARDEN))
    policy = f"login_url: https://{login}/\n{INTERCEPT}"
    async with portal(policy + garden(place), mode="transparent", ssl_insecure=True) as it:
        with_names(it, GARDEN)
        client = await tls(it, "h2")
        assert (await client.answer(client.ask(authority=place))).status == 200
        if how == "revoked":
            it.grant("127.0.0.1")
            place = f"{OUTSIDE}:{secure_origin.port}"
        secure_origin.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\nbegun"
        download = client.ask(authority=place)
        await until(lambda: download.status == 200)
        assert (await client.answer(client.ask(authority=login))).status == 502  # no such name
        assert not download.ended
        if how == "revoked":
            it.revoke("127.0.0.1")
        else:
            (tmp_path / "policy.yaml").write_text(policy)
        await until(lambda: client.gone)
        await until(lambda: not secure_origin.open)
        await client.close()


async def test_a_session_that_is_extended_cuts_nothing(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1")
        reader, writer = await raw_tcp(it, origin)
        (entry,) = it.keeper.connections.entries.values()
        before = entry.until
        it.grant("127.0.0.1", 60)
        await until(lambda: entry.until != before)
        shorter = entry.until
        it.grant("127.0.0.1")
        await until(lambda: entry.until != shorter)
        now = it.gate.now
        monkeypatch.setattr(it.gate, "now", lambda: now() + 61)
        later(61)
        await asyncio.sleep(0.1)
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
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 10 * SOON)  # so that this does not end it
    dialled("127.0.0.1", origin.port)
    target = f"http://127.0.0.1:{origin.port}/" if mode == "regular" else "/"
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{origin.port}\r\n\r\n".encode()
    async with portal(mode=mode) as it:
        reader, writer = await connected(it, "transparent", 0)
        writer.write(request)
        assert b" 511 " in await one_answer(reader)
        it.grant("127.0.0.1")
        await until_closed(reader)
        writer.close()
        assert (await it.ask(request)).startswith(b"HTTP/1.1 200 ")
    assert origin.connections == 1


async def test_a_session_store_that_cannot_be_used_is_told(
    portal: StartPortal, written: Counter[str], tmp_path: Path
) -> None:
    store = tmp_path / "state" / "sessions.db"
    store.parent.mkdir()
    async with portal(events=True, sessions=str(store)) as it:
        store.rename(tmp_path / "away.db")
        await until(lambda: written["fault"] == 1)
        answer = await it.ask(
            b"GET http://www.example.org/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 511 ")
        (tmp_path / "away.db").rename(store)
        await until(lambda: it.gate.store.fault is None)
        assert written["fault"] == 1
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (event,) = [line for line in map(json.loads, lines) if line["event"] == "fault"]
    assert f"{store}" in event["what"]
