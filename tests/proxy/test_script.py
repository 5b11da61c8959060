"""The script in a real mitmdump: whatever happens to it, there is no proxy without a gate."""

import asyncio
import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from confdir import confdir
from conftest import SOON, Origin
from ports import free_port
from proxy.mitmdump import SCRIPT, policy, started

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"


async def ends_with_the_error_alone(folder: Path, want: str, *arguments: str) -> None:
    """A start that must fail: one line on stderr, exit status 1, and no client was served."""
    async with started(folder, *arguments, listening=False) as it:
        assert await it.ended() == 1, it.log
        said = "".join(it.err).strip()
        assert want in said
        assert len(said.splitlines()) == 1 or ".yaml:" in said.splitlines()[0], said
        assert "exiting" not in it.log


def copied(folder: Path) -> Path:
    """The script in a folder of the test's, with a package beside it as in the checkout."""
    folder.mkdir(exist_ok=True)
    (folder / "capport").symlink_to(SCRIPT.parent / "capport")
    return Path(shutil.copy(SCRIPT, folder / "captive_portal.py"))


# --- the start ------------------------------------------------------------------------------------


async def test_an_option_that_mitmproxy_would_drop_in_silence_stops_the_start(
    tmp_path: Path,
) -> None:
    file = policy(tmp_path)
    cases = [
        (
            "portal_policy needs one value; it was given 2",
            ("--set", f"portal_policy={file}", "--set", "portal_policy=b"),
        ),
        ("did you mean portal_policy?", ("--set", f"portal_polcy={file}")),
    ]
    await at_once(tmp_path, cases)


async def at_once(folder: Path, cases: list[tuple[str, tuple[str, ...]]]) -> None:
    """A process takes a second of a core to start, so more than two at a time are no faster."""
    places = asyncio.Semaphore(2)

    async def one(number: int, want: str, arguments: tuple[str, ...]) -> None:
        async with places:
            await ends_with_the_error_alone(folder / str(number), want, *arguments)

    async with asyncio.TaskGroup() as group:
        for number, (want, arguments) in enumerate(cases):
            group.create_task(one(number, want, arguments))


async def test_a_policy_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    bad = policy(tmp_path, "refrsh: 3\n", "bad.yaml")
    await at_once(
        tmp_path,
        [
            ("gone.yaml", ("--set", f"portal_policy={gone}")),
            ("bad.yaml:2:1", ("--set", f"portal_policy={bad}")),
            (
                f"portal_events: {tmp_path}/no/such/events: no such folder; make it first",
                ("--set", f"portal_events={tmp_path}/no/such/events"),
            ),
            (
                f"portal_events: {tmp_path}: is a folder; name a file in it",
                ("--set", f"portal_events={tmp_path}"),
            ),
        ],
    )


async def test_what_would_open_the_gate_stops_the_start(tmp_path: Path) -> None:
    file = policy(tmp_path)
    given = ("--set", f"portal_policy={file}")
    await at_once(
        tmp_path,
        [
            ("ignore_hosts cannot be used", (*given, "--ignore-hosts", ".*")),
            ("mode reverse:", (*given, "--mode", "reverse:http://192.0.2.1")),
            ("mode dns", (*given, "--mode", f"dns@{free_port()}")),
        ],
    )


async def test_an_option_in_the_configuration_file_is_checked_alike(tmp_path: Path) -> None:
    cases: list[tuple[str, tuple[str, ...]]] = []
    for number, (text, want) in enumerate(
        [
            ("portal_policy: 5\n", "portal_policy needs one value"),
            ("portal_polic: lab.yaml\n", "did you mean portal_policy?"),
        ]
    ):
        conf = tmp_path / f"conf{number}"
        conf.mkdir()
        (conf / "config.yaml").write_text(text)
        cases.append((want, ("--set", f"confdir={conf}")))
    await at_once(tmp_path, cases)


async def test_a_package_that_cannot_be_imported_leaves_no_open_proxy(
    tmp_path: Path, origin: Origin
) -> None:
    (tmp_path / "yaml.py").write_text("raise ImportError('no yaml here')\n")
    port = free_port()
    arguments = ("--mode", "socks5", "--listen-port", str(port))
    env = {"PYTHONPATH": str(tmp_path)}
    async with (
        knocking(port, origin) as answers,
        started(tmp_path, *arguments, env=env, listening=False) as it,
    ):
        assert await it.ended() == 1
        assert "the portal cannot be loaded: no yaml here" in "".join(it.err)
        assert len(it.err) == 1
    assert set(answers) <= {b""}
    assert origin.connections == 0


async def test_no_request_is_answered_by_a_start_that_fails(tmp_path: Path, origin: Origin) -> None:
    file = policy(tmp_path, "refrsh: 3\n")
    port = free_port()
    arguments = ("--mode", "socks5", "--listen-port", str(port), "--set", f"portal_policy={file}")
    async with (
        knocking(port, origin) as answers,
        started(tmp_path, *arguments, listening=False) as it,
    ):
        assert await it.ended() == 1
    assert set(answers) <= {b""}
    assert origin.connections == 0


@contextlib.asynccontextmanager
async def knocking(port: int, origin: Origin) -> AsyncIterator[list[bytes]]:
    """Twenty clients that try to reach the origin again and again."""
    answers: list[bytes] = []

    async def knock() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.005)
                continue
            writer.write(socks_request(origin.port) + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                answers.append(await reader.read(100))
            writer.close()

    clients = [asyncio.create_task(knock()) for _ in range(20)]
    try:
        yield answers
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def test_a_damaged_store_and_a_full_disk_leave_a_gate_that_is_closed(
    tmp_path: Path, origin: Origin
) -> None:
    store = tmp_path / "sessions.db"
    store.write_bytes(b"this is no database" * 500)
    file = policy(tmp_path)
    arguments = ("--set", f"portal_policy={file}", "--set", "portal_events=/dev/full")
    async with started(tmp_path, *arguments, store=str(store)) as it:
        await it.says("sessions.db: damaged")
        await it.says("No space left on device; events are lost")
        assert await it.get(origin.port) == 511
    assert origin.connections == 0


def socks_request(port: int) -> bytes:
    """A SOCKS5 greeting and CONNECT for 127.0.0.1 (RFC 1928)."""
    return b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2)


async def test_two_modes_have_one_gate_and_the_eager_strategy_is_overridden(
    tmp_path: Path, origin: Origin
) -> None:
    modes = ("--mode", f"regular@{free_port()}", "--mode", f"socks5@{free_port()}")
    options = ("connection_strategy=eager", f"portal_policy={policy(tmp_path)}")
    arguments = (*modes, *(part for one in options for part in ("--set", one)))
    async with started(tmp_path, *arguments) as it:
        await it.says("listening at", 2)
        ports = [
            int(line.rstrip(".\n").rpartition(":")[2]) for line in it.out if "listening" in line
        ]
        for port in ports:
            socks = "SOCKS" in next(line for line in it.out if str(port) in line)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(socks_request(origin.port) if socks else b"")
            target = f"http://127.0.0.1:{origin.port}/" if not socks else "/"
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
            assert b"HTTP/1.1 511 " in answer
            writer.close()
    assert origin.connections == 0


async def test_options_and_commands_lists_have_ours(tmp_path: Path) -> None:
    async with started(tmp_path, "--options", listening=False) as it:
        assert await it.ended() == 0
        assert all(f"portal_{name}:" in it.log for name in ("policy", "sessions", "events"))


# --- while it runs --------------------------------------------------------------------------------


async def test_the_gate_stays_whatever_becomes_of_the_script(
    tmp_path: Path, origin: Origin
) -> None:
    script, beside = copied(tmp_path / "addon"), tmp_path / "beside.py"
    text = script.read_text()
    beside.touch()
    arguments = ("--set", f"portal_policy={policy(tmp_path)}", "-s", str(beside))
    later = iter(range(10, 1000, 10))

    def save(what: str, where: Path = script) -> None:
        where.write_text(what)
        when = time.time() + next(later)  # an mtime that mitmproxy takes for newer
        os.utime(where, (when, when))

    async with started(tmp_path, *arguments, script=script, bad=("has crashed",)) as it:
        assert await it.get(origin.port) == 511
        save(text)
        await it.says(f"Loading script {script}", 2)
        assert await it.get(origin.port) == 511
        save(text + "\nthis is no Python\n")
        await it.says("SyntaxError")
        assert await it.get(origin.port) == 511
        save("raise RuntimeError('broken twice')\n")
        await it.says("broken twice")
        assert await it.get(origin.port) == 511
        save(text)
        await it.says(f"Loading script {script}", 5)
        assert await it.get(origin.port) == 511
        script.rename(script.with_name("elsewhere.py"))
        await it.says("Removing script")
        assert await it.get(origin.port) == 511
        save(text)
        for look in ("first look", "second look"):  # mitmproxy looks at each script in between
            save(f"print({look!r})\n", beside)
            await it.says(look)
        assert await it.get(origin.port) == 511
        it.process.send_signal(signal.SIGTERM)
        assert await it.ended() == 0
    assert origin.connections == 0


async def test_a_policy_that_is_broken_or_gone_leaves_the_last_good_one(
    tmp_path: Path, origin: Origin
) -> None:
    file = policy(tmp_path, KNOWN)
    arguments = ("--set", f"portal_policy={file}", "--set", f"portal_events={tmp_path}/events")
    # Python buffers 8 KiB of output unless it writes to a terminal. Here it must not.
    async with started(tmp_path, *arguments, env={"PYTHONUNBUFFERED": ""}) as it:
        assert await it.get(origin.port) == 200
        file.write_text("login_url: [\n")
        await it.says("The last good policy stays in force")
        assert await it.get(origin.port) == 200
        file.unlink()
        await it.says("The last good policy stays in force", 2)
        assert await it.get(origin.port) == 200
        policy(tmp_path)
        await it.says("Policy in force", 2)
        assert await it.get(origin.port) == 511
        it.process.send_signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.log.count("The last good policy stays in force") == 2, it.log
    written = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    of_policy = [(one["action"], one["file"]) for one in written if one["event"] == "policy"]
    assert of_policy == [(act, str(file)) for act in ("loaded", "rejected", "rejected", "loaded")]
    assert origin.connections == 3


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_cleanly_with_connections_open(
    tmp_path: Path, origin: Origin, ending: signal.Signals
) -> None:
    async with started(tmp_path, "--set", f"portal_policy={policy(tmp_path, KNOWN)}") as it:
        idle = await asyncio.open_connection("127.0.0.1", it.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(f"CONNECT 127.0.0.1:{origin.port} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        it.process.send_signal(ending)
        assert await it.ended() == 0, it.log
        for opened in (idle[1], writer):
            opened.close()


# --- mitmweb and mitmproxy ------------------------------------------------------------------------


async def test_mitmweb_does_not_come_up_with_a_bad_policy(tmp_path: Path) -> None:
    file = policy(tmp_path, "refrsh: 3\n")
    arguments = ("--no-web-open-browser", "--web-port", "0", "--set", f"portal_policy={file}")
    async with started(tmp_path, *arguments, tool="mitmweb", listening=False) as it:
        assert await it.ended() == 1
        assert "policy.yaml:2:1" in "".join(it.err)


async def test_the_web_interface_is_closed_to_known_clients(tmp_path: Path) -> None:
    file = policy(tmp_path, KNOWN)
    port = free_port()
    arguments = ("--no-web-open-browser", "--web-port", str(port), "--set", f"portal_policy={file}")
    async with started(tmp_path, *arguments, tool="mitmweb") as it:
        await it.says("Web server listening")
        proxy = next(line for line in it.log.splitlines() if "proxy listening" in line)
        answer = await knock_on(int(proxy.rstrip(".").rpartition(":")[2]), port)
        assert answer.startswith(b"HTTP/1.1 502 "), answer


async def knock_on(proxy: int, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    writer.write(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.read(100), SOON)
    finally:
        writer.close()


def test_the_console_gives_the_terminal_back_when_the_start_fails(tmp_path: Path) -> None:
    file = policy(tmp_path, "refrsh: 3\n")
    status, shown, restored = in_a_terminal(
        tmp_path, "mitmproxy", "--set", f"portal_policy={file}", "-s", str(SCRIPT)
    )
    assert status == 1
    assert b"policy.yaml:2:1" in shown
    assert restored


def in_a_terminal(folder: Path, tool: str, *arguments: str) -> tuple[int, bytes, bool]:
    """Runs `tool` on a terminal of its own: exit status, what was shown, modes as before or not."""
    master, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name(tool)),
            *("--set", f"confdir={confdir()}", "--listen-port", "0"),
            *arguments,
        ],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "HOME": str(folder)},
        start_new_session=True,
    )
    try:
        status = process.wait(SOON)
    finally:
        process.kill()
    after = termios.tcgetattr(terminal)
    os.set_blocking(master, False)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except BlockingIOError:
            break
    os.close(terminal)
    os.close(master)
    return status, shown, before == after
