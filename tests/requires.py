"""Marks for what a test needs of the machine: if that is missing, it is skipped, or fails under CI.

    @requires.tool("nft", "ip")
    @requires.root()
    def test_...

A missing tool is skipped with the package that brings it, and fails when CI=true: there it
should have been installed. A missing privilege is skipped everywhere. `tests/conftest.py` takes
`pytest_configure` and `pytest_runtest_setup` from here.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SCHEMATHESIS = Path(sys.prefix) / "schemathesis" / "bin" / "schemathesis"
BARE = Path(sys.prefix) / "bare" / "bin"
"""The commands of a venv with the portal, but without the extras of pyproject.toml."""

PACKAGES = Path(__file__).resolve().parents[1] / "scripts" / "packages.txt"


@dataclass(frozen=True, slots=True)
class Need:
    """Something that the machine must have. `missing` says why it is not there, or None."""

    missing: Callable[[], str | None]
    to_be_installed: bool


@cache
def packages() -> dict[str, str]:
    """The package that brings each tool, from the table that scripts/test installs."""
    rows = [line.split(maxsplit=2) for line in PACKAGES.read_text().splitlines()]
    return {row[1]: row[0] for row in rows if row and not row[0].startswith("#")}


def tool(*names: str) -> pytest.MarkDecorator:
    """Needs these commands. KeyError for one that no line of scripts/packages.txt brings."""
    return pytest.mark.requires(*map(_tool, names))


def root() -> pytest.MarkDecorator:
    """Needs to run as root."""
    return pytest.mark.requires(Need(_no_root, to_be_installed=False))


def namespaces() -> pytest.MarkDecorator:
    """Needs `ip netns`: the command, root, and a machine that lets root have namespaces."""
    return pytest.mark.requires(_tool("ip"), Need(_no_namespaces, to_be_installed=False))


def schemathesis() -> pytest.MarkDecorator:
    """Needs schemathesis, in the venv of its own that scripts/test makes for it."""
    return pytest.mark.requires(Need(lambda: _not_made(SCHEMATHESIS), to_be_installed=True))


def bare_venv() -> pytest.MarkDecorator:
    """Needs the venv without extras that scripts/test makes."""
    return pytest.mark.requires(Need(lambda: _not_made(BARE / "capport"), to_be_installed=True))


def check(mark: pytest.MarkDecorator) -> None:
    """Skip, or fail, here and now: for fixtures."""
    for need in mark.args:
        _meet(need)


def _tool(name: str) -> Need:
    package = packages()[name]
    return Need(
        lambda: None if shutil.which(name) else f"no {name} here: apt-get install {package}",
        to_be_installed=True,
    )


def _not_made(command: Path) -> str | None:
    return None if command.exists() else f"no {command} here: scripts/test installs it"


def _no_root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


@cache
def _no_namespaces() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def _meet(need: Need) -> None:
    reason = need.missing()
    if reason is None:
        return
    if need.to_be_installed and os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a failure, because CI=true)", pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*needs): see tests/requires.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("requires"):
        for need in mark.args:
            _meet(need)
