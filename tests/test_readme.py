"""The pages tell the truth: their commands are run as typed, and what there is, is in them."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import requires
from capport.core import policy as policies
from capport.policy import policy_file
from capport.policy import section as policysection
from capport.proxy.mitmproxy_options import FORCED, NOT_SERVED, OURS, REFUSED
from conftest import SOON
from login.certificates import certificate

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = {
    name: (CHECKOUT / name).read_text()
    for name in (
        "README.md",
        "addon/README.md",
        "addon/capport/api/README.md",
        "addon/capport/login/README.md",
        "addon/capport/stores/redis/README.md",
        "addon/capport/testing/CLIENTS.md",
        "addon/capport/testing/README.md",
        "policies/README.md",
        "scripts/README.md",
        "scripts/router/README.md",
        "tests/README.md",
        "tests/rfc/README.md",
    )
}
RUNNING, POLICY = PAGES["scripts/README.md"], PAGES["policies/README.md"]
BLOCK = re.compile(r"<!-- (run|background|lab) -->\n```console\n(.*?)```", re.S)


def steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, and the lines that it says it prints."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, *printed = part.rstrip("\n").split("\n")
        yield command, printed


def matches(said: list[str], printed: list[str]) -> bool:
    """`…` on a page stands for anything; at the end of a block, for any more lines."""
    if said and said[-1] == "…":
        said, printed = said[:-1], printed[: len(said) - 1]
    if len(said) != len(printed):
        return False
    pattern = [".*".join(map(re.escape, line.split("…"))) for line in said]
    return all(re.fullmatch(p, line) for p, line in zip(pattern, printed, strict=True))


class Terminal:
    """Runs a page's commands in a folder and a network of their own, so that its ports are free."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self._folder = folder
        # Near midnight a table's times have a date, and its columns are wider than on the page.
        noon = f"TZ=NOON{time.gmtime().tm_hour - 12:+}"
        inside = ("ip", "netns", "exec", namespace, "env", f"HOME={folder}", noon)
        self._start = (*inside, "bash", "-c")
        self._jobs: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> list[str]:
        done = subprocess.run(
            [*self._start, self._of_the_checkout(command)],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SOON,
            check=False,
        )
        return done.stdout.splitlines()

    def start(self, command: str) -> None:
        """Starts a portal, and waits until it listens."""
        log = self._folder / f"log-{len(self._jobs)}"
        with log.open("wb") as out:
            job = subprocess.Popen(
                [*self._start, f"exec {self._of_the_checkout(command)}"],
                cwd=self._folder,
                stdout=out,
                stderr=out,
            )
        self._jobs.append(job)
        deadline = time.monotonic() + 2 * SOON
        while "listening at" not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def close(self) -> None:
        for job in self._jobs:
            job.send_signal(signal.SIGTERM)
        assert [job.wait(SOON) for job in self._jobs] == [0] * len(self._jobs)

    @staticmethod
    def _of_the_checkout(command: str) -> str:
        # A script knows its checkout by the path that it is called by.
        return re.sub(r"^scripts/", f"{CHECKOUT}/scripts/", command.removeprefix("sudo "))


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    name = f"capport-pages-{os.getpid()}"
    for folder in ("policies", "addon", "tests", ".venv"):
        (tmp_path / folder).symlink_to(CHECKOUT / folder)
    with ExitStack() as stack:
        subprocess.run(["ip", "netns", "add", name], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        it = Terminal(tmp_path, name)
        stack.callback(it.close)
        yield it


@requires.namespaces()
@requires.tool("curl")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if BLOCK.search(text)])
def test_the_commands_of_a_page_do_what_it_says(page: str, terminal: Terminal) -> None:
    for kind, block in BLOCK.findall(PAGES[page]):
        if kind == "lab":
            requires.check(requires.tool("nft", "dnsmasq"))
        for command, said in steps(block):
            if kind == "background":
                terminal.start(command)
            else:
                printed = terminal.run(command)
                assert matches(said, printed), "\n".join([f"$ {command}", *printed])


def test_the_readme_can_be_read_at_one_sitting() -> None:
    assert PAGES["README.md"].count("\n") <= 120


@pytest.mark.parametrize("page", list(PAGES)[1:])
def test_a_page_begins_with_the_command(page: str) -> None:
    before, block, _ = PAGES[page].partition("```console\n$ ")
    assert block
    assert before.count("\n## ") == 0
    assert len(before.split()) < 60


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (CHECKOUT / page).parent / target if target else CHECKOUT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"(?<![\w/.-])(?:scripts|policies|addon|tests)/[\w@./-]*\w", PAGES[page])
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


def test_the_router_s_page_installs_each_file_of_its_folder() -> None:
    page = PAGES["scripts/router/README.md"]
    installed = set(re.findall(r"scripts/router/([\w@.-]+)", page.partition("## Start")[0]))
    linked = set(re.findall(r"\]\((capport[\w.]+)\)", page))
    there = {path.name for path in (CHECKOUT / "scripts" / "router").iterdir()} - {"README.md"}
    assert there == installed | linked


def test_every_readme_is_a_page_that_is_checked() -> None:
    folders = [CHECKOUT / name for name in ("addon", "policies", "scripts", "tests")]
    found = [page for folder in folders for page in folder.rglob("README.md")]
    assert {str(page.relative_to(CHECKOUT)) for page in found} <= set(PAGES)


def test_every_page_is_within_reach_of_the_readme() -> None:
    linked = {
        str((CHECKOUT / link).relative_to(CHECKOUT))
        for link in re.findall(r"\]\(([^)#\s]+\.md)\)", PAGES["README.md"])
    }
    assert set(PAGES) - {"README.md"} <= linked


def test_every_portal_option_and_each_that_is_forced_or_refused_is_named() -> None:
    for name in (*OURS, *FORCED, *REFUSED):
        assert f"`{name}" in RUNNING
    for name in set(NOT_SERVED) - {"osproxy"}:
        assert f"`{name}`" in RUNNING


def examples() -> list[str]:
    """The parts of a policy that its reference shows."""
    return re.findall(r"```yaml\n(.*?)```", POLICY, re.S)


@pytest.mark.parametrize("example", examples())
def test_every_example_of_a_policy_can_be_used(example: str, tmp_path: Path) -> None:
    certificate(tmp_path)
    (tmp_path / "cert.pem").rename(tmp_path / "fullchain.pem")
    (tmp_path / "staff.csv").write_text("192.0.2.30, front desk\n")
    needed = "" if "login_url" in example else "login_url: https://login.example.net/\n"
    policy_file.parse(needed + example, "policies/README.md", tmp_path)


def test_every_key_of_the_policy_has_an_example_and_a_meaning() -> None:
    shown, tables = "\n".join(examples()), re.sub(r"```.*?```", "", POLICY, flags=re.S)
    for section, keys in policysection.KEYS.items():
        for key in keys:
            assert re.search(rf"(?<!\w){key}: ", shown) or f"\n{key}:\n" in f"\n{shown}", key
            assert re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", tables), (section, key)


@pytest.mark.parametrize(
    "words",
    [
        policies.Access,
        policies.Conditions,
        policies.UnknownTls,
        policies.KnownTls,
        policies.Connect,
        policies.KnownHttp,
        policies.Probes,
    ],
)
def test_every_word_of_the_policy_is_explained(words: type[policies.UnknownTls]) -> None:
    for word in words:
        assert f"`{word.value}`" in POLICY


def test_every_event_is_in_the_table() -> None:
    source = "".join(p.read_text() for p in (CHECKOUT / "addon").rglob("*.py"))
    events = set(
        re.findall(r"(?:event|events\(\)\.write|events\.write|_event)\(\s*\"([a-z]+)\"", source)
    )
    assert events >= {"refused", "tls", "policy", "fault", "granted"}
    for name in events:
        assert f"`{name}`" in RUNNING


def test_every_command_is_in_the_table() -> None:
    listed = subprocess.run(
        [CHECKOUT / ".venv" / "bin" / "capport", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = re.findall(r"^ {4}([a-z]+) {2,}\w", listed, re.M)
    assert {"check", "grant", "script"} <= set(commands)
    for name in commands:
        assert f"`capport {name}" in RUNNING


def test_every_folder_of_tests_is_in_its_table() -> None:
    folders = {path.parent.name for path in (CHECKOUT / "tests").glob("*/*.py")}
    assert folders == set(re.findall(r"^\| \[(\w+)/\]", PAGES["tests/README.md"], re.M))
