"""`capport run --workers`: real processes, which are killed, stopped, and informed of changes."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import requires
from capport.stores.redis.redis_link import KEY, ROUTER
from commandline import capport
from conftest import Origin, one_answer, until_closed
from journey.guests import Guest
from login.certificates import certificate
from ports import free_port
from proxy.mitmdump import LOGIN, Process, started
from proxy.wire import until
from stores.redis_server import server
from suspension import suspend

SERVES = re.compile(r"Worker (\d) serves: process (\d+)")
CLIENTS = [f"127.0.0.{number}" for number in range(2, 14)]

pytestmark = pytest.mark.xdist_group("workers")


@dataclass
class Appliance:
    """`capport run --workers`, and what its log says of the workers."""

    process: Process
    folder: Path
    sessions: str | None = None

    @property
    def workers(self) -> dict[int, int]:
        """The process of each worker; of one that was replaced, the last."""
        return {int(number): int(pid) for number, pid in SERVES.findall(self.process.log)}

    async def starts_again(self, count: int) -> None:
        """Waits until workers have begun to serve that many times."""
        await self.process.says(" serves: process ", count)

    async def connect(self, client: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.process.port, local_addr=(client, 0))

    async def get(self, client: str, origin: Origin) -> int:
        """The status of a GET by the client for the origin, on a connection of its own."""
        reader, writer = await self.connect(client)
        try:
            return await self.get_on(reader, writer, origin)
        finally:
            writer.close()

    @staticmethod
    async def get_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, origin: Origin
    ) -> int:
        host = f"127.0.0.1:{origin.port}"
        writer.write(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return int((await one_answer(reader)).split()[1])

    async def worker_of(self, client: str) -> int:
        """The number of the worker that accepts the client's connection."""
        _, writer = await self.connect(client)
        try:
            while not (found := self.having(client)):
                await asyncio.sleep(0.01)
            return found[0]
        finally:
            writer.transport.abort()
            await until(lambda: not self.having(client))

    def having(self, client: str) -> list[int]:
        """The numbers of the workers that have a connection of the client's."""
        return [number for number, pid in self.workers.items() if self.has(pid, client)]

    def has(self, pid: int, client: str) -> bool:
        """Whether a process has a connection of the client's."""
        peer = "".join(f"{int(byte):02X}" for byte in reversed(client.split(".")))
        inodes = {
            line.split()[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()
            if f":{self.process.port:04X} {peer}:" in line
        }
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).removeprefix("socket:[").rstrip("]") in inodes:
                        return True
        return False

    def capport(self, *arguments: str) -> None:
        sessions = self.sessions or str(self.folder / "s.db")
        capport(*arguments, "--sessions", sessions).check_returncode()

    def events(self) -> list[dict[str, object]]:
        return [json.loads(it) for it in (self.folder / "events.jsonl").read_text().splitlines()]


@contextlib.asynccontextmanager
async def appliance(
    folder: Path,
    text: str = "",
    *,
    workers: int = 2,
    more: tuple[str, ...] = (),
    sessions: str | None = None,
) -> AsyncIterator[Appliance]:
    """It serves once this returns."""
    async with started(
        folder,
        *("--workers", str(workers), "--policy", str(policy_of(folder, text))),
        *("--events", "events.jsonl", *more),
        tool="capport run",
        script=None,
        store=sessions or str(folder / "s.db"),
    ) as process:
        it = Appliance(process, folder, sessions)
        await it.starts_again(workers)
        yield it


def policy_of(folder: Path, text: str) -> Path:
    file = folder / "policy.yaml"
    file.write_text(text if "login_url" in text else f"login_url: {LOGIN}\n{text}")
    return file


async def two_clients(it: Appliance) -> tuple[str, str]:
    """A client of each worker."""
    of = {await it.worker_of(client): client for client in reversed(CLIENTS)}
    return of[0], of[1]


def may_change_the_kernels_rules(pid: int) -> bool:
    """Whether a process has CAP_NET_ADMIN, by capabilities(7)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sets = [int(it.split()[1], 16) for it in lines if it.startswith(("CapEff", "CapPrm", "CapInh"))]
    return any(one >> 12 & 1 for one in sets)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_each_client_meets_one_worker_and_an_end_is_the_end_of_all(
    tmp_path: Path, origin: Origin
) -> None:
    metrics = free_port()
    async with appliance(tmp_path, more=("--set", f"portal_metrics=127.0.0.1:{metrics}")) as it:
        met = {client: await it.worker_of(client) for client in CLIENTS}
        assert set(met.values()) == {0, 1}
        for client, number in met.items():
            assert await it.worker_of(client) == number
            assert await it.get(client, origin) == 511
        counted = f'verdicts_total{{verdict="NetworkAuthenticationRequired"}} {len(CLIENTS)}.0'
        while counted not in await page_at(metrics):  # the workers report four times a second
            await asyncio.sleep(0.05)
        processes = it.workers.values()
        assert not any(map(may_change_the_kernels_rules, processes))
        it.process.process.send_signal(signal.SIGTERM)
        assert await it.process.ended() == 0
        assert not any(map(is_there, processes))
        assert it.process.err == []
        assert it.process.log.count("Event loop: uvloop ") == 3
        refused = [one["client"] for one in it.events() if one["event"] == "refused"]
        assert sorted(map(str, refused)) == sorted(CLIENTS)


async def page_at(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


async def test_a_worker_that_dies_or_does_not_answer_is_replaced_and_cuts_nobody_else(
    tmp_path: Path, origin: Origin
) -> None:
    async with appliance(tmp_path) as it:
        one, other = await two_clients(it)
        unknown = [await it.connect(client) for client in (one, other)]
        for waiting in unknown:
            assert await it.get_on(*waiting, origin) == 511
        for client in (one, other):
            it.capport("grant", client)
        for reader, _ in unknown:
            assert await until_closed(reader) == b"", "its next request goes another way"
        cut, kept = await it.connect(one), await it.connect(other)
        for connection in (cut, kept):
            assert await it.get_on(*connection, origin) == 200
        before = it.workers
        os.kill(before[0], signal.SIGKILL)
        assert await until_closed(cut[0]) == b""
        assert await it.get(one, origin) == 200  # by the other worker, or by the next one
        await it.starts_again(3)
        await until_met(it, one, 0)
        assert it.workers[1] == before[1]

        # A client is revoked while its worker is stopped: nothing that it sends later is forwarded.
        reader, writer = await it.connect(one)
        assert await it.get_on(reader, writer, origin) == 200
        stopped, received = it.workers[0], origin.received
        suspend(stopped)
        it.capport("revoke", one)
        writer.write(b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert await until_closed(reader) == b""
        await until(lambda: not is_there(stopped))
        assert await it.get(one, origin) == 511
        assert origin.received == received
        await it.starts_again(4)

        assert await it.get_on(*kept, origin) == 200
        assert it.workers[1] == before[1]
        for _, each in (*unknown, cut, kept, (reader, writer)):
            each.close()
        assert it.process.log.count("Worker 0 does not answer") == 1
        faults = [event["what"] for event in it.events() if event["event"] == "fault"]
        assert faults[0] == "a worker is replaced: it has ended"


async def until_met(it: Appliance, client: str, number: int) -> None:
    while await it.worker_of(client) != number:
        await asyncio.sleep(0.05)


async def until_answered(it: Appliance, client: str, origin: Origin, wanted: int) -> None:
    """A connection that is open when the client starts or stops being known is cut."""
    status = 0
    while status != wanted:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            status = await it.get(client, origin)
        await asyncio.sleep(0.05)


def signing_in(folder: Path, *, encrypted: bool) -> tuple[int, str]:
    """A port for the login server, and its part of a policy."""
    port, tls = free_port(), ""
    if encrypted:
        shown, key = certificate(folder, "login.example.net")
        tls = f"  certificate: {shown}\n  key: {key}\n"
    url = f"{'https' if encrypted else 'http'}://127.0.0.1:{port}/?state={{state}}"
    return port, f"login_url: {url}\nlogin_server:\n  listen: 127.0.0.1:{port}\n{tls}"


async def signs_in(it: Appliance, guest: Guest, origin: Origin) -> None:
    page = f"http://127.0.0.1:{origin.port}/news"
    assert page in (await guest.sign_in_for(page)).links
    assert guest.address in (await guest.get("/status")).text
    await until_answered(it, guest.address, origin, 200)  # a worker follows the store by itself


async def test_clients_sign_in_in_tunnels_and_a_policy_reaches_every_worker_if_it_is_good(
    tmp_path: Path, origin: Origin
) -> None:
    login, text = signing_in(tmp_path, encrypted=True)
    async with appliance(tmp_path, text) as it:
        clients = await two_clients(it)
        for client in clients:
            assert await it.get(client, origin) == 511
            await signs_in(it, Guest(it.process.port, login, client), origin)
        rules = "".join(f"  - {{address: {client}, access: blocked}}\n" for client in clients)
        policy_of(tmp_path, f"{text}clients:\n{rules}")
        for client in clients:
            await until_answered(it, client, origin, 511)
        policy_of(tmp_path, "clients: [nobody]\n")
        await it.process.says("The last good policy stays in force")
        os.kill(it.workers[0], signal.SIGKILL)  # the next one starts with the last good one
        await it.starts_again(3)
        await until_met(it, clients[0], 0)
        assert [await it.get(client, origin) for client in clients] == [511, 511]


async def test_one_worker_is_enough_and_none_outlives_the_first_process(
    tmp_path: Path, origin: Origin
) -> None:
    login, text = signing_in(tmp_path, encrypted=False)
    text += "limits: {drop_after: {count: 5, per: 1m}}\n"
    async with appliance(tmp_path, text, workers=1) as it:
        await signs_in(it, Guest(it.process.port, login, CLIENTS[0], encrypted=False), origin)
        kept, writer = await it.connect(CLIENTS[1])
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await it.get(CLIENTS[1], origin) == 511:
                pass
        assert await until_closed(kept) == b""  # because the first process has informed the worker
        writer.close()
        os.kill(parent_of(it.workers[0]), signal.SIGKILL)  # which forks the workers
        await it.starts_again(2)
        assert await it.get(CLIENTS[2], origin) == 511
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await it.get(CLIENTS[1], origin)  # the counts outlive the worker
        worker = it.workers[0]
        suspend(worker)
        it.process.process.kill()
        await until(lambda: not is_there(worker))


@requires.tool("redis-server")
async def test_the_workers_of_two_routers_share_their_sessions_in_redis(
    tmp_path: Path, origin: Origin
) -> None:
    with server(tmp_path / "redis") as redis:
        folders = [tmp_path / name for name in ("a", "b")]
        urls = [redis.url_of_router(folder) for folder in folders]
        async with (
            appliance(folders[0], sessions=urls[0]) as a,
            appliance(folders[1], sessions=urls[1]) as b,
        ):
            clients = CLIENTS[:2]
            for client in clients:
                assert await b.get(client, origin) == 511
                a.capport("grant", client)
                for it in (a, b):
                    await until_answered(it, client, origin, 200)
            os.kill(b.workers[0], signal.SIGKILL)
            await b.starts_again(3)
            redis.kill()
            assert {await b.get(client, origin) for client in clients} == {200}
            redis.start()  # it is empty: the first processes put back what is missing
            await until(lambda: redis.ask("EXISTS", *(KEY + client for client in clients)) == b":2")
            for client in clients:
                b.capport("revoke", client)
                for it in (a, b):
                    await until_answered(it, client, origin, 511)
            assert redis.ask("KEYS", f"{ROUTER}*") == b"*2"


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        ("--set portal_sessions=:memory:", "workers need sessions in a file, not in :memory:"),
        ("--set portal_sessions=s.db --mode tun", "mode tun: a tun interface takes --workers 1"),
        ("--set portal_sessions=s.db --mode regular@{taken}", "cannot listen on 127.0.0.1:"),
    ],
)
async def test_without_a_gate_no_worker_starts(
    tmp_path: Path, origin: Origin, arguments: str, because: str
) -> None:
    said = arguments.format(taken=origin.port).split()
    async with started(
        tmp_path,
        *("--workers", "2", *said),
        tool="capport run",
        script=None,
        store=None,
        listening=False,
    ) as process:
        assert await process.ended() == 1
        assert because in "".join(process.err)
        assert len(process.err) == 1
        assert "Worker" not in process.log
