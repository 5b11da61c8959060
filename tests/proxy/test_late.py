"""Nothing that comes after the end of a session is forwarded, however late our timers are."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from capport import clock
from capport.core.client import parse_client_id
from capport.core.session import Session
from capport.stores.opening import open_store
from conftest import SOON, Origin, Portal, StartPortal, until_closed
from proxy.mitmdump import policy, started
from proxy.under_way import (
    Opened,
    a_running_download,
    a_running_upload,
    a_websocket,
    kept_alive,
    raw_tcp,
    reached,
)
from proxy.wire import Dialled, until
from suspension import suspend

type Open = Callable[[Portal, Origin], Awaitable[Opened]]

LATE = b"GET /late HTTP/1.1\r\nHost: late\r\n\r\n"


def pass_time(it: Portal, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Moves the gate's clock, but no timer that waits for it: as after the machine has slept."""
    now = it.gate.now
    monkeypatch.setattr(it.gate, "now", lambda: now() + seconds)


@pytest.mark.parametrize(
    "way", [kept_alive, a_running_upload, a_websocket, raw_tcp], ids=lambda it: it.__name__
)
async def test_what_a_client_sends_after_the_end_is_not_passed(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    way: Open,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1", 60)
        reader, writer = await way(it, origin)
        pass_time(it, monkeypatch, 60)
        before = origin.received
        writer.write(LATE)
        assert b" 200 " not in await until_closed(reader)
        await until(lambda: not origin.open)
        assert origin.received == before
        writer.close()


async def test_what_an_origin_sends_after_the_end_is_not_passed_either(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        it.grant("127.0.0.1", 60)
        reader, writer = await a_running_download(it, origin)
        pass_time(it, monkeypatch, 60)
        (there,) = origin.open
        there.write(b"late" * 1000)
        assert b"late" not in await until_closed(reader)
        writer.close()


async def test_a_client_that_sends_something_in_time_goes_on(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session with `idle` ends that long after the last bytes relayed, not after the first."""
    dialled("127.0.0.1", origin.port)
    async with portal("sessions: {idle: 30s}\n", mode="transparent") as it:
        it.grant("127.0.0.1", 600)
        reader, writer = await raw_tcp(it, origin)
        for number in range(3):
            pass_time(it, monkeypatch, 20)
            writer.write(b"still here %d\r\n" % number)
            await reached(origin, b"still here %d" % number)
        pass_time(it, monkeypatch, 31)
        writer.write(LATE)
        await until_closed(reader)
        assert b"late" not in origin.received
        writer.close()


async def test_a_client_that_a_rule_makes_known_has_no_end(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(
        "clients:\n  - {address: 127.0.0.1, access: known}\n", mode="transparent"
    ) as it:
        _, writer = await raw_tcp(it, origin)
        pass_time(it, monkeypatch, 1e6)
        writer.write(b"still here\r\n")
        await reached(origin, b"still here")
        writer.close()


async def test_a_proxy_that_was_stopped_over_the_end_passes_nothing_of_what_came_meanwhile(
    tmp_path: Path, origin: Origin
) -> None:
    store = f"sqlite://{tmp_path / 'sessions.db'}"
    arguments = ["--set", f"portal_policy={policy(tmp_path)}"]
    place = f"127.0.0.1:{origin.port}"
    async with started(tmp_path, *arguments, store=store) as it:
        for seconds in (3.0, 9.0, 27.0):
            over, origin.received = granted(store, seconds), b""
            reader, writer = await connected(it.port, place, over)
            writer.write(b"\x00in time")
            with contextlib.suppress(TimeoutError):
                await until(lambda: b"in time" in origin.received, max(0.1, over - clock.now()))
            suspend(it.process.pid)
            if b"in time" in origin.received and clock.now() < over:
                break  # else the machine is too busy for a session as short as this
            it.process.send_signal(signal.SIGCONT)
            writer.close()
        await asyncio.sleep(max(0.0, over + 0.2 - clock.now()))
        writer.write(b"\x00too late")
        await asyncio.sleep(0.1)
        it.process.send_signal(signal.SIGCONT)
        assert await until_closed(reader) == b""
        await until(lambda: not origin.open)
        assert b"in time" in origin.received
        assert b"too late" not in origin.received
        writer.close()


def granted(store: str, seconds: float) -> float:
    """Opens a session for 127.0.0.1; returns when it is over."""
    now = clock.now()
    with contextlib.closing(open_store(store)) as sessions:
        client = parse_client_id("127.0.0.1")
        sessions.put(Session(client, now, now + seconds, None, now, 0.0, "test"))
    return now + seconds


async def connected(port: int, place: str, over: float) -> Opened:
    """A tunnel, once the proxy knows the client; or the last answer, if the session is `over`."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
        if b" 200 " in answer or clock.now() > over:
            return reader, writer
        writer.close()
        await asyncio.sleep(0.05)
