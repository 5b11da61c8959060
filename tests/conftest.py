"""A real mitmproxy in the test's own event loop, with real sockets on both sides of it."""

import asyncio
import contextlib
import gc
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import mitmproxy.platform
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from mitmproxy import certs, connection, http, options, tcp
from mitmproxy.tools.dump import DumpMaster

from capport.core.client import parse_client_id
from capport.core.session import Session
from capport.events import EventLog
from capport.gate import Gate
from capport.proxy import mitmproxy_options
from capport.proxy.addon import CaptivePortal, Hooks
from confdir import confdir
from json_schemas import wrong_events
from requires import pytest_configure, pytest_runtest_setup

LOGIN = "https://login.example.net/"

SOON = 120.0
"""Seconds within which everything expected happens, however busy the machine is.

Only a failing test waits that long.
"""

SHARED = ("app_portal", "lab", "network", "running", "whole_street")
"""Fixtures that many tests share: labs, and a proxy on a thread. They take seconds to set up."""

# No example is too slow, nor its making: only the machine would be to blame.
hypothesis_settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("patient")


@dataclass
class Origin:
    """A server that answers every request with 200, and remembers each byte that reached it."""

    connections: int = 0
    received: bytes = b""
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    greeting: bytes = b""
    closes: bool = False  # once it has answered
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        if self.greeting:
            writer.write(self.greeting)
        pending = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.received += data
                pending += data
                while b"\r\n\r\n" in pending and self.answer:
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    self.heads.append(head)
                    writer.write(self.answer)
                await writer.drain()
                if self.closes and self.heads:
                    break
        self.open.discard(writer)
        writer.close()

    @contextlib.asynccontextmanager
    async def serving(
        self, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> AsyncIterator["Origin"]:
        server = await asyncio.start_server(self._serve, host, 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in tuple(self.open):
                writer.transport.abort()


@dataclass
class Flows:
    """An addon of the operator, after ours in the chain: it sees what mitmweb shows.

    `handed_over` counts the connections that the front gave to mitmproxy.
    """

    handed_over: int = 0
    requests: list[http.HTTPFlow] = field(default_factory=list)
    streams: list[tcp.TCPFlow] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)

    def client_connected(self, client: connection.Client) -> None:
        self.handed_over += 1

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.requests.append(flow)
        self.shown.append(b"\n".join(b": ".join(pair) for pair in flow.request.headers.fields))

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self.streams.append(flow)


@dataclass
class Portal:
    """A running portal."""

    master: DumpMaster
    keeper: Hooks
    flows: Flows
    port: int

    @property
    def gate(self) -> Gate:
        return self.keeper.gate

    def grant(self, client: str, seconds: float = 3600.0) -> Session:
        """Grants a session through the store, as the login server and the CLI do."""
        return self.gate.grant(parse_client_id(client), lifetime=seconds, by="test")

    def revoke(self, client: str) -> bool:
        return self.gate.revoke(parse_client_id(client))

    async def talk(
        self, data: bytes, timeout: float | None = None, host: str = "127.0.0.1"
    ) -> bytes:
        """What comes back for `data`, as `until_closed` has it."""
        reader, writer = await asyncio.open_connection(host, self.port)
        try:
            writer.write(data)
            return await until_closed(reader, timeout)
        finally:
            writer.close()

    async def ask(self, data: bytes, timeout: float = SOON) -> bytes:
        """The first answer to `data`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(one_answer(reader), timeout)
        finally:
            writer.close()


async def until_closed(reader: asyncio.StreamReader, timeout: float | None = None) -> bytes:
    """Everything until the other end closes, which it must; or for `timeout` seconds."""
    received = b""
    try:
        async with asyncio.timeout(SOON if timeout is None else timeout):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    received += data
    except TimeoutError:
        if timeout is None:
            raise
    return received


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """One HTTP/1 response, by its Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return head + await reader.readexactly(int(value))
    return head


type StartPortal = Callable[..., contextlib.AbstractAsyncContextManager[Portal]]


@contextlib.asynccontextmanager
async def running_portal(
    folder: Path,
    policy: str = "",
    *,
    mode: str = "regular",
    events: bool = False,
    sessions: str = ":memory:",
    **more: Any,
) -> AsyncIterator[Portal]:
    """A mitmproxy with the portal in place of a script, listening on a port of 127.0.0.1."""
    file = folder / "policy.yaml"
    file.write_text(f"login_url: {LOGIN}\n{policy}" if "login_url" not in policy else policy)
    opts = options.Options(confdir=confdir(), mode=[mode], listen_host="127.0.0.1", listen_port=0)
    master = DumpMaster(opts, with_termlog=False, with_dumper=False)
    # It ends the process if any error was logged meanwhile, even by another test's lost task.
    errors = master.addons.get("errorcheck")
    errors.finish()
    errors.logger.has_errored.clear()
    opts.set(
        f"portal_policy={file}",
        f"portal_sessions={sessions}",
        *([f"portal_events={folder / 'events.jsonl'}"] if events else []),
        defer=True,
    )
    script = CaptivePortal()
    flows = Flows()
    master.addons.add(flows)
    loader = master.addons.get("scriptloader")
    master.addons.register(script)
    loader.addons.append(script)
    script.configure(set(opts.keys()))
    opts.update(**more)
    started = asyncio.Event()

    class Started:
        def running(self) -> None:
            started.set()

    master.addons.add(Started())
    task = asyncio.create_task(master.run())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    port = master.addons.get("proxyserver").listen_addrs()[0][1]
    keeper = cast(Hooks, master.addons.get("capport"))
    try:
        yield Portal(master, keeper, flows, port)
    finally:
        master.shutdown()
        await task


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the tests that share a fixture in one worker, so that it is set up once."""
    for item in items:
        assert isinstance(item, pytest.Function)
        for shared in SHARED:
            if shared in item.fixturenames:
                place = "" if shared == "whole_street" else item.module.__name__
                parameters = item.callspec.params if hasattr(item, "callspec") else {}
                group = f"{shared}-{place}-{parameters.get(shared, '')}"
                item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """Keeps the modules and the thousands of tests out of each garbage collection."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_key() -> Iterator[None]:
    """All portals have one CA. OpenSSL examines its key for 30 ms: once, not for each portal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certs, "load_pem_private_key", cache(certs.load_pem_private_key))
        yield


@pytest.fixture(autouse=True)
def no_sudden_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A portal that cannot start ends the test, not the process."""

    def end(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setattr(mitmproxy_options, "end", end)


@pytest.fixture(autouse=True)
def events_are_as_their_schema_says(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Each event that a test writes in this process is as events.schema.json says."""
    if request.path.name == "test_events.py":  # which makes them up
        yield
        return
    written: dict[object, dict[str, Any]] = {}
    line = EventLog.line_of

    def recorded(log: EventLog, record: dict[str, Any], *at: str | None) -> str:
        kinds = tuple((name, type(value)) for name, value in record.items())
        written.setdefault((record["event"], record.get("action"), kinds), record)
        return line(log, record, *at)

    monkeypatch.setattr(EventLog, "line_of", recorded)
    yield
    assert wrong_events(json.loads(line(EventLog(), it)) for it in written.values()) == []


@pytest.fixture
def portal(tmp_path: Path) -> StartPortal:
    """Starts portals: `async with portal(policy, mode=...) as it`."""

    def start(policy: str = "", **more: Any) -> contextlib.AbstractAsyncContextManager[Portal]:
        return running_portal(tmp_path, policy, **more)

    return start


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin on 127.0.0.1."""
    async with Origin().serving() as it:
        yield it


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes transparent mode believe that clients dialled this address, as by SO_ORIGINAL_DST."""

    def set_to(host: str, port: int) -> None:
        monkeypatch.setattr(mitmproxy.platform, "original_addr", lambda sock: (host, port))

    return set_to


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each event was written, with or without a file for events."""
    counts, write = Counter[str](), EventLog.write

    def counted(log: EventLog, event: str, *client: Any, **fields: Any) -> None:
        counts[event] += 1
        write(log, event, *client, **fields)

    monkeypatch.setattr(EventLog, "write", counted)
    return counts


__all__ = ["pytest_configure", "pytest_runtest_setup"]
