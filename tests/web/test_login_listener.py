"""The login server withstands too many connections, slow ones and nonsense."""

import asyncio
import contextlib
import select
import socket
from asyncio import Future
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.iostream import IOStream

from capport.web import login_listener
from capport.web.accepting import AT_ONCE, patient
from conftest import SOON
from login.house import House, house, policy, until, without_tornados_limits
from proxy.wire import later


async def _connect(h: House, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", h.port, local_addr=(address, 0))


def nothing_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches time limits off: a connection is closed only to make room for others."""
    without_tornados_limits(monkeypatch)
    monkeypatch.setattr(login_listener, "PATIENCE", 3600.0)


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(SOON):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def _all_wait(h: House, address: str, count: int) -> bool:
    """Whether the server has that many connections from there, and answers none of them."""
    assert h.listener.http
    there = [one for one in h.listener.http.open.values() if one.peer == address]
    return len(there) == count and all(one.is_idle for one in there)


async def _gets_a_page(h: House, address: str) -> bool:
    return (await h.browser(address).get("/")).status == 200


@contextlib.contextmanager
def _small_buffers() -> Iterator[None]:
    """Gives listening sockets small buffers in the kernel, which each connection inherits."""

    def small(sockets: Iterable[socket.socket]) -> list[socket.socket]:
        made = patient(sockets)
        for one in made:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(login_listener, "patient", small)
        yield


async def test_one_client_cannot_take_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_listener, "CONNECTIONS_A_CLIENT", 5)
    nothing_ends_by_itself(monkeypatch)
    async with house() as h:
        held = [await _connect(h, "127.0.0.2") for _ in range(5)]
        reader, writer = await _connect(h, "127.0.0.2")
        assert await _is_closed(reader)
        writer.close()
        assert (await h.browser("127.0.0.3").get("/")).status == 200
        for _, each in held:
            each.close()
        await until(lambda: _gets_a_page(h, "127.0.0.2"), "a place for it")


async def test_many_clients_at_once_are_taken_a_few_in_each_pass_of_the_event_loop() -> None:
    """Otherwise they would hold the event loop, on which known clients wait too."""
    get = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def most_in_a_pass(count: Callable[[], int]) -> int:
        most = before = 0
        async with asyncio.timeout(SOON):
            while before < len(clients):
                await asyncio.sleep(0)
                most, before = max(most, count() - before), count()
        return most

    async with house() as h:
        clients = [
            socket.create_connection(("127.0.0.1", h.port), source_address=(f"127.0.2.{n}", 0))
            for n in range(1, 41)
        ]
        server = h.listener.http
        assert server
        assert await most_in_a_pass(lambda: len(server.open)) <= AT_ONCE
        for client in clients:
            client.sendall(get)
        assert await most_in_a_pass(lambda: len(select.select(clients, [], [], 0)[0])) == 1
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()


async def test_the_client_with_most_connections_gives_one_up_for_a_newcomer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login_listener, "CONNECTIONS", 6)
    nothing_ends_by_itself(monkeypatch)
    async with house() as h:
        few = [await _connect(h, "127.0.0.4") for _ in range(2)]
        many = [await _connect(h, "127.0.0.2") for _ in range(4)]
        await _is_answered(*many[0])
        await until(lambda: _all_wait(h, "127.0.0.4", 2), "two that wait")
        await until(lambda: _all_wait(h, "127.0.0.2", 4), "four that wait")
        assert (await h.browser("127.0.0.5").get("/")).status == 200
        assert await _is_closed(many[0][0])
        for reader, writer in (*few, *many[1:]):
            await _is_answered(reader, writer)
        for _, writer in (*few, *many):
            writer.close()


async def test_many_addresses_with_few_connections_each_do_not_close_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login_listener, "CONNECTIONS", 90)
    async with house() as h:
        held = [await _connect(h, f"127.0.1.{n % 18 + 1}") for n in range(18 * 8)]
        for number in range(2, 6):
            assert (await h.browser(f"127.0.0.{number}").get("/")).status == 200
        for _, writer in held:
            writer.close()


async def test_what_is_being_answered_stays_where_something_idle_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_listener, "CONNECTIONS", 3)
    nothing_ends_by_itself(monkeypatch)
    logo = b"<svg xmlns='http://www.w3.org/2000/svg'/>" + b" " * 1_000_000
    async with _with_logo(tmp_path, logo) as h:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.bind(("127.0.0.2", 0))
        slow.connect(("127.0.0.1", h.port))
        busy = await asyncio.open_connection(sock=slow, limit=1024)
        busy[1].write(b"GET /logo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        start = await busy[0].readexactly(12)  # more than the buffers hold is still to come
        idle = [await _connect(h, "127.0.0.2") for _ in range(2)]
        assert (await h.browser("127.0.0.5").get("/")).status == 200
        assert await _is_closed(idle[0][0])
        assert start == b"HTTP/1.1 200"
        assert (await busy[0].read(-1)).endswith(logo)
        for _, writer in (busy, *idle):
            writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n",
    ],
)
async def test_a_client_that_sends_no_whole_request_in_time_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(login_listener, "PATIENCE", 0.3)
    without_tornados_limits(monkeypatch)
    async with house() as h:
        reader, writer = await _connect(h, "127.0.0.2")
        writer.write(sent)

        async def drip() -> None:
            while True:
                writer.write(b"x" if sent else b"")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(SOON):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        dripping.cancel()
        writer.close()


async def test_a_client_that_has_sent_a_request_may_send_the_next_one_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login_listener, "IDLE", 10 * login_listener.PATIENCE)
    async with house() as h:
        reader, writer = await _connect(h, "127.0.0.2")
        await _is_answered(reader, writer)
        later(2 * login_listener.PATIENCE)
        assert await _gets_a_page(h, "127.0.0.3")  # by then every timer that was due has run
        await _is_answered(reader, writer)
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_cut_off(tmp_path: Path) -> None:
    async with _with_logo(tmp_path, b"x" * 1_000_000) as h:
        slow = _asks_for_the_logo(h)
        assert await asyncio.to_thread(slow.recv, 12) == b"HTTP/1.1 200"
        later(login_listener.TAKING)
        await until(lambda: _open_at(h) == 0, "the end of its connection")
        slow.close()


async def test_a_client_that_takes_its_answer_slowly_keeps_little_of_it_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsent = Counter[IOStream]()
    write, write_to_fd = IOStream.write, IOStream.write_to_fd

    def written(stream: IOStream, data: bytes | memoryview) -> Future[None]:
        unsent[stream] += len(data)
        return write(stream, data)

    def sent(stream: IOStream, data: memoryview) -> int:
        size = write_to_fd(stream, data)
        unsent[stream] -= size
        return size

    monkeypatch.setattr(IOStream, "write", written)
    monkeypatch.setattr(IOStream, "write_to_fd", sent)
    async with _with_logo(tmp_path, b"x" * 1_000_000) as h:
        slow = [_asks_for_the_logo(h) for _ in range(10)]
        await until(lambda: _open_at(h) == 10, "ten connections")
        await until(lambda: len(unsent) == 10 and all(unsent.values()), "what is to be sent")
        for _ in range(3):  # in which the event loop would have gone on with each of them
            assert await _gets_a_page(h, "127.0.0.3")
        waiting = max(unsent.values())
        for each in slow:
            each.close()
        assert waiting <= 32 * 1024


async def test_no_request_is_answered_after_the_end_of_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[object] = []
    in_turn = login_listener.Server.in_turn

    def counted(server: login_listener.Server, answer: Callable[[], None]) -> None:
        answered.append(answer)
        in_turn(server, answer)

    monkeypatch.setattr(login_listener.Server, "in_turn", counted)
    async with _with_logo(tmp_path, b"x" * 1_000_000) as h:
        slow = _asks_for_the_logo(h)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert await asyncio.to_thread(slow.recv, 12) == b"HTTP/1.1 200"
        assert h.listener.http
        (stream,) = h.listener.http.open
        slow.close()
        await until(lambda: _open_at(h) == 0, "the end of its connection")
        assert stream.closed()
        assert len(answered) <= 2


@contextlib.asynccontextmanager
async def _with_logo(folder: Path, logo: bytes) -> AsyncIterator[House]:
    """A login server whose connections have small buffers in the kernel, as on a slow link."""
    (folder / "login").mkdir()
    (folder / "login" / "logo.png").write_bytes(logo)
    with _small_buffers():
        async with house(policy(file=folder / "policy.yaml")) as h:
            yield h


def _asks_for_the_logo(h: House) -> socket.socket:
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.bind(("127.0.0.2", 0))
    slow.connect(("127.0.0.1", h.port))
    slow.sendall(b"GET /logo HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return slow


def _open_at(h: House) -> int:
    assert h.listener.http
    return len(h.listener.http.open)


async def _is_answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    async with asyncio.timeout(SOON):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 ")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=300)
    | st.binary(max_size=200).map(lambda b: b"GET / HTTP/1.1\r\n" + b + b"\r\n\r\n")
    | st.binary(max_size=200).map(
        lambda b: (
            b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(b) + b
        )
    )
)
def test_no_bytes_let_anybody_on_or_bring_it_down(sent: bytes) -> None:
    async def send() -> None:
        async with house() as h:
            with socket.socket() as one:
                one.bind(("127.0.0.2", 0))
                one.connect(("127.0.0.1", h.port))
                one.sendall(sent)
                one.shutdown(socket.SHUT_WR)
                one.settimeout(SOON)
                await asyncio.to_thread(_drain, one)
            assert h.session() is None
            assert (await h.browser().get("/")).status == 200

    asyncio.run(send())


def _drain(one: socket.socket) -> None:
    try:
        while one.recv(65536):
            pass
    except (ConnectionError, TimeoutError):
        pass
