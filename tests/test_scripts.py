"""The scripts, run as a user runs them, in the checkout that is already set up.

A set-up from nothing takes half a minute and the network; what is tested here is all that comes
after it, and the parts of it that decide. They run on the .venv of the tests themselves.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import requires
from conftest import SOON
from ports import free_port

CHECKOUT = Path(__file__).resolve().parents[1]
RUN = CHECKOUT / "scripts" / "run"
STAMP = CHECKOUT / ".venv" / ".capport-set-up"


def call(
    *command: str | Path, cwd: Path = CHECKOUT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end, with no more of an environment than is given."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def sourced(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What bash prints for `code` after reading _setup.sh."""
    setup = CHECKOUT / "scripts" / "_setup.sh"
    return call("bash", "-euc", f'source "{setup}"; {code}', cwd=CHECKOUT, **environment)


pytestmark = pytest.mark.skipif(
    sourced("is_set_up").returncode != 0,
    reason="this .venv was not made by scripts/test, or pyproject.toml has changed since",
)


def wait_for(address: tuple[str, int], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + SOON
    while process.poll() is None and time.monotonic() < limit:
        with suppress(OSError), socket.create_connection(address, SOON):
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"nothing listens on {address}: {process.communicate()}")


def tour_of(portal: subprocess.Popen[str]) -> str:
    """Its output up to the last line of the tour, or to its end."""
    output = ""
    assert portal.stdout
    while "a browser with that proxy" not in output and (line := portal.stdout.readline()):
        output += line
    return output


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """scripts/run, less the default policy: its login server's port may be taken here."""
    policy = home / "policy.yaml"
    policy.write_text("login_url: https://login.example.net/\n")
    process = subprocess.Popen(
        [RUN, "--set", f"portal_policy={policy}", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_run_hands_its_arguments_to_mitmdump_from_any_folder(tmp_path: Path) -> None:
    got = call(RUN, "--version", cwd=tmp_path, HOME=str(tmp_path))
    assert got.returncode == 0
    assert got.stdout.startswith("Mitmproxy: 12.")
    assert got.stderr == ""


def test_an_argument_that_mitmdump_does_not_know_ends_it_with_its_usage(tmp_path: Path) -> None:
    got = call(RUN, "--no-such-flag", HOME=str(tmp_path))
    assert got.returncode != 0
    assert "unrecognized arguments: --no-such-flag" in got.stderr


@requires.tool("strace")
def test_once_set_up_a_script_starts_four_small_commands_before_its_own(tmp_path: Path) -> None:
    log = tmp_path / "trace"
    got = call(
        *("strace", "-f", "-qq", "-e", "trace=execve", "-e", "status=successful"),
        # strace shortens what is over 32 bytes, as the path of a checkout may be.
        *("-s", "4096", "-o", log),
        *("bash", "-euc", f'cd "$HOME"; source "{CHECKOUT}/scripts/_setup.sh"; set_up'),
        HOME=str(tmp_path),
    )
    assert (got.returncode, got.stderr) == (0, "")
    _, *started = re.findall(r'execve\("(?:[^"]*/)?([^"/]+)", (\[.*?\]),', log.read_text())
    names = [name for name, _ in started]
    assert sorted(names) == ["cat", "dirname", "python", "sha256sum"]
    assert ("python", f'["{CHECKOUT}/.venv/bin/python", "-V"]') in started


@requires.tool("strace")
def test_once_set_up_no_socket_is_opened_to_the_network(tmp_path: Path) -> None:
    log = tmp_path / "trace"
    setup = f'source "{CHECKOUT}/scripts/_setup.sh"; set_up; source "{CHECKOUT}/scripts/_extras.sh"'
    # It is looked for where it is installed, and then no further.
    extras = "[[ -n $(missing_venvs) ]] || install_extras"
    got = call(
        *("strace", "-f", "-qq", "-e", "trace=connect,execve", "-o", log),
        *("bash", "-euc", f"{setup}; {extras}"),
        HOME=str(tmp_path),
    )
    assert got.returncode == 0
    trace = log.read_text()
    assert "sha256sum" in trace  # it did look
    assert "AF_INET" not in trace
    assert not re.search(r'execve\("[^"]*/(uv|pip3?|apt-get)"', trace)


def test_the_two_commands_are_told_apart_by_what_they_say_first() -> None:
    for name in ("run", "test", "check"):
        script = CHECKOUT / "scripts" / name
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/usr/bin/env bash\n# ")


@pytest.mark.parametrize("home", [None, "/nonexistent", "/dev/null"])
def test_without_a_home_to_write_in_a_folder_of_the_checkout_serves(home: str | None) -> None:
    code = 'set_up; printf %s "$HOME"; [[ -w $HOME ]]'
    got = sourced(code) if home is None else sourced(code, HOME=home)
    assert (got.returncode, got.stdout) == (0, str(CHECKOUT / ".cache" / "home"))
    assert (CHECKOUT / ".cache" / ".gitignore").read_text() == "*\n"


def test_what_is_set_outside_does_not_confuse_it(tmp_path: Path) -> None:
    got = call(
        *(RUN, "--version"),
        HOME=str(tmp_path),
        VIRTUAL_ENV="/nonexistent",
        PYTHONHOME="/nonexistent",
        PYTHONPATH="/nonexistent",
        CDPATH="/usr",
        UV_PYTHON="3.9",
    )
    assert (got.returncode, got.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        (["-p", "{port}"], "127.0.0.1", "{port}"),
        (["--set", "listen_port={port}"], "127.0.0.1", "{port}"),
        (["--set=listen_port={port}", "--set", "listen_host=127.0.0.2"], "127.0.0.2", "{port}"),
        (["--listen-host", "127.0.0.2", "--listen-port={port}"], "127.0.0.2", "{port}"),
    ],
)
def test_where_the_caller_wants_it_to_listen_it_listens(
    arguments: list[str], host: str, port: str, tmp_path: Path
) -> None:
    at = free_port()
    with running(tmp_path, *(part.format(port=at) for part in arguments)) as portal:
        wait_for((host, int(port.format(port=at))), portal)
        output = tour_of(portal)
        portal.send_signal(signal.SIGTERM)
        output += portal.communicate(timeout=SOON)[0]
    assert portal.returncode == 0
    lines = [line for line in output.splitlines() if not line.startswith("[")]
    assert len(lines) == 3
    assert f"http://{host}:{at}," in lines[0]
    assert lines[1].split()[:4] == ["curl", "-i", "-x", f"http://{host}:{at}"]


def test_a_mode_of_the_callers_brings_its_own_port(tmp_path: Path) -> None:
    at = free_port()
    with running(tmp_path, "--mode", f"regular@127.0.0.1:{at}") as portal:
        wait_for(("127.0.0.1", at), portal)
        assert f"curl -i -x http://127.0.0.1:{at} " in tour_of(portal)


def test_a_start_that_stops_says_why_on_stderr_and_tells_of_no_tour(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("login_url: nowhere\n")
    got = call(
        *(RUN, "-p", str(free_port()), "--set", f"portal_policy={policy}"), HOME=str(tmp_path)
    )
    assert got.returncode == 1
    assert f"{policy}:1:12: " in got.stderr
    assert all(line.startswith("[") for line in got.stdout.splitlines())


def test_a_venv_of_another_checkout_is_known_for_what_it_is(tmp_path: Path) -> None:
    copy = tmp_path / "a copy"
    shutil.copytree(CHECKOUT / "scripts", copy / "scripts")
    for file in ("pyproject.toml", ".python-version"):
        shutil.copy(CHECKOUT / file, copy)
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to(sys.executable)
    shutil.copy(STAMP, copy / ".venv")
    checks = f'source "{copy}/scripts/_setup.sh"; is_set_up'
    assert call("bash", "-euc", checks, HOME=str(tmp_path)).returncode == 1
    write = 'stamp_for "$(project_sum)" >"$stamp"; is_set_up'
    rewritten = f'source "{copy}/scripts/_setup.sh"; {write}'
    assert call("bash", "-euc", rewritten, HOME=str(tmp_path)).returncode == 0
    with (copy / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert call("bash", "-euc", checks, HOME=str(tmp_path)).returncode == 1


def test_two_set_ups_at_once_take_turns(tmp_path: Path) -> None:
    said = tmp_path / "said"
    waits = f'until grep -q "waiting for another set-up" "{said}"; do sleep 0.1; done'
    step = f'step() {{ echo in; {waits}; echo out; }}; locked "{tmp_path}" step 2>>"{said}"'
    setup = f'source "{CHECKOUT}/scripts/_setup.sh"; touch "{said}"'
    both = f"{setup}; ({step}) & ({step}) & wait"
    got = call("bash", "-euc", both, HOME=str(tmp_path))
    assert got.stdout.split() == ["in", "out", "in", "out"]
    assert said.read_text().count("waiting for another set-up") == 1


def test_what_fails_under_the_lock_fails_the_script(tmp_path: Path) -> None:
    got = sourced(f'step() {{ false; echo on; }}; locked "{tmp_path}" step; echo after')
    assert (got.returncode, got.stdout) == (1, "")


@pytest.mark.parametrize(
    ("given", "name", "means"),
    [
        ({"PIP_INDEX_URL": "https://p.example/"}, "UV_DEFAULT_INDEX", "https://p.example/"),
        (
            {"PIP_INDEX_URL": "https://p.example/", "UV_DEFAULT_INDEX": "https://u.example/"},
            *("UV_DEFAULT_INDEX", "https://u.example/"),
        ),
        ({"PIP_EXTRA_INDEX_URL": "https://p.example/"}, "UV_INDEX", "https://p.example/"),
        ({"PIP_CERT": "/ca.pem"}, "SSL_CERT_FILE", "/ca.pem"),
        ({}, "UV_DEFAULT_INDEX", ""),
    ],
)
def test_pips_settings_reach_uv(given: dict[str, str], name: str, means: str) -> None:
    got = sourced(f'pip_settings_for_uv; printf %s "${{{name}:-}}"', **given)
    assert got.stdout == means


@pytest.mark.parametrize(
    ("version", "good"),
    [("uv 0.4.30", 1), ("uv 0.5.0", 0), ("uv 1.0.0 (abc 2026-01-01)", 0), ("bogus", 1)],
)
def test_a_uv_too_old_to_serve_is_passed_over(version: str, good: int, tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho '{version}'\n")
    uv.chmod(0o755)
    assert sourced(f'good_uv "{uv}"').returncode == good


def test_a_shim_that_answers_127_is_passed_over_for_pyenvs_own_python(tmp_path: Path) -> None:
    shims, real = tmp_path / "py env" / "shims", tmp_path / "py env" / "versions" / "3.13.0" / "bin"
    for folder in (shims, real):
        folder.mkdir(parents=True)
    for name in ("python3", "uv"):
        shim = shims / name
        shim.write_text("#!/bin/sh\necho 'pyenv: version not installed' >&2\nexit 127\n")
        shim.chmod(0o755)
    (real / "python3").symlink_to(sys.executable)
    pythons = "good_uv uv || { pyenv_into_path; type -ap python3; }"
    got = call(
        *("bash", "-euc", f'source "{CHECKOUT}/scripts/_setup.sh"; {pythons}'),
        PATH=f"{shims}:/usr/bin:/bin",
        HOME=str(tmp_path),
    )
    assert str(real / "python3") in got.stdout.splitlines()


def test_every_package_has_a_command_and_a_reason() -> None:
    for row in requires.PACKAGES.read_text().splitlines():
        if row and not row.startswith("#"):
            assert len(row.split(maxsplit=2)) == 3


def test_another_mitmproxy_is_asked_for_by_its_version() -> None:
    got = call(CHECKOUT / "scripts" / "test", "--mitmproxy")
    assert got.returncode != 0
    assert got.stderr.rstrip().endswith("a version of mitmproxy")


def test_the_tests_of_a_group_are_one_piece_of_work(request: pytest.FixtureRequest) -> None:
    """pytest-xdist puts a test's group into its id. With another pytest it silently did not."""
    if not request.config.getoption("loadgroup", default=False):
        return  # they run in one process
    items = request.session.items
    grouped = [it.nodeid for it in items if it.get_closest_marker("xdist_group")]
    assert [it for it in grouped if "@" not in it.rpartition("]")[2].rpartition("::")[2]] == []


def test_mutation_sees_each_change_to_a_module_whose_tests_see_it() -> None:
    got = call(sys.executable, CHECKOUT / "scripts" / "mutate.py", "value", HOME=os.devnull)
    assert got.returncode == 0, got.stdout


@requires.tool("shellcheck")
def test_shellcheck_finds_nothing() -> None:
    scripts = [CHECKOUT / ".ci" / "run"]
    for path in (CHECKOUT / "scripts").rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash"):
            scripts.append(path)
    assert RUN in scripts
    got = call("shellcheck", "-x", *scripts)
    assert (got.returncode, got.stdout) == (0, "")


NEEDY = """
import requires

@requires.tool("nft")
def test_tool(): ...

@requires.root()
def test_root(): ...
"""


@pytest.mark.parametrize(("ci", "tool"), [("", "SKIPPED"), ("true", "ERROR"), ("false", "SKIPPED")])
def test_a_missing_tool_skips_and_under_ci_fails(ci: str, tool: str, tmp_path: Path) -> None:
    (tmp_path / "test_needy.py").write_text(NEEDY)
    (tmp_path / "conftest.py").write_text(
        "import os\nos.geteuid = lambda: 1000\n"
        "from requires import pytest_configure, pytest_runtest_setup\n"
    )
    got = call(
        *(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "test_needy.py"),
        cwd=tmp_path,
        PATH="/nonexistent",
        PYTHONPATH=str(CHECKOUT / "tests"),
        CI=ci,
    )
    assert "no nft here: apt-get install nftables" in got.stdout
    assert "SKIPPED" in got.stdout
    assert "not root" in got.stdout
    assert ("ERROR test_needy.py::test_tool" in got.stdout) == (tool == "ERROR")
    assert got.returncode == (1 if tool == "ERROR" else 0)
