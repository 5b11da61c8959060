"""The login server bears what is thrown at it: too many connections, slow ones, nonsense."""

import asyncio
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capport.portal import server
from portal.house import House, house


async def _connect(h: House, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", h.port, local_addr=(address, 0))


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.5):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def test_one_client_cannot_take_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_A_CLIENT", 5)
    async with house() as h:
        held = [await _connect(h, "127.0.0.2") for _ in range(5)]
        reader, writer = await _connect(h, "127.0.0.2")
        assert await _is_closed(reader)
        writer.close()
        assert (await h.browser("127.0.0.3").get("/")).status == 200
        for _, each in held:
            each.close()
        for _ in range(200):
            try:
                assert (await h.browser("127.0.0.2").get("/")).status == 200
            except (ConnectionError, OSError):
                await asyncio.sleep(0.02)
            else:
                return
        raise AssertionError("its places were not freed")


async def test_all_clients_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    async with house() as h:
        held = [await _connect(h, f"127.0.0.{n}") for n in (2, 3, 4)]
        reader, writer = await _connect(h, "127.0.0.5")
        assert await _is_closed(reader)
        for one in (writer, *(each for _, each in held)):
            one.close()


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
                one.settimeout(5)
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
