"""Whatever a stranger sends, it holds the event loop for a bounded time, and keeps little memory.

One table: the worst that is known for each parser. Another parser is some lines more.
"""

import asyncio
import gc
import socket
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import cast

import pytest
from mitmproxy import http
from mitmproxy.net.http import http1

from capport.core.cost import BESIDE, HELD, READING, WAITING
from capport.front.hello import HELLO
from capport.proxy.connections import MOST_A_CLIENT
from capport.proxy.internals import sockets
from conftest import SOON, Portal, StartPortal
from proxy.costs import Connect, Visited, all_within_bounds, client, http2, measured, tunnel
from proxy.hellos import extension, message, records, server_name
from proxy.http2_worst import ASKED, WORST
from proxy.wire import garden, until

type Make = Callable[[int], bytes]

UNKNOWN = "probes: strict\n"  # nothing else runs meanwhile
KNOWN = UNKNOWN + "clients:\n  - {address: 127.0.0.1, access: known}\n"
PUT = b"PUT http://192.0.2.80/ HTTP/1.1\r\nHost: 192.0.2.80\r\nContent-Length: 9\r\n\r\n"
POST = b"POST http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ASK = b"GET http://192.0.2.80/ HTTP/1.1\r\nHost: 192.0.2.80\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def filled(before: bytes, filling: bytes, after: bytes = b"") -> Make:
    """An input of so many bytes, with as much of `filling` as fits between the two."""

    def make(size: int) -> bytes:
        room = size - len(before) - len(after)
        return before + (filling * (room // len(filling) + 1))[:room] + after

    return make


def many(before: bytes, each: Callable[[int], bytes], after: bytes = b"") -> Make:
    """The same, of pieces that are made one by one, and are never cut."""

    def make(size: int) -> bytes:
        made = bytearray(before)
        for number in count():
            piece = each(number)
            if len(made) + len(piece) + len(after) > size:
                return bytes(made + after)
            made += piece
        raise AssertionError

    return make


# The same head is the worst for a client's request and for an origin's response.
HEADS: dict[str, tuple[bytes, bytes, bytes]] = {
    "blanks and a NUL": (b"X: a", b" ", b"\0\r\n\r\n"),
    "blanks and a VT": (b"X: a", b" ", b"\x0b\r\n\r\n"),
    "tabs and a FF": (b"X: a", b"\t", b"\x0c\r\n\r\n"),
    "blanks and a CR": (b"X: a", b" ", b"\rb\r\n\r\n"),
    "runs of blanks": (b"X: a", b"  b", b"\0\r\n\r\n"),
    "blanks before the value": (b"X:", b" ", b"\0\r\n\r\n"),
    "blanks alone": (b"X:", b" ", b"\r\n\r\n"),
    "blanks and no end": (b"X: a", b" ", b""),
    "one name": (b"", b"a", b"\r\n\r\n"),
    "one value": (b"X: ", b"a", b"\r\n\r\n"),
    "folded lines": (b"X: a\r\n", b" \r\n", b"\r\n"),
    "folded text": (b"X: a\r\n", b" b\r\n", b"\r\n"),
    "short fields": (b"", b"a:\r\n", b"\r\n"),
    "short fields, bare LF": (b"", b"a:\n", b"\n"),
    "cookies": (b"Cookie: a", b"; b=c", b"d\r\n\r\n"),
    "commas": (b"Connection: a", b",", b"\r\n\r\n"),
    "accepted": (b"Accept: a/b", b", a/b;q=.1", b"1\r\n\r\n"),
    "accepted, quoted": (b'Accept: a/b;c="', b'\\"', b"\r\n\r\n"),
    "languages": (b"Accept-Language: a", b", b;q=.1", b"1\r\n\r\n"),
    "codings": (b"Transfer-Encoding: a", b" ,", b"\r\n\r\n"),
    "a coding and blanks": (b"Transfer-Encoding: a", b" ", b"b\r\n\r\n"),
    "a folded coding and blanks": (b"Transfer-Encoding: a\r\n", b" \t", b"b\r\n\r\n"),
    "a length": (b"Content-Length: 1", b"0", b"\r\n\r\n"),
    "lengths": (b"Content-Length: 1", b",1", b"\r\n\r\n"),
}
LINES: dict[str, Make] = {
    "a method": filled(b"", b"A", b" / HTTP/1.1\r\n\r\n"),
    "a path": filled(b"GET /", b"a", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "slashes": filled(b"GET http:", b"/", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an authority": filled(b"GET http://", b"a.", b"/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "brackets": filled(b"CONNECT [", b":", b"]:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a port": filled(b"CONNECT a:", b"4", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a Host": filled(b"GET / HTTP/1.1\r\nHost: ", b"a.", b"\r\n\r\n"),
    "blanks": filled(b"GET ", b" ", b" HTTP/1.1\r\n\r\n"),
    "empty lines": filled(b"", b"\r\n"),
    "LFs": filled(b"", b"\n"),
    "CRs": filled(b"GET ", b"\r"),
    "requests": filled(b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "the shortest requests": filled(b"", b"G / HTTP/1.0\n\n"),
    "bytes": many(b"", lambda number: bytes([number * 7 % 256])),
}
BODIES: dict[str, tuple[bytes, bytes, bytes]] = {
    "an extension of blanks, then LF": (b"1;", b" ", b"\nb\r\na\r\n0\r\n\r\n"),
    "an extension of semicolons and blanks": (b"1", b" ;", b"\nb\r\na\r\n0\r\n\r\n"),
    "an extension": (b"1;", b"a", b"\r\na\r\n0\r\n\r\n"),
    "an extension without an end": (b"1;", b" ", b""),
    "a size": (b"", b"0", b"\r\n\r\n"),
    "a size of blanks": (b"1", b" ", b"\n\r\n\r\n"),
    "small chunks": (b"", b"1\r\na\r\n", b""),
    "small chunks, extended": (b"", b"1;a\r\na\r\n", b""),
    "trailers": (b"0\r\n", b"a:\r\n", b"\r\n"),
    "a trailer of blanks, then NUL": (b"0\r\nX: a", b" ", b"\0\r\n\r\n"),
    "a trailer of blanks, then VT": (b"0\r\nX: a", b"\t", b"\x0b\r\n\r\n"),
    "folded trailers": (b"0\r\nX: a\r\n", b" \r\n", b"\r\n"),
    "a trailer without an end": (b"0\r\nX: a", b" ", b""),
}
RESPONSES: dict[str, Make] = {
    "a status line": filled(b"HTTP/1.1 200 ", b"a", b"\r\n\r\n"),
    "a status line of blanks": filled(b"HTTP/1.1", b" ", b"200\r\n\r\n"),
    "a status": filled(b"HTTP/1.1 ", b"2", b" OK\r\n\r\n"),
    "a version": filled(b"HTTP/", b"1", b" 200 OK\r\n\r\n"),
    "no end": filled(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "interim responses": filled(b"", b"HTTP/1.1 103 \r\n\r\n"),
    "interim responses, short": filled(b"", b"HTTP/1.1 102\n\n"),
    "empty lines": filled(b"", b"\r\n"),
    "what nobody asked for": filled(OK + b"Content-Length: 0\r\n\r\n", b"\xff"),
}


def after(head: bytes, table: dict[str, tuple[bytes, bytes, bytes]]) -> dict[str, Make]:
    return {
        name: filled(head + first, filling, last) for name, (first, filling, last) in table.items()
    }


REQUESTS = {
    "lines": LINES,
    "heads": after(ASK, HEADS),
    "heads that name two places": after(ASK + b"Host: x\r\n", HEADS),
    "bodies": after(POST, BODIES),
}
ANSWERS = {"lines": RESPONSES, "heads": after(OK, HEADS), "bodies": after(CHUNKED, BODIES)}


@pytest.mark.parametrize("table", REQUESTS)
async def test_what_an_unknown_client_sends_holds_nobody_up(
    portal: StartPortal, table: str
) -> None:
    async with portal(UNKNOWN) as it:
        await all_within_bounds(it, client, REQUESTS[table], READING)


@pytest.mark.parametrize("table", REQUESTS)
async def test_what_a_known_client_sends_holds_nobody_up(portal: StartPortal, table: str) -> None:
    async with portal(KNOWN) as it:
        await all_within_bounds(it, client, REQUESTS[table], READING)


@pytest.mark.parametrize("table", ANSWERS)
@pytest.mark.parametrize("http", ["stream", "inspect"])
async def test_what_an_origin_sends_holds_nobody_up(
    portal: StartPortal, table: str, http: str
) -> None:
    async with portal(f"{KNOWN}http: {{known: {http}}}\n") as it:
        await all_within_bounds(it, Visited(), ANSWERS[table], READING)


def listed(name: Callable[[int], bytes]) -> Make:
    """A hello with a list of ALPN that has as many of these as fit."""

    def make(size: int) -> bytes:
        names = b"".join(map(name, range((size - 200) // len(name(0)))))
        return records(message(extension(16, len(names).to_bytes(2) + names)))

    return make


HELLOS: dict[str, Make] = {
    "protocols without a name": listed(lambda _: b"\0"),
    "protocols": listed(lambda _: b"\x02h2"),
    "extensions": lambda size: records(
        message(*(extension(kind, b"") for kind in range(100, 100 + (size - 200) // 4)))
    ),
    "one extension again and again": lambda size: records(
        message(*[extension(100, b"")] * ((size - 200) // 4))
    ),
    "names": lambda size: records(message(server_name(*[b""] * ((size - 200) // 3)))),
    "a name": lambda size: records(message(server_name(b"a" * (size - 200)))),
    "labels": lambda size: records(message(server_name(b"a." * (size // 2 - 100)))),
    "cipher suites": lambda size: records(message(ciphers=b"\x13\x01" * (size // 2 - 100))),
    "padding": lambda size: records(message(extension(21, bytes(size - 200)))),
    "records of one byte": lambda size: records(message(extension(21, bytes(size // 6 - 100))), 1),
    "records of 64 bytes": lambda size: records(message(extension(21, bytes(size - 8000))), 64),
    "no end": lambda size: records(message(extension(21, bytes(size - 200))))[:-1],
}


def read_whole(make: Make) -> Make:
    """The same hello, but not so large that it is refused for its size."""
    return lambda size: make(min(size, HELLO - 100))


HELLOS |= {f"{name}, read whole": read_whole(make) for name, make in HELLOS.items()}
ALERT = UNKNOWN + "tls: {connect: alert}\n"
INTERCEPT = UNKNOWN + "tls: {unknown: intercept, connect: alert}\n"


@pytest.mark.parametrize(("policy", "beside"), [(ALERT, READING), (INTERCEPT, BESIDE)])
@pytest.mark.parametrize("connect", [client, tunnel])
async def test_what_an_unknown_client_begins_tls_with_holds_nobody_up(
    portal: StartPortal, policy: str, beside: int, connect: Connect
) -> None:
    async with portal(policy) as it:
        await all_within_bounds(it, connect, HELLOS, beside)


async def test_what_an_unknown_client_says_in_http_2_holds_nobody_up(portal: StartPortal) -> None:
    table = {name: partial(worst, head=ASKED) for name, worst in WORST.items()}
    async with portal(INTERCEPT) as it:
        await all_within_bounds(it, http2, table, READING)


# An input that has no end; it is a little smaller, so that it is not refused for its size.
UNFINISHED: dict[str, tuple[Connect, Make]] = {
    "a head": (client, filled(ASK + b"X: ", b"a")),
    "a head with many fields": (client, filled(ASK, b"X: " + b"a" * 200 + b"\r\n")),
    "a head with a NUL": (client, filled(ASK + b"X: \0\n", b"a")),
    "a hello": (tunnel, lambda size: records(message(extension(21, bytes(size // 8))))[:-1]),
    "a header section": (http2, filled(b"\0\x3f\xff\x01\0\0\0\0\x01", b"\0" * 16)),
}


@pytest.mark.parametrize("kind", UNFINISHED)
async def test_what_is_not_complete_is_kept_once(portal: StartPortal, kind: str) -> None:
    connect, make = UNFINISHED[kind]
    async with portal(INTERCEPT if connect is http2 else ALERT) as it:
        await all_within_bounds(it, connect, {kind: lambda size: make(size - 1000)}, WAITING)


@pytest.mark.parametrize("how", ["the client leaves", "it sends no more", "the garden is down"])
async def test_connections_that_end_together_hold_nobody_up(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    down, dialled = asyncio.Event(), 0

    async def dead(*_: object, **__: object) -> None:
        nonlocal dialled
        dialled += 1
        await down.wait()
        raise ConnectionRefusedError

    def connect(it: Portal) -> list[socket.socket]:
        peers = []
        for _ in range(MOST_A_CLIENT):
            peers.append(socket.create_connection(("127.0.0.1", it.port), timeout=SOON))
            peers[-1].sendall(PUT)
        return peers

    def end(peers: list[socket.socket]) -> None:
        for peer in peers:
            if how == "the client leaves":
                sockets.reset_at_close(peer)
            elif how == "it sends no more":
                peer.shutdown(socket.SHUT_WR)
                continue
            else:
                assert peer.recv(12) == b"HTTP/1.1 502"
            peer.close()

    monkeypatch.setattr(asyncio, "open_connection", dead)
    async with portal(f"{UNKNOWN}{garden('192.0.2.80:80')}") as it:
        peers = await asyncio.to_thread(connect, it)
        await until(lambda: dialled == MOST_A_CLIENT)
        async with measured() as found:
            if how == "the garden is down":
                down.set()
            await asyncio.to_thread(end, peers)
            await until(lambda: not len(it.keeper.connections))
        assert found.busy < HELD
        for peer in peers:
            peer.close()


async def test_a_message_that_was_read_leaves_no_garbage(portal: StartPortal) -> None:
    def read() -> http.Response:
        return http1.read_response_head([b"HTTP/1.1 200 OK", b"X: a"])

    async with portal():
        read()
        gc.collect()
        gc.disable()
        try:
            read()
            assert gc.collect() == 0
        finally:
            gc.enable()
        with pytest.raises(TypeError, match="for timestamp_start, but got"):
            http.Response(b"", 200, b"", http.Headers(), None, None, cast(float, "now"), None)


async def test_no_collection_walks_what_was_loaded_at_the_start(portal: StartPortal) -> None:
    gc.unfreeze()
    async with portal():
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())
