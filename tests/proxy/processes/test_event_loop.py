"""uvloop, where it is installed and works; asyncio's own event loop where it does not."""

import asyncio
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from capport.proxy.internals import sockets
from capport.proxy.processes import event_loop
from conftest import SOON

LITTLE = 8 * 1024


def test_uvloop_is_used_where_it_runs_eager_tasks() -> None:
    factory, name = event_loop.choose()
    assert name.startswith("uvloop 0.")
    with asyncio.Runner(loop_factory=factory) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)


class NotForThisPython(asyncio.SelectorEventLoop):
    """As uvloop 0.23.0 on CPython 3.13.0."""

    def create_task(self, coro: Any, **options: Any) -> Any:
        if self.get_task_factory():
            raise TypeError("factory() got an unexpected keyword argument 'eager_start'")
        return super().create_task(coro, **options)


def test_asyncio_is_used_where_uvloop_does_not_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=NotForThisPython))
    factory, name = event_loop.choose()
    assert factory is asyncio.new_event_loop
    assert name.startswith("asyncio (uvloop 0.")
    assert "does not work here: factory() got an unexpected keyword argument" in name


def test_asyncio_is_used_where_there_is_no_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    factory, name = event_loop.choose()
    assert factory is asyncio.new_event_loop
    assert name == "asyncio (pip install 'capport[fast]' brings a faster one)"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_closed_needs_no_bounds_on_either_loop(factory: event_loop.LoopFactory) -> None:
    async def bound_when_closed() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.abort()
        await writer.wait_closed()
        for size in (LITTLE, None):
            sockets.set_transport_buffers(writer.transport, size)
        server.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bound_when_closed())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_read_at_once_is_bounded_on_either_loop(factory: event_loop.LoopFactory) -> None:
    pieces: list[int] = []

    class Bounded(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            own = cast(asyncio.Transport, transport)
            sockets.set_transport_buffers(own, LITTLE)
            own.pause_reading()  # the kernel's buffer shall be full
            asyncio.get_running_loop().call_later(0.2, own.resume_reading)

        def data_received(self, data: bytes) -> None:
            pieces.append(len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            ended.set()

    ended = threading.Event()

    async def send() -> None:
        server = await asyncio.get_running_loop().create_server(Bounded, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(bytes(1 << 20))
        async with asyncio.timeout(SOON):
            await writer.drain()
            writer.close()
            while not ended.is_set():
                await asyncio.sleep(0.01)
        server.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(send())
    assert sum(pieces) == 1 << 20
    assert max(pieces) <= 4 * LITTLE
