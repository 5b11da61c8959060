"""mitmproxy and PyYAML are enough for the gate; whatever needs more says in a line what to install.

The venv `bare`, which scripts/test makes, has the portal without the extras of pyproject.toml.
"""

import asyncio
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.metadata import requires as required_by
from pathlib import Path

import pytest

import requires
from capport import cli
from capport.extras import EXTRAS, lacking
from conftest import SOON
from proxy.mitmdump import policy, started

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
MITMDUMP = str(requires.BARE / "mitmdump")
MISSING = "needs jwt and markdown_it, not installed here: pip install 'capport[login]'"


def _names(requirements: list[str]) -> set[str]:
    """Distributions, as PyPI compares their names."""
    found = (re.match(r"[\w.-]+", text) for text in requirements if "extra ==" not in text)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


def test_the_gate_needs_no_more_than_mitmproxy_and_pyyaml_bring() -> None:
    needed = _names(tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    brought = _names(required_by("mitmproxy") or [])
    assert needed - brought == {"mitmproxy", "pyyaml"}


def test_an_extra_is_what_pyproject_says_it_is() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    by = packages_distributions()
    assert {extra: _names(declared[extra]) for extra in declared} == {
        extra: _names([by[module][0] for module in modules]) for extra, modules in EXTRAS.items()
    }
    assert not any(lacking(extra) for extra in EXTRAS)  # scripts/test installs them all


def test_a_command_that_needs_an_extra_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argon2", None)  # as if it were not installed
    for module in ("capport.commands.accounts", "capport.login.passwords"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert cli.main(["user", "list"]) == 1
    missing = "this command needs argon2, not installed here: pip install 'capport[login]'\n"
    assert capsys.readouterr() == ("", missing)


@requires.bare_venv()
async def test_the_gate_and_its_api_run_without_extras(tmp_path: Path) -> None:
    file, store = policy(tmp_path), str(tmp_path / "sessions.db")
    options = ("--set", f"portal_policy={file}", "--set", "connection_strategy=lazy")
    async with started(tmp_path, *options, tool=MITMDUMP, store=store) as proxy:
        assert await proxy.get(9) == 511
        await proxy.says("The API for a login server of your own listens")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "api.sock")
        asked = b'{"client": "127.0.0.1"}'
        writer.write(
            b"POST /api/v1/sessions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked
        )
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert await proxy.get(9) == 502  # passed on to a port where nobody listens


@requires.bare_venv()
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("login_server: {listen: 127.0.0.1:8511}\n", f"policy.yaml:2:15: login_server {MISSING}"),
        (
            "walled_garden: [bücher.example]\n",
            "is not ASCII, and needs idna, not installed here: pip install 'capport[idna]'",
        ),
        (
            "sessions: {store: redis://192.0.2.5:6379/0}\n",
            "needs redis, not installed here: pip install 'capport[redis]'",
        ),
    ],
)
async def test_a_policy_that_asks_for_an_extra_stops_the_start(
    tmp_path: Path, text: str, says: str
) -> None:
    file = policy(tmp_path, text)
    options = ("--set", f"portal_policy={file}")
    async with started(tmp_path, *options, tool=MITMDUMP, listening=False) as proxy:
        assert await proxy.ended() == 1
        assert proxy.log.count(says) == 1


@requires.bare_venv()
def test_the_commands_run_without_extras(tmp_path: Path) -> None:
    def capport(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(requires.BARE / "capport"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON)

    assert Path(capport("script").stdout.strip()).name == "captive_portal.py"
    assert capport("check", str(policy(tmp_path))).returncode == 0
    refused = capport("check", str(policy(tmp_path, "login_server: {listen: 127.0.0.1:8511}\n")))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert MISSING in refused.stderr
    shared = f"redis://127.0.0.1:1/0?file={tmp_path}/sessions.db"
    refused = capport("voucher", "list", "--sessions", shared)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "needs redis, not installed here: pip install 'capport[redis]'" in refused.stderr
