"""The README tells the truth: its commands are run as typed, and what there is, is in it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import requires
from capport.core import policy as policies
from capport.policy import section as policysection
from capport.proxy.mitmproxy_options import FORCED, NOT_SERVED, OURS, REFUSED
from conftest import SOON

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text()
BLOCK = re.compile(r"<!-- (run|background) -->\n```console\n(.*?)```", re.S)


def steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, and the lines that it says it prints."""
    for part in block.split("$ ")[1:]:
        command, *printed = part.rstrip("\n").split("\n")
        yield command, printed


def matches(said: list[str], printed: list[str]) -> bool:
    """`…` in the README stands for anything; at the end of a block, for any more lines."""
    if said and said[-1] == "…":
        said, printed = said[:-1], printed[: len(said) - 1]
    if len(said) != len(printed):
        return False
    pattern = [".*".join(map(re.escape, line.split("…"))) for line in said]
    return all(re.fullmatch(p, line) for p, line in zip(pattern, printed, strict=True))


def in_namespace(name: str, command: str, home: Path) -> list[str]:
    return [
        "ip",
        "netns",
        "exec",
        name,
        "env",
        f"HOME={home}",
        "PYTHONUNBUFFERED=1",
        "bash",
        "-c",
        command,
    ]


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network of its own, so that the README's ports are free."""
    name = f"capport-readme-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@requires.namespaces()
@requires.tool("curl")
@pytest.mark.timeout(600)
def test_the_tour_goes_as_the_readme_says(namespace: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall(README)
    [(background, _)] = [
        step for kind, block in blocks if kind == "background" for step in steps(block)
    ]
    log = tmp_path / "log"
    for name in ("scripts", "policies", "addon", ".venv"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    with log.open("wb") as out:
        portal = subprocess.Popen(
            in_namespace(namespace, f"exec {background}", tmp_path),
            cwd=CHECKOUT,
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(log, "listening at", portal)
        for kind, block in blocks:
            for command, said in steps(block) if kind == "run" else ():
                done = subprocess.run(
                    in_namespace(namespace, command, tmp_path),
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=SOON,
                )
                assert matches(said, done.stdout.splitlines()), f"$ {command}\n{done.stdout}"
    finally:
        portal.send_signal(signal.SIGTERM)
        assert portal.wait(SOON) == 0


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 2 * SOON
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_every_option_of_ours_and_each_that_is_forced_or_refused_is_named() -> None:
    for name in (*OURS, *FORCED, *REFUSED):
        assert f"`{name}" in README
    for name in set(NOT_SERVED) - {"osproxy"}:
        assert f"`{name}`" in README


def test_every_key_of_the_policy_is_in_the_reference() -> None:
    table = README.partition("## The policy file")[2].partition("## Commands")[0]
    for section, keys in policysection.KEYS.items():
        for key in keys:
            assert re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", table), (section, key)


@pytest.mark.parametrize(
    "words",
    [policies.UnknownTls, policies.KnownTls, policies.Connect, policies.KnownHttp, policies.Probes],
)
def test_every_word_of_the_policy_is_explained(words: type[policies.UnknownTls]) -> None:
    for word in words:
        assert f"`{word.value}`" in README


def test_every_event_is_in_the_table() -> None:
    source = "".join(p.read_text() for p in (CHECKOUT / "addon").rglob("*.py"))
    told = set(
        re.findall(r"(?:event|events\(\)\.write|events\.write|_event)\(\s*\"([a-z]+)\"", source)
    )
    assert told >= {"refused", "tls", "policy", "fault", "granted"}
    for name in told:
        assert f"`{name}`" in README


def test_every_command_is_in_the_table() -> None:
    listed = subprocess.run(
        [CHECKOUT / ".venv" / "bin" / "capport", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = re.search(r"\{([a-z,]+)\}", listed) or re.search(r"^ {4}([a-z]+) ", listed, re.M)
    assert commands, listed
    for name in commands[1].split(","):
        assert f"`capport {name}" in README
