"""The check at the start that mitmproxy is as tested: the tests break each thing once."""

import asyncio
import json
import pkgutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import h11
import mitmproxy.version
import pytest
from h2.connection import H2Connection

from capport.proxy.internals import verify
from proxy.mitmdump import SCRIPT, policy, started

VERSION = mitmproxy.version.VERSION
TESTED: dict[str, Any] = json.loads(verify.TESTED.read_text())
THINGS = [path for things in TESTED["relied_on"].values() for path in things]
FUNCTIONS = [path for path in THINGS if verify.digest(path) != "here"]


def found(*paths: str) -> list[str]:
    """The problems with these things; without paths, with everything that is relied on."""
    asked = {
        purpose: {path: things[path] for path in things if path in paths or not paths}
        for purpose, things in TESTED["relied_on"].items()
    }
    return list(verify.problems(asked))


def holder(path: str) -> tuple[Any, str]:
    """The object that has the thing as its attribute, and the attribute's name."""
    where, _, name = path.replace(":", ".").rpartition(".")
    return pkgutil.resolve_name(where), name


def test_this_mitmproxy_is_as_tested() -> None:
    assert found() == []


def test_the_digests_are_those_that_the_command_writes(tmp_path: Path) -> None:
    file = tmp_path / "tested.json"
    file.write_text(verify.TESTED.read_text())
    verify.add_version(VERSION, file)
    assert file.read_text() == verify.TESTED.read_text()


def test_the_oldest_version_that_is_tested_is_the_oldest_that_may_be_installed() -> None:
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())
    oldest = TESTED["versions"][0]
    assert any(it == f"mitmproxy>={oldest},<13" for it in project["project"]["dependencies"])


@pytest.mark.parametrize("path", THINGS)
def test_what_has_another_name_now_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(*holder(path))
    # If a class inherits the attribute, the check finds the inherited one, which is not as tested.
    assert any(f"{path} " in problem for problem in found(path))


@pytest.mark.parametrize("path", FUNCTIONS)
def test_what_has_another_signature_or_does_not_call_is_named(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(self: object, something: object) -> None:
        """Calls nothing."""

    monkeypatch.setattr(*holder(path), another)
    assert any(f"{path} is not what was tested" in problem for problem in found(path))


def another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h11._connection.READERS", {})


def another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: Any = h11._readers.READERS[h11.SEND_BODY]
    monkeypatch.setitem(bodies, "chunked", object)


def another_way_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2.connection._decode_headers", lambda decoder, block: [])


def frames_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = H2Connection.receive_data

    def unbound(self: H2Connection, data: bytes) -> Any:
        self.max_inbound_frame_size = 2**24 - 1
        return receive(self, data)

    monkeypatch.setattr(H2Connection, "receive_data", unbound)


def another_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed_data(self: object, data: bytes) -> None:
        """Keeps everything."""

    monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed_data)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (another_table, "h11_looks_up_its_readers"),
        (another_reader, "h11_looks_up_its_readers"),
        (another_way_to_decode, "h2_asks_its_decoder"),
        (frames_of_any_size, "h2_asks_its_decoder"),
        (another_limit, "asyncio_has_bounds"),
    ],
)
def test_what_behaves_otherwise_is_named(
    broken: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert any(named in problem for problem in found())


def test_a_function_without_a_source_is_not_taken_for_the_tested_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, namespace = FUNCTIONS[0], dict[str, Any]()
    exec(compile("def function(self, event): pass", "nowhere.py", "exec"), namespace)
    monkeypatch.setattr(*holder(path), namespace["function"])
    assert any(f"{path} cannot be checked" in problem for problem in found(path))
    monkeypatch.setattr(*holder(path), len)
    assert any(f"{path} is not what was tested" in problem for problem in found(path))


def test_an_older_version_is_refused_and_an_untested_one_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(verify.NotAsTested, match=r"mitmproxy 12\.2\.2 is not as .*: it is older"):
        verify.check("12.2.2")
    assert caplog.messages == []
    for version in TESTED["versions"]:
        verify.check(version)
    assert caplog.messages == []
    for version in ("12.3.0", "12.10.0", "13.0.0.dev"):
        verify.check(version)
        assert caplog.messages.pop().startswith(f"mitmproxy {version} is untested with the portal")
        caplog.clear()


def test_a_newer_version_that_is_not_as_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mitmproxy.proxy.server.ConnectionHandler.drain_writers")
    want = r"mitmproxy 99\.1 .*: the end of what a session had open: .*\.drain_writers is missing"
    with pytest.raises(verify.NotAsTested, match=want):
        verify.check("99.1")


def test_it_says_that_the_portal_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    verify.verify.cache_clear()
    monkeypatch.delattr(socket, "AF_NETLINK")
    with pytest.raises(verify.NotAsTested, match="the portal needs Linux"):
        verify.verify()


BROKEN = {
    "renamed": (
        "from mitmproxy.proxy.server import ConnectionHandler as it\n"
        "it.drain_all, it.open = it.drain_writers, it.open_connection\n"
        "del it.drain_writers\n",
        "drain_writers is missing",
    ),
    "another signature": (
        "from mitmproxy.proxy.layers.http import HttpLayer\n"
        "def make_stream(self, stream_id, priority):\n    yield\n"
        "HttpLayer.make_stream = make_stream\n",
        "make_stream is not what was tested",
    ),
    "called no more": (
        "from mitmproxy.proxy.mode_servers import ProxyConnectionHandler\n"
        "async def handle_hook(self, hook):\n"
        "    await self.master.addons.trigger_event(hook)\n"
        "ProxyConnectionHandler.handle_hook = handle_hook\n",
        "the guard behind every hook: mitmproxy.proxy.mode_servers:"
        "ProxyConnectionHandler.handle_hook is not what was tested",
    ),
    "no netlink": ("import socket\ndel socket.AF_NETLINK\n", "the portal needs Linux"),
}


async def test_a_mitmdump_that_is_newer_starts_with_one_line(tmp_path: Path) -> None:
    first = tmp_path / "first.py"
    first.write_text("from mitmproxy import version\nversion.VERSION = '12.99.0'\n")
    given = ("--set", f"portal_policy={policy(tmp_path)}", "-s", str(first), "-s", str(SCRIPT))
    async with started(tmp_path, *given, script=None) as it:
        await it.says("mitmproxy 12.99.0 is untested with the portal")
        assert await it.get(9) == 511
        assert it.log.count("untested") == 1


@pytest.mark.parametrize("case", BROKEN)
async def test_a_mitmdump_that_is_not_as_tested_ends_with_one_line(
    case: str, tmp_path: Path
) -> None:
    source, want = BROKEN[case]
    first = tmp_path / "first.py"
    first.write_text(source)
    given = ("--set", f"portal_policy={policy(tmp_path)}", "-s", str(first), "-s", str(SCRIPT))
    async with started(tmp_path, *given, script=None, listening=False) as it:
        assert await it.ended() == 1, it.log
    (line,) = "".join(it.err).splitlines()
    assert line.startswith(f"{SCRIPT}: the portal cannot be loaded: ")
    assert want in line
    assert case == "no netlink" or f"mitmproxy {VERSION} " in line


def test_capport_run_ends_with_the_line_too(tmp_path: Path) -> None:
    source, want = BROKEN["renamed"]
    program = f"{source}from capport.cli import main\nraise SystemExit(main(['run']))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mitmproxy {VERSION} is not as the portal was tested with")
    assert want in line
