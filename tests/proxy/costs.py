"""What an input costs the portal: how long its event loop is held, and how much memory it keeps.

Every step that the portal's event loop takes is measured, whatever it calls: layers, hooks,
libraries, the log. Clients and origins are plain sockets in threads of their own. Time is the
processor time of the loop's thread: on a busy machine the clock measures the others. Memory is what
is kept from one step to the next, as tracemalloc has it, which slows everything down: time is
measured without it.
"""

import asyncio
import contextlib
import gc
import math
import socket
import time
import tracemalloc
from asyncio.events import Handle
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from capport.core import cost
from conftest import SOON, Portal
from proxy.hellos import trusting_all
from proxy.wire import until

HALF = cost.INPUT // 2
RUNS = 3  # the lowest counts: the others include other work of the machine
SLIGHT = 0.004  # seconds; what costs less grows by chance

type Peer = contextlib.AbstractAsyncContextManager[socket.socket]
type Connect = Callable[[Portal], Peer]


@dataclass(slots=True)
class Cost:
    """What the steps of an event loop have cost."""

    held: float = 0.0  # seconds of the longest step
    busy: float = 0.0  # seconds of the longest pass of the loop, in which it takes many steps
    spent: float = 0.0  # seconds of all steps
    kept: int = 0  # bytes more than before, at the end of a step


@contextlib.asynccontextmanager
async def measured(*, memory: bool = False) -> AsyncIterator[Cost]:
    """Measures every step that the event loop takes meanwhile."""
    found, over, loop = Cost(), False, cast(Any, asyncio.get_running_loop())
    # asyncio has no public way to see a step, or a pass, begin and end.
    run, run_once, before_pass = Handle._run, loop._run_once, 0.0

    def step(handle: Handle) -> None:
        began = time.thread_time()
        run(handle)
        if over:
            return  # this was a step of the test, after the measurement
        took = time.thread_time() - began
        found.held = max(found.held, took)
        found.spent += took
        found.busy = max(found.busy, found.spent - before_pass)
        if memory:
            found.kept = max(found.kept, tracemalloc.get_traced_memory()[0] - before)

    def once() -> None:
        nonlocal before_pass
        before_pass = found.spent
        run_once()

    if memory:
        gc.collect()
        tracemalloc.start()
    else:
        gc.disable()  # a collection takes longer the more the test process holds
    before = tracemalloc.get_traced_memory()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handle, "_run", step)
        patch.setattr(loop, "_run_once", once)
        try:
            yield found
        finally:
            over = True
            tracemalloc.stop()
            gc.enable()


async def cost_of(it: Portal, connect: Connect, data: bytes, *, memory: bool = False) -> Cost:
    """What it costs if a peer sends `data` and closes."""
    async with connect(it) as peer, measured(memory=memory) as found:
        await asyncio.to_thread(say, peer, data)
    return found


def say(peer: socket.socket, data: bytes) -> int:
    """Sends `data`, and reads until the other end has closed; returns how many bytes it read."""
    with contextlib.suppress(OSError):  # it may have been closed on, or reset
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
    return hear(peer)


def hear(peer: socket.socket) -> int:
    """Reads until the other end has closed; returns how many bytes it read."""
    heard, into = 0, bytearray(4096)
    with contextlib.suppress(ConnectionError):
        while size := peer.recv_into(into):
            heard += size
    return heard


async def all_within_bounds(
    it: Portal, connect: Connect, table: Mapping[str, Callable[[int], bytes]], beside: int
) -> None:
    """Checks the cost of each row of `table` against the bounds: with 64 KiB, and with half of it.

    `beside` is how many bytes may be kept in addition to the input itself.
    """
    it.master.addons.remove(it.flows)  # it keeps every flow
    await cost_of(it, connect, next(iter(table.values()))(HALF))  # the first one costs more
    faults = [
        f"{name}: {fault}"
        for name, make in table.items()
        for fault in await _faults(it, connect, make, beside)
    ]
    assert not faults, "\n".join(faults)


async def _faults(
    it: Portal, connect: Connect, make: Callable[[int], bytes], beside: int
) -> list[str]:
    whole = make(cost.INPUT)
    most = cost.RESTING + len(whole) + beside
    held, spent = await _least(it, connect, whole, cost.GROWTH * SLIGHT)
    kept = (await cost_of(it, connect, whole, memory=True)).kept
    faults = {
        f"the loop is held for {held * 1e3:.1f} ms": held > cost.HELD,
        f"{kept} bytes are kept, {most} may be": kept > most,
    }
    if spent > cost.GROWTH * SLIGHT:
        _, of_half = await _least(it, connect, make(HALF), SLIGHT)
        fault = f"{spent * 1e3:.1f} ms, and {of_half * 1e3:.1f} for half"
        faults[fault] = spent > cost.GROWTH * max(of_half, SLIGHT)
    return [fault for fault, is_one in faults.items() if is_one]


async def _least(it: Portal, connect: Connect, data: bytes, enough: float) -> tuple[float, float]:
    """How long an input holds the loop, and its whole cost: the lowest of some runs."""
    held = spent = math.inf
    for _ in range(RUNS):
        run = await cost_of(it, connect, data)
        held, spent = min(held, run.held), min(spent, run.spent)
        if held <= cost.HELD and spent <= enough:
            break  # within the bounds: more runs cannot change that
    return held, spent


@contextlib.asynccontextmanager
async def client(it: Portal) -> AsyncIterator[socket.socket]:
    """A client that is connected, and has said nothing."""
    before = len(it.keeper.connections)
    with socket.create_connection(("127.0.0.1", it.port), timeout=SOON) as peer:
        await until(lambda: len(it.keeper.connections) > before)
        yield peer
    await until(lambda: len(it.keeper.connections) == before)


@contextlib.asynccontextmanager
async def tunnel(it: Portal) -> AsyncIterator[socket.socket]:
    """A client in a tunnel, in which it has said nothing."""
    async with client(it) as peer:
        peer.sendall(b"CONNECT 192.0.2.80:443 HTTP/1.1\r\nHost: 192.0.2.80:443\r\n\r\n")
        answer = await asyncio.to_thread(peer.recv, 4096)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        yield peer


@contextlib.asynccontextmanager
async def http2(it: Portal) -> AsyncIterator[socket.socket]:
    """The same in HTTP/2, in TLS that is intercepted."""
    async with tunnel(it) as plain:
        inside = await asyncio.to_thread(trusting_all(["h2"]).wrap_socket, plain)
        with inside:
            assert inside.selected_alpn_protocol() == "h2"
            inside.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            await asyncio.to_thread(inside.recv, 4096)
            yield inside


@dataclass
class Visited:
    """An origin that a client visits by `request`, and waits for."""

    request: str = "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    port: int = field(default=0)

    @contextlib.asynccontextmanager
    async def __call__(self, it: Portal) -> AsyncIterator[socket.socket]:
        """The origin's end of its connection, on which it has said nothing."""
        with socket.create_server(("127.0.0.1", self.port)) as server:
            host = f"127.0.0.1:{server.getsockname()[1]}"
            async with client(it) as visitor:
                visitor.sendall(self.request.format(host=host).encode())
                peer, _ = await asyncio.to_thread(server.accept)
                with peer:
                    peer.settimeout(SOON)
                    await asyncio.to_thread(peer.recv, 65536)
                    reading = asyncio.create_task(asyncio.to_thread(hear, visitor))
                    yield peer
                    await reading
