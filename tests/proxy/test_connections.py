"""The record of open connections."""

import asyncio
from collections.abc import Callable

import pytest
from mitmproxy import connection
from mitmproxy.proxy import events
from mitmproxy.proxy.mode_specs import ProxyMode

from capport.core.client import Client, parse_address
from capport.core.place import Place
from capport.core.policy import Policy
from capport.gate import Gate
from capport.proxy.addon import SILENT
from capport.proxy.connections import GARDEN, Connections
from capport.proxy.internals import sockets
from capport.stores.memory import MemoryStore
from conftest import StartPortal
from proxy.wire import later

CLIENT = Client(parse_address("192.0.2.7"))


def gate() -> Gate:
    place = Place("login.example.net", 443)
    policy = Policy(login_url="https://login.example.net/", login_place=place)
    return Gate(policy, MemoryStore())


def connect() -> connection.Client:
    return connection.Client(peername=("192.0.2.7", 40000), sockname=("198.51.100.2", 80))


async def test_a_port_that_is_used_again_is_another_connection() -> None:
    books = Connections(gate(), lambda _: None)
    first, second = connect(), connect()
    books.opened(first, CLIENT)
    books.opened(second, CLIENT)
    assert len(books) == 1
    books.closed(first)  # reported late, and nothing about the second
    assert len(books) == 1
    books.closed(second)
    assert len(books) == 0
    await asyncio.sleep(0)


async def test_the_hour_in_the_garden_begins_again_after_a_time_as_a_known_client() -> None:
    """A client that signs out on an older connection still gets the answer."""
    books, conn = Connections(gate(), lambda _: None), connect()
    books.opened(conn, CLIENT)
    (entry,) = books.entries.values()
    books.let_through(conn, books.gate.policy.login_place)
    books.let_through(conn, None)
    later(2 * GARDEN)
    books.let_through(conn, books.gate.policy.login_place)
    await asyncio.sleep(0)
    assert not entry.over
    assert entry.leaves is not None
    assert entry.leaves > asyncio.get_running_loop().time()
    books.closed(conn)


async def test_what_has_been_read_of_a_connection_that_is_aborted_is_not_forwarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched: list[Callable[[events.DataReceived], bool]] = []
    monkeypatch.setattr(sockets, "watch", lambda _, is_in_time, __: watched.append(is_in_time))
    books, conn = Connections(gate(), lambda _: None), connect()
    books.opened(conn, CLIENT)
    (entry,) = books.entries.values()
    books.let_through(conn, None)
    (is_in_time,) = watched
    late = events.DataReceived(conn, b"late")
    assert is_in_time(late)
    books.abort_connection(conn)
    assert not is_in_time(late)
    assert entry.all_dialled.is_set()
    books.closed(conn)
    assert len(books) == 0


async def test_aborting_a_connection_does_not_end_a_later_one_from_the_same_port() -> None:
    books, first, second = Connections(gate(), lambda _: None), connect(), connect()
    books.opened(first, CLIENT)
    books.opened(second, CLIENT)
    books.abort_connection(first)
    (entry,) = books.entries.values()
    assert not entry.over
    books.closed(second)


async def test_nothing_is_kept_of_a_connection_that_has_ended() -> None:
    books = Connections(gate(), lambda _: None)
    for port in range(40000, 40100):
        conn = connection.Client(peername=("192.0.2.7", port), sockname=("198.51.100.2", 80))
        books.opened(conn, CLIENT)
        kept = [it for it in vars(books).values() if isinstance(it, dict)]
        assert any(kept)
        books.closed(conn)
    assert len(books) == 0
    assert not any(kept)


async def test_an_unknown_clients_datagrams_make_no_connection(portal: StartPortal) -> None:
    """In mode tun, each source port would make one."""
    conn = connection.Client(
        peername=("192.0.2.7", 40000),
        sockname=("198.51.100.2", 443),
        transport_protocol="udp",
        proxy_mode=ProxyMode.parse("tun"),
    )
    async with portal() as it:
        it.keeper.client_connected(conn)
        assert conn.error == SILENT
        assert len(it.keeper.connections) == 0
        conn.error = None
        it.grant("192.0.2.7")
        it.keeper.client_connected(conn)
        assert conn.error is None
        assert len(it.keeper.connections) == 1
        it.keeper.connections.closed(conn)
