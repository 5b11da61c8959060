"""`capport behind`: a command behind portals of each kind, in a namespace and by variables."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import requires
from capport import cli
from capport.testing import network
from capport.testing.kinds import KINDS
from conftest import SOON
from lab.namespaces import wait_for

CAPPORT = str(Path(sys.executable).with_name("capport"))
# curl's exit statuses for http and https; success only if both succeed.
CURLS = r"""
    curl -sSf -m 2 -o http http://origin.test/; a=$?
    curl -sS -m 2 -o https https://origin.test/; b=$?
    echo "$a $b"
    test "$a $b" = "0 0"
"""


def behind(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [CAPPORT, "behind", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * SOON,
    )


def row(printed: str, title: str) -> list[str]:
    """The cells of one row of the table."""
    (line,) = (line for line in printed.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


def runs(pid: int | str) -> bool:
    """Whether a process still runs; one that has ended may wait for its parent."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def of_the_machine() -> tuple[str, str, str]:
    """What a namespace must not have changed."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    mounts = "\n".join(line for line in lines if not line.startswith("nsfs "))  # other tests' labs
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    return mounts, links, Path("/etc/resolv.conf").read_text()


@requires.namespaces()
@requires.tool("curl")
def test_a_command_meets_each_kind_in_a_network_of_its_own(tmp_path: Path) -> None:
    before = of_the_machine()
    done = behind(tmp_path, "--offline", "--as", "all", "--", "sh", "-c", CURLS)
    assert done.returncode == 0
    assert row(done.stdout, " " * 8) == list(KINDS)
    said = ["22 35", "0 35", "0 35", "0 35", "0 60", "28 28", "0 35", "56 35"]
    assert done.stdout.splitlines()[:8] == said
    assert row(done.stdout, "exit status") == ["1"] * 8
    assert row(done.stdout, "requests refused") == ["1", "1", "1", "1", "1", "0", "1", "1"]
    assert row(done.stdout, "TLS handshakes failed") == ["1", "1", "1", "1", "1", "0", "1", "1"]
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert of_the_machine() == before


@requires.namespaces()
@requires.tool("curl")
def test_nothing_of_a_command_has_to_be_set_and_it_recovers_after_a_grant(tmp_path: Path) -> None:
    script = "until curl -sf http://a.example/ && curl -sf https://b.example/; do sleep 0.1; done"
    arguments = ("--offline", "--grant-after", "1s", "--timeout", "60s", "--json", "--")
    done = behind(tmp_path, *arguments, "env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", script)
    assert done.returncode == 0
    assert '{"method": "GET", "host": "b.example", "path": "/"}' in done.stderr
    report = json.loads(done.stdout)["511"]["report"]
    (client,) = report["clients"]
    assert client["client"] == "192.0.2.2"
    assert client["refused"]["511"] >= 2
    assert client["passed"] >= 1
    assert "never-recovers" in report["kept"]


@requires.namespaces()
def test_what_a_command_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 618 & echo $! >>left"
    done = behind(tmp_path, "--offline", "--as", "511,page", "--", "sh", "-c", script)
    assert done.returncode == 0
    left = (tmp_path / "left").read_text().split()
    assert len(left) == 2
    assert not any(map(runs, left))


@requires.namespaces()
def test_a_network_of_its_own_has_no_other_way_out(tmp_path: Path) -> None:
    script = f"""
import socket
tried = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tried.settimeout(1)
tried.sendto(b"x", ("198.51.100.7", 4433))  # vanishes
for place in [("127.0.0.1", {os.getpid() % 50000 + 1}), ("192.0.2.2", 22)]:
    assert socket.socket().connect_ex(place) == 111, place
try:
    socket.create_connection(("2001:db8::1", 80), 1)
except OSError as error:
    assert error.errno == 101, error
else:
    raise AssertionError
print(socket.gethostbyname("whatever.example"))
"""
    done = behind(tmp_path, "--offline", "--", sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("198.51.100.1\n")


@requires.namespaces()
def test_as_root_without_nftables_it_goes_by_variables_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise OSError("libnftables.so.1: no such file")

    monkeypatch.setattr(network, "Nftables", missing)
    assert cli.main(["behind", "--offline", "--as", "511,silent", "--", "true"]) == 0
    printed = capsys.readouterr()
    why = "no network namespace, so proxy variables are used: libnftables.so.1: no such file\n"
    assert printed.err.startswith(why)
    assert "silent was skipped" in printed.out


@requires.tool("curl")
def test_by_variables_what_takes_a_network_is_skipped_with_the_reason(tmp_path: Path) -> None:
    kinds = "page,silent,dns-lie"
    done = behind(tmp_path, "--proxy", "--offline", "--as", kinds, "--", "sh", "-c", CURLS)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "0 35"
    assert row(done.stdout, "exit status") == ["1", "x", "x"]
    assert "silent was skipped: only in a network of its own" in done.stdout
    assert "dns-lie was skipped" in done.stdout


@requires.tool("curl")
def test_a_command_that_takes_the_page_for_its_data_is_reported(tmp_path: Path) -> None:
    curl = ("--fail-on", "warning", "--", "curl", "-sf", "-o", "data", "http://origin.test/")
    done = behind(tmp_path, "--proxy", "--offline", "--as", "511,page", *curl)
    assert done.returncode == 0
    assert "It succeeded behind page, though" in done.stdout
    assert "sign in" in (tmp_path / "data").read_text()


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    assert behind(tmp_path, "--proxy", "--timeout", "1s", "--", "sleep", "600").returncode == 124


def test_a_missing_command_is_reported_in_one_line(tmp_path: Path) -> None:
    done = behind(tmp_path, "--proxy", "--", "no-such-command")
    assert (done.returncode, done.stderr) == (127, "no-such-command: no such command\n")
    for wrong in (("--as", "pages", "--", "true"), ("--",)):
        assert behind(tmp_path, *wrong).returncode == 2


def test_findings_of_a_level_set_the_exit_status(tmp_path: Path) -> None:
    asking = "import urllib.request as u; u.urlopen(u.Request('http://a.test/', headers=H))"
    script = f"H = {{'Cookie': 'a=1'}}; {asking}"
    arguments = ("--proxy", "--offline", "--fail-on", "warning", "--")
    done = behind(tmp_path, *arguments, sys.executable, "-c", script)
    assert done.returncode == 3
    assert "cookies-to-portal" in done.stdout


def test_a_portal_that_dies_is_reported_without_a_traceback(tmp_path: Path) -> None:
    script = """if True:
        import os, pathlib
        children = pathlib.Path(f"/proc/{os.getppid()}/task").glob("*/children")
        pids = {int(pid) for path in children for pid in path.read_text().split()}
        (portal,) = pids - {os.getpid()}
        os.kill(portal, 9)
    """
    done = behind(tmp_path, "--proxy", "--offline", "--", sys.executable, "-c", script)
    assert done.returncode == 1
    assert done.stderr.startswith("the portal failed: ")
    assert "Traceback" not in done.stderr


@requires.namespaces()
@pytest.mark.parametrize("way", [(), ("--proxy",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left(tmp_path: Path, number: int, way: tuple[str, ...]) -> None:
    folder, started = tmp_path / "tmp", tmp_path / "started"
    folder.mkdir()
    script = f"{'' if way else 'sleep 618 & '}echo $! $$ >{started}; exec sleep 617"
    running = subprocess.Popen(
        [CAPPORT, "behind", "--offline", *way, "--", "sh", "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    wait_for(lambda: started.exists() and started.read_text(), SOON)
    children = Path(f"/proc/{running.pid}/task").glob("*/children")
    pids = {pid for path in children for pid in path.read_text().split()}
    pids |= set(started.read_text().split())
    assert len(pids) == (2 if way else 3)
    assert all(map(runs, pids))
    running.send_signal(number)
    assert running.wait(SOON) == (128 + number if number == signal.SIGTERM else -number)
    wait_for(lambda: not any(map(runs, pids)), SOON)
    assert not list(folder.iterdir())


def test_a_portal_that_is_just_starting_is_ended_by_sigterm_too(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [CAPPORT, "behind", "--proxy", "--offline", "--", "touch", tmp_path / "ran"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    wait_for(lambda: list(tmp_path.iterdir()), SOON)  # the portal's files
    running.send_signal(signal.SIGTERM)
    assert running.wait(SOON) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_signal_that_does_not_interrupt_the_wait_for_the_command_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal that comes just before waitpid(2), or that another thread takes."""
    wait, waiting, went_on = subprocess.Popen.wait, queue.SimpleQueue[int](), list[int]()

    def noted(process: "subprocess.Popen[bytes]", *limit: float | None) -> int:
        waiting.put(process.pid)
        return wait(process, *limit)

    def end() -> None:
        command = waiting.get()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        try:
            wait_for(lambda: not runs(command), SOON)
        except TimeoutError:
            went_on.append(command)
            os.kill(command, signal.SIGKILL)

    monkeypatch.setattr(subprocess.Popen, "wait", noted)
    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(SystemExit) as ended:
        cli.main(["behind", "--proxy", "--offline", "--", "sleep", "617"])
    ending.join()
    assert ended.value.code == 128 + signal.SIGTERM
    assert went_on == []


def test_a_command_that_is_just_starting_is_ended_by_sigterm_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, start = list["subprocess.Popen[bytes]"](), network.start_outside

    def interrupted(*command: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(start(*command, **options))
        os.kill(os.getpid(), signal.SIGTERM)
        return started[0]

    monkeypatch.setattr(network, "start_outside", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main(["behind", "--proxy", "--offline", "--", "sleep", "617"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert started[0].returncode == -signal.SIGTERM


@requires.tool("curl")
def test_ctrl_c_is_for_the_command_and_the_report_comes(tmp_path: Path) -> None:
    script = "trap 'exit 5' INT; touch started; while :; do sleep 0.05; done"
    running = subprocess.Popen(
        [CAPPORT, "behind", "--proxy", "--offline", "--", "sh", "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for((tmp_path / "started").exists, SOON)
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=SOON)
    assert running.returncode == 5
    assert "exit status" in printed
