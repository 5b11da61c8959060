"""The headless appliance, as `capport run` starts it, and what other commands do to it."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capport.proxy.processes import appliance as appliance_module
from commandline import capport
from confdir import confdir
from ports import free_port
from proxy.appliance import CONSOLE_SCRIPT, SOON, appliance, ask

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text("login_url: https://login.example.net/\n")
    return str(file)


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until `holds()`."""
    limit = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_appliance_answers_and_ends_cleanly(
    tmp_path: Path, policy: str, number: signal.Signals
) -> None:
    with appliance(
        tmp_path, "--policy", policy, "--sessions", "s.db", "--events", "events.jsonl"
    ) as (running, port):
        assert ask(port, "http://a.example/") == 511
        running.send_signal(number)
        out, err = running.communicate(timeout=SOON)
    assert (running.returncode, err) == (0, "")
    assert "Traceback" not in out
    assert "client connect" not in out  # a client could fill a disk with it
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["policy", "refused"]


def test_the_portal_hears_of_what_a_command_grants_and_revokes(tmp_path: Path, policy: str) -> None:
    origin = socket.create_server(("127.0.0.1", 0))
    answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    url = f"http://127.0.0.1:{origin.getsockname()[1]}/"

    def carry_out(command: str) -> None:
        sessions = str(tmp_path / "s.db")
        capport(command, "127.0.0.1", "--sessions", sessions).check_returncode()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = origin.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    with appliance(tmp_path, "--policy", policy, "--sessions", "s.db") as (_, port):
        for _ in range(5):
            carry_out("grant")
            eventually(lambda: ask(port, url) == 204)  # at once, if a CPU is free
            carry_out("revoke")
            eventually(lambda: ask(port, url) == 511)
    origin.close()


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        ("--policy none.yaml", "none.yaml: "),
        ("--set portal_polcy=x", "did you mean portal_policy?"),
        ("--set keepserving=true", "keepserving: capport run has no such option"),
        ("--set ignore_hosts=a", "ignore_hosts cannot be used with the portal"),
        ("--mode wireguard", "mode wireguard: not served by the portal"),
    ],
)
def test_the_appliance_does_not_start_without_a_gate(
    tmp_path: Path, arguments: str, because: str
) -> None:
    ran = subprocess.run(
        [
            *(CONSOLE_SCRIPT, "run", "--listen-host", "127.0.0.1", "--listen-port", "0"),
            *("--set", f"confdir={confdir()}", "--sessions", "s.db", *arguments.split()),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 1, ran
    assert because in ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout
    assert "listening" not in ran.stdout


def test_the_appliance_carries_only_what_a_portal_needs() -> None:
    names = {make.__name__ for make in appliance_module.ADDONS}
    assert not names & {
        "Dumper",
        "Save",
        "ClientPlayback",
        "Onboarding",
        "MapRemote",
        "KeepServing",
    }


def test_the_appliance_imports_none_of_the_addons_that_it_does_not_need() -> None:
    program = (
        "import sys\n"
        "from capport.cli import main\n"
        "main(['run', '--set', 'listen_port=none'])\n"
        "print(*(name for name in sys.modules if name.startswith('mitmproxy.addons.')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stderr == "Failed to parse option listen_port: not an integer: none\n"
    imported = ran.stdout.split()
    assert "mitmproxy.addons.tlsconfig" in imported
    assert len(imported) < 15  # of some forty, whose import takes half a second


def test_without_a_descriptor_left_each_listener_waits_and_the_log_has_a_line(
    tmp_path: Path,
) -> None:
    login, api = free_port(), free_port()
    policy, log = tmp_path / "policy.yaml", tmp_path / "log"
    policy.write_text(f"login_server: {{listen: 127.0.0.1:{login}, conditions: terms}}\n")
    store = ("--set", f"portal_sessions={tmp_path / 's.db'}")
    api_at = ("--set", f"portal_api=127.0.0.1:{api}", *store)
    with log.open("w") as out, contextlib.ExitStack() as waiting:
        running, proxy = waiting.enter_context(
            appliance(tmp_path, "--policy", str(policy), *api_at, out=out)
        )
        eventually(lambda: "The login server answers" in log.read_text())
        before = log.read_text()
        _, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        in_use = len(list(Path(f"/proc/{running.pid}/fd").iterdir()))
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (in_use, hard))
        spent = _processor_time(running.pid)
        clients = [
            waiting.enter_context(socket.create_connection(("127.0.0.1", port), SOON))
            for port in (proxy, login, api)
        ]
        beside = waiting.enter_context(socket.socket(socket.AF_UNIX))
        beside.connect(str(tmp_path / "api.sock"))
        eventually(lambda: "can be accepted" in log.read_text())
        time.sleep(3.0)  # each of them tries three times meanwhile, and no event shows it
        assert _processor_time(running.pid) - spent < 1.0
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in (*clients, beside):
            client.settimeout(SOON)
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert client.recv(9) == b"HTTP/1.1 "
        said = log.read_text().removeprefix(before)
        assert said.count("can be accepted: [Errno 24] Too many open files; trying again") == 1
        assert "Traceback" not in said
        assert len(said.splitlines()) < 10, said


def _processor_time(pid: int) -> float:
    """Seconds that a process has had, of which a hundredth is one tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_a_moment_without_descriptors_does_not_end_what_systemd_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it ended, systemd would end a portal that serves."""
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        supervised = appliance_module.Supervised()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            supervised.running()
            await asyncio.sleep(0)  # a task runs when its turn comes
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "Cannot send WATCHDOG=1 to systemd" in caplog.text
        receiving = asyncio.get_running_loop().sock_recv(receiver, 100)
        assert await asyncio.wait_for(receiving, SOON) == b"WATCHDOG=1"
        supervised.done()


@pytest.mark.parametrize(("pid", "watched"), [(None, True), ("own", True), ("other", False)])
async def test_only_the_process_that_systemd_watches_sends_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: str | None, watched: bool
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() if pid == "own" else os.getppid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        supervised = appliance_module.Supervised()
        supervised.running()
        await asyncio.sleep(0)  # a task runs when its turn comes
        supervised.done()
        wanted = [b"READY=1", *([b"WATCHDOG=1"] * watched), b"STOPPING=1"]
        assert [receiver.recv(100) for _ in wanted] == wanted
