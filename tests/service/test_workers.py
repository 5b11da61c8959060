"""What the first process accepts from a worker, and what it does if one cannot start."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from capport import lasting
from capport.core.client import UNSEEN, Client, Mac, Peer, parse_address
from capport.core.place import Place
from capport.proxy.resolver import SystemResolver
from capport.service.channel import pair
from capport.service.nursery import Nursery, Process
from capport.service.service import Service
from capport.service.settings import Settings
from capport.service.shared_state import Shared
from capport.service.workers import Workers
from conftest import LOGIN, SOON
from proxy.wire import until

POLICY = f"login_url: {LOGIN}\nlimits: {{drop_after: {{count: 5, per: 1m}}}}\n"


class Children(Nursery):
    """Does not fork: the test has the worker's ends, and a sleeping process stands for it."""

    def __init__(self) -> None:
        self.ends: list[tuple[socket.socket, socket.socket]] = []
        self.bodies: list[asyncio.subprocess.Process] = []
        self.is_stopped = False

    async def fork(self, *ends: socket.socket) -> Process:
        body = await asyncio.create_subprocess_exec("sleep", "600")
        self.bodies.append(body)
        channel, events = (socket.socket(fileno=os.dup(end.fileno())) for end in ends)
        self.ends.append((channel, events))
        channel.send(b'["ready"]')
        return Process(body.pid, os.pidfd_open(body.pid))

    async def stop(self) -> None:
        self.is_stopped = True
        for each in (end for ends in self.ends for end in ends):
            each.close()
        for body in self.bodies:
            await body.wait()


type Started = tuple[Workers, Children, Service]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    (tmp_path / "policy.yaml").write_text(POLICY)
    given = Settings(policy=tmp_path / "policy.yaml", sessions=str(tmp_path / "s.db"))
    service = Service(given, SystemResolver())
    children = Children()
    workers = Workers(service, children, 1)
    await workers.start()
    yield workers, children, service
    await workers.stop()
    assert children.is_stopped
    await service.stop()


AT = '"2026-11-30T12:00:00.000Z"'
COUNTS = f'"denied": {{}}, "decisions": [{[0] * 9}, 0.5]'
NOT_SENT = [
    b"[" * 60_000,
    b'["alive", -1, {}]',
    b'["alive", 1e999, {}]',
    b'["alive", 1, {}]',
    f'["alive", 1, {{"verdicts": {{"a": "b"}}, {COUNTS}}}]'.encode(),
    f'["alive", 1, {{"verdicts": {{"a": -1}}, {COUNTS}}}]'.encode(),
    f'["alive", 1, {{"verdicts": {{"{"a" * 101}": 1}}, {COUNTS}}}]'.encode(),
    b'["drop", "192.0.2.7", "timeout 1s }; flush ruleset; #", false, 1.0]',
    b'["drop", "192.0.2.7", null, false, Infinity]',
    b'["reached", "192.0.2.7", "02:00:00:00:00:07 }"]',
    b'["reached", "192.0.2.7%' + b"a" * 1000 + b'", null]',
    b'["connected", ["nowhere", 1], "192.0.2.7", null]',
    b'["disconnected", ["127.0.0.1", 1]]',
    b'["listen", [0]]',
    f'["event", {{"time": {AT}, "event": "granted"}}]'.encode(),
    f'["event", {{"time": {AT}, "event": ["refused"]}}]'.encode(),
    f'["event", {{"time": {AT}, "event": "fault", "lost": Infinity}}]'.encode(),
    f'["event", {{"time": {AT}, "event": "fault", "lost": -1}}]'.encode(),
    f'["event", {{"time": {AT}, "event": "fault", "repeats": "1"}}]'.encode(),
    f'["event", {{"time": {AT}, "event": "fault", "what": {{}}}}]'.encode(),
    f'["event", {{"time": {AT}, "event": "fault", "{"a" * 501}": 1}}]'.encode(),
    b'["event", {"time": "now", "event": "fault"}]',
    b'["event", "fault"]',
]


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("message", NOT_SENT)
async def test_a_worker_that_sends_what_no_worker_sends_is_replaced(
    started: Started, message: bytes, over: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, children, _ = started
    children.ends[0][over].send(message)
    await until(lambda: len(children.ends) == 2)
    assert caplog.text.count("Worker 0 sent what no worker sends; it is killed") == 1
    assert "Worker 0: it sent what no worker sends; another one is started" in caplog.text
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)


async def test_it_is_replaced_too_if_its_last_message_is_read_when_it_has_ended(
    started: Started,
) -> None:
    _, children, _ = started
    children.ends[0][0].send(NOT_SENT[0])
    children.bodies[0].kill()
    await until(lambda: len(children.ends) == 2)


async def test_what_it_sent_last_does_not_stop_the_end_of_all(started: Started) -> None:
    workers, children, _ = started
    children.ends[0][1].send(NOT_SENT[0])
    await workers.stop()
    assert children.is_stopped


async def test_what_a_worker_does_send_is_carried_out(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, children, service = started
    done: list[object] = []
    monkeypatch.setattr(service, "drop", lambda *given: done.append(given))
    monkeypatch.setattr(service, "is_held", lambda peer, _: done.append(peer))
    for message in (
        b'["drop", "192.0.2.7", "02:00:00:00:00:07", true, 1e9]',
        b'["reached", "2001:db8::7", "unseen"]',
        f'["alive", 7, {{"verdicts": {{"Pass": 2}}, {COUNTS}}}]'.encode(),
        f'["event", {{"time": {AT}, "event": "fault", "lost": 3}}]'.encode(),
    ):
        children.ends[0][0].send(message)
    await until(lambda: workers.unknown == 7 and service.gate.events.lost_in_all == 3)
    client = Client(parse_address("192.0.2.7"), Mac("02:00:00:00:00:07"), astray=True)
    assert done == [(client, 60.0), Peer(parse_address("2001:db8::7"), UNSEEN)]
    assert service.gate.metrics.verdicts["Pass"] == 2
    assert len(children.ends) == 1


async def test_a_worker_that_the_policy_cannot_be_sent_to_is_replaced_at_once(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, children, _ = started

    def fails(name: str) -> int:
        monkeypatch.undo()
        raise OSError("no descriptor")

    monkeypatch.setattr(os, "memfd_create", fails)
    children.bodies[0].kill()
    await until(lambda: len(children.ends) == 3)
    assert "Worker 0: it could not be sent the policy; another one is started" in caplog.text


FAILING = """
import os, sys
from capport.proxy.processes import worker_process
real = os.{call}
def failing(*given):
    os.{call} = real
    raise OSError(11, "no room")
os.{call} = failing
worker_process.serve = lambda *ends: 0
sys.exit(worker_process.main(int(sys.argv[1])))
"""


@pytest.mark.parametrize("call", ["fork", "pidfd_open"])
async def test_the_other_workers_stay_if_one_cannot_be_forked(call: str) -> None:
    command = (sys.executable, "-c", FAILING.format(call=call))
    nursery = Nursery(command, {"has_tun": True}, [])
    ends = pair()
    try:
        with pytest.raises(OSError, match="no room"):
            await nursery.fork(*ends)
        worker = await nursery.fork(*ends)  # by the same process: in another, it would fail again
        await worker.ended()
        worker.close()
    finally:
        await nursery.stop()
        for end in ends:
            end.close()


async def test_workers_get_the_policy_after_the_look_at_them_has_failed_and_the_log_says_so_once(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, children, service = started
    monkeypatch.setattr(lasting, "PAUSE", 0.0)
    failures, shared = [KeyError("an unforeseen fault")] * 3, service.shared

    def fails() -> Shared:
        if failures:
            raise failures.pop()
        return replace(shared(), answering={Place("login.example", 80): parse_address("::1")})

    monkeypatch.setattr(service, "shared", fails)
    (channel, _) = children.ends[0]
    channel.setblocking(False)
    loop = asyncio.get_running_loop()
    sent = b""
    async with asyncio.timeout(SOON):
        while b'"use"' not in sent:
            sent = await loop.sock_recv(channel, 1 << 16)
    assert caplog.text.count("The look at the workers failed; it begins again") == 1
