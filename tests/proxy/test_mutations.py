"""Whatever bytes an unknown client sends, nothing reaches an origin, and the connection ends."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import mitmproxy.platform
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SOON, Origin, running_portal
from proxy.bypasses import SEEDS, SPICE, mutated
from proxy.wire import GARDEN, garden, with_names

PATIENCE = 1.0  # seconds for an unknown client's request, here

SETTINGS = b"\0\0\x2a\x04"  # what HTTP/2 begins with (RFC 9113 section 3.4), as h2 has it


@dataclass
class Running:
    """A portal in a thread of its own, for tests that cannot wait for an event loop."""

    mode: str
    port: int
    origin: Origin
    garden: Origin

    def send(self, pieces: list[bytes]) -> bytes:
        """What comes back for `pieces`; TimeoutError if there is no end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SOON) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            with contextlib.suppress(OSError):  # it may have closed already
                if self.mode == "socks5":
                    client.sendall(b"\x05\x01\x00")
                    client.recv(2)
                    at = socket.inet_aton("127.0.0.1") + self.origin.port.to_bytes(2)
                    client.sendall(b"\x05\x01\x00\x01" + at)
                    client.recv(10)
                for piece in pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while data := client.recv(65536):
                    received += data
            return received


@pytest.fixture(scope="module", params=["regular", "transparent", "socks5"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    ready, found = threading.Event(), []
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with _portal(request.param, tmp_path_factory.mktemp("portal")) as it:
            found.append(it)
            ready.set()
            await over.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capport.proxy.connections.PATIENCE", PATIENCE)
        patch.setattr("capport.proxy.layers.lingering.STAGE", 0.2)
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert ready.wait(SOON)
        patch.setattr(
            mitmproxy.platform, "original_addr", lambda sock: ("127.0.0.1", found[0].origin.port)
        )
        yield found[0]
        loop.call_soon_threadsafe(over.set)
        thread.join(SOON)
        assert not thread.is_alive()


@contextlib.asynccontextmanager
async def _portal(mode: str, folder: Path) -> AsyncIterator[Running]:
    async with Origin().serving() as origin, Origin().serving() as inside:
        policy = garden(f"{GARDEN}:{inside.port}")
        async with running_portal(folder, policy, mode=mode) as it:
            with_names(it, GARDEN)
            yield Running(mode, it.port, origin, inside)


def pieces(draw: st.DataObject, data: bytes) -> list[bytes]:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


often = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def ends_and_nothing_leaves(running: Running, sent: list[bytes]) -> None:
    received = running.send(sent)
    assert running.origin.connections == 0, sent
    if received and not received.startswith((b"\x15\x03", b"\x05")):
        assert received.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2.0 ", SETTINGS)), (
            sent,
            received,
        )


@often
@given(data=st.binary(max_size=300), draw=st.data())
def test_of_random_bytes_nothing_leaves(running: Running, data: bytes, draw: st.DataObject) -> None:
    ends_and_nothing_leaves(running, pieces(draw, data))


@often
@given(data=mutated(SEEDS, SPICE), draw=st.data())
def test_of_mutated_requests_nothing_leaves(
    running: Running, data: bytes, draw: st.DataObject
) -> None:
    place = b"127.0.0.1:%d" % running.origin.port
    ends_and_nothing_leaves(running, pieces(draw, data.replace(b"ORIGIN", place)))


@often
@given(data=mutated(SEEDS, [*SPICE, b"ELSEWHERE", b"Host: ELSEWHERE\r\n"]), draw=st.data())
def test_of_mutated_requests_to_the_garden_nothing_goes_elsewhere(
    running: Running, data: bytes, draw: st.DataObject
) -> None:
    """The garden gets a request that the portal wrote, with one Host field: the garden's."""
    place, elsewhere = f"{GARDEN}:{running.garden.port}", f"127.0.0.1:{running.origin.port}"
    data = data.replace(b"ORIGIN", place.encode()).replace(b"ELSEWHERE", elsewhere.encode())
    running.garden.received, before = b"", running.garden.connections
    running.send(pieces(draw, data))
    assert running.origin.connections == 0, data
    if running.garden.connections > before and running.garden.received:
        head = running.garden.received.partition(b"\r\n\r\n")[0].split(b"\r\n")
        if not running.garden.received.startswith(b"\x16\x03"):
            assert [x for x in head if x.lower().startswith(b"host:")] == [
                b"Host: " + place.encode()
            ]
            assert head[0].endswith(b" HTTP/1.1")
