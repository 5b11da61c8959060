"""The command line: every command in a process of its own, and in this one."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from capport import __version__, clock
from capport.api.tokens import token_digest
from capport.commands.login_records import moment
from capport.core import standing
from capport.core.client import Address, ClientId, Mac, Way, is_random, parse_address, parse_mac
from capport.core.policy import Policy, Sessions
from capport.core.session import Session
from capport.core.standing import Kind, Standing
from capport.linux import neighbour_lookup
from capport.linux.neighbour_lookup import Neighbour
from capport.login import vouchers
from capport.login.passwords import is_password
from capport.policy import policy_file
from capport.stores import SessionStore
from capport.stores.opening import open_store
from capport.web.records import Records
from commandline import capport as run_here
from login.certificates import certificate

CHECKOUT = Path(__file__).resolve().parents[1]
CONSOLE_SCRIPT = str(Path(sys.executable).with_name("capport"))
POLICY = """\
login_url: https://login.example.net/
clients:
  - {mac: 02:00:00:00:00:07, access: known, name: printer}
  - {address: 192.0.2.66, access: blocked}
walled_garden:
  - www.example.org
sessions:
  lifetime: 1h
  idle: 10m
"""
MAC, RANDOM_MAC = "00:00:5e:00:53:01", "02:00:5e:00:53:01"  # RFC 7042 section 2.1.2


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says why it failed."""
        assert self.status == 1, self
        assert self.err.count("\n") == 1, self
        assert self.out == "" or "is known until" in self.out or "is revoked" in self.out
        return self.err.strip()


type Capport = Callable[..., Ran]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Capport:
    """Runs `capport` with these arguments in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("SUDO_USER", raising=False)
    time.tzset()

    def run(*arguments: str) -> Ran:
        ran = run_here(*arguments)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.fixture(params=["process", "here"])
def capport(request: pytest.FixtureRequest, here: Capport) -> Capport:
    """The same, and in a process of its own: the console script, as it is installed."""

    def process(*arguments: str) -> Ran:
        ran = subprocess.run(
            [CONSOLE_SCRIPT, *arguments], capture_output=True, text=True, timeout=100, check=False
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return process if request.param == "process" else here


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return str(file)


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> dict[Address, Mac]:
    """A neighbour table for commands in this process; tests/linux tests the kernel's."""
    table: dict[Address, Mac] = {}

    def entries() -> list[Neighbour]:
        return [Neighbour(1, *entry) for entry in table.items()]

    monkeypatch.setattr(neighbour_lookup, "entries", entries)
    return table


@contextlib.contextmanager
def store(path: Path | str) -> Iterator[SessionStore]:
    with contextlib.closing(open_store(str(path))) as opened:
        yield opened


def sessions(path: Path | str) -> dict[str, Session]:
    with store(path) as opened:
        return {session.client: session for session in opened.sessions()}


def put(
    path: Path | str,
    *clients: str,
    seconds: float = 3600.0,
    name: str = "",
    how: str = "",
    by: str = "",
) -> None:
    now = clock.now()
    with store(path) as opened:
        for client in clients:
            opened.put(
                Session(
                    ClientId(client),
                    now,
                    now + seconds,
                    granted_at=time.time(),
                    by=by,
                    how=how,
                    name=name,
                )
            )


def printed_time(text: str) -> float:
    found = re.search(r"until (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", text)
    assert found, text
    return time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) - time.timezone


# --- what holds for all of them ----------------------------------------------------------------


def test_help_names_every_command(capport: Capport) -> None:
    ran = capport("--help")
    assert (ran.status, ran.err) == (0, "")
    for command in (
        *("check", "explain", "diff", "grant", "revoke", "clients"),
        *("router", "run", "voucher", "user", "token", "script"),
    ):
        assert re.search(rf"^    {command}\b", ran.out, re.MULTILINE), command


@pytest.mark.parametrize(
    "command",
    [
        *("check", "explain", "diff", "grant", "revoke", "clients", "run", "script"),
        *("router up", "router down", "router show"),
        *("voucher new", "voucher list", "voucher revoke"),
        *("user add", "user list", "user remove"),
        *("token new", "token list", "token remove"),
    ],
)
def test_every_command_has_help_that_fits_a_terminal(here: Capport, command: str) -> None:
    ran = here(*command.split(), "--help")
    assert ran.status == 0
    assert ran.out.startswith(f"usage: capport {command}")
    assert max(map(len, ran.out.splitlines())) <= 80


def test_the_version_is_the_packages(capport: Capport) -> None:
    assert capport("--version").out == f"capport {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "because"),
    [
        ("", "COMMAND"),
        ("grnat", "invalid choice: 'grnat'"),
        ("report --fail-on bad", "invalid choice: 'bad'"),
        ("grant", "ADDRESS|MAC"),
        ("grant example.org", "'example.org' is neither an address nor a MAC address"),
        ("grant 192.0.2.7 --for 2", "write 2s, if you mean seconds"),
        ("grant 192.0.2.7 --for 999d", "out of bounds: 1s to 366d"),
        ("grant 192.0.2.7 --name \x1b[2J", "cannot be shown"),
        ("explain p.yaml http://example.org/", "--client"),
        ("explain p.yaml --client 192.0.2.7 ftp://example.org/", "is not an http or https URL"),
        ("explain p.yaml --client 192.0.2.7 http://exa_mple..org/", "neither a host name"),
        ("explain p.yaml --client 192.0.2.300 http://example.org/", "192.0.2.300"),
        ("explain p.yaml --client 192.0.2.7 --mac 00:00 http://example.org/", "not a MAC"),
        ("explain p.yaml --client 192.0.2.7 --method G\x00T http://a.example/", "not a method"),
        ("explain p.yaml --client 192.0.2.7 --header a http://a.example/", "not a header field"),
        ("voucher new --count 0", "'0' is not a number from 1 to 1000"),
        ("run --listen-port 65536", "'65536' is not a port"),
        ("router", "up|down|show"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(here: Capport, argv: str, because: str) -> None:
    ran = here(*argv.split(" ") if argv else ())
    assert (ran.status, ran.out) == (2, "")
    assert because in ran.err
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("--help\n")
    assert "\x1b" not in ran.err


def test_a_process_ends_with_the_status_of_its_command(capport: Capport) -> None:
    assert capport("grant", "example.org").status == 2
    assert capport("revoke", "192.0.2.7").status == 1
    assert capport("clients").status == 0


PROXY = ("mitmproxy", "asyncio", "cryptography", "pyroute2", "tornado")


@pytest.mark.parametrize(
    ("argv", "never"),
    [
        ("--help", ("mitmproxy", "yaml", "pyroute2", "sqlite3", "asyncio", "tornado")),
        ("grant 192.0.2.7 --sessions s.db --for 1m", (*PROXY, "yaml")),
        ("revoke 192.0.2.7 --sessions s.db", (*PROXY, "yaml")),
        ("clients --sessions s.db", (*PROXY, "yaml")),
        ("check policy.yaml", (*PROXY, "sqlite3")),
        ("explain policy.yaml --client 192.0.2.7 http://a.example/", PROXY),
        ("script", ("mitmproxy", "yaml", "pyroute2", "sqlite3")),
    ],
)
def test_a_command_imports_only_what_it_needs(
    argv: str, never: tuple[str, ...], policy: str, tmp_path: Path
) -> None:
    put(tmp_path / "s.db", "192.0.2.7")
    program = (
        "import sys, contextlib\n"
        "from capport.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    assert main({argv.split()!r}) == 0\n"
        f"print(sorted({{*{never!r}}} & {{*sys.modules}}), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.stderr.splitlines()[-1] == "[]", ran.stderr


def test_it_runs_as_a_module_too(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "capport", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"capport {__version__}\n"


def test_nobody_reading_is_quiet(tmp_path: Path) -> None:
    put(tmp_path / "s.db", *(f"192.0.2.{n}" for n in range(200)))
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [CONSOLE_SCRIPT, "clients", "--json", "--sessions", tmp_path / "s.db"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_does_without_a_stream_that_is_closed(tmp_path: Path, closed: str) -> None:
    file = tmp_path / "s.db"
    for what in (f"grant 192.0.2.7 --sessions {file}", f"clients --sessions {file}"):
        said = subprocess.run(
            ["sh", "-c", f"exec {CONSOLE_SCRIPT} {what} {closed}"], capture_output=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, b"")
    asks = f"exec {CONSOLE_SCRIPT} user add ada --sessions {file} <&-"
    said = subprocess.run(["sh", "-c", asks], capture_output=True, check=False)
    assert said.returncode == 1
    assert b"1 to 256 characters" in said.stderr
    wrong = f"exec {CONSOLE_SCRIPT} revoke 192.0.2.9 --sessions {file} 2>&-"
    assert subprocess.run(["sh", "-c", wrong], stdout=subprocess.PIPE, check=False).stdout == b""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_a_terminal_cannot_show_is_an_escape(tmp_path: Path, encoding: str) -> None:
    put(tmp_path / "s.db", "192.0.2.7", name="Ж" * 60)
    policy = os.fsencode(tmp_path) + b"/caf\xe9.yaml"
    Path(os.fsdecode(policy)).write_text(POLICY)
    env = os.environ | {"PYTHONIOENCODING": encoding}
    for command in (["clients", "--sessions", tmp_path / "s.db"], ["check", policy]):
        ran = subprocess.run([CONSOLE_SCRIPT, *command], capture_output=True, env=env, check=False)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert b"192.0.2.7" in ran.stdout or b"\\udce9.yaml can be used" in ran.stdout


# `capport`, but one that waits for long enough to be interrupted.
PATIENT = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
from capport.stores import sqlite
sqlite.PUT_SECONDS = 60.0
from capport.cli import main
sys.exit(main())
"""


def test_control_c_is_quiet(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    put(file, "192.0.2.7")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # so that the grant has to wait
        granting = subprocess.Popen(
            [sys.executable, "-c", PATIENT, "grant", "192.0.2.8", "--sessions", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        limit = time.monotonic() + 60
        while str(file).encode() not in maps(granting.pid):
            assert time.monotonic() < limit
            time.sleep(0.01)
        granting.send_signal(signal.SIGINT)
        other.execute("ROLLBACK")  # SQLite delays signals while it waits
        out, err = granting.communicate(timeout=60)
    assert (granting.returncode, out) == (130, b"")
    assert b"Traceback" not in err  # that the database is locked, the store may say
    assert set(sessions(file)) == {"192.0.2.7"}


def maps(pid: int) -> bytes:
    """What a process has in memory: SQLite maps FILE-shm once it has the database open."""
    return Path(f"/proc/{pid}/maps").read_bytes()


# --- check -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cafe", "hotel", "lab"])
def test_check_sums_up_the_policies_that_come_with_it(here: Capport, name: str) -> None:
    ran = here("check", str(CHECKOUT / "policies" / f"{name}.yaml"))
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[0].endswith(f"{name}.yaml can be used.")


def test_check_counts_the_clients_that_have_mitmproxys_ca(here: Capport, tmp_path: Path) -> None:
    rules = "  - {address: 192.0.2.7, trusts_ca: true}\n"
    (tmp_path / "ca.yaml").write_text(f"login_url: https://login.example.net/\nclients:\n{rules}")
    ran = here("check", str(tmp_path / "ca.yaml"))
    assert "clients        no rules; 1 has mitmproxy's CA" in ran.out


def test_check_says_what_a_policy_comes_to(capport: Capport, policy: str) -> None:
    ran = capport("check", policy)
    assert (ran.status, ran.err) == (0, "")
    said = {line.split()[0]: line for line in ran.out.splitlines()[1:]}
    assert "your own login server" in said["login"]
    assert "2 rules: 1 blocked, 1 known" in said["clients"]
    assert "1 entry" in said["walled"]
    assert "1h, 10m without traffic, in " in said["sessions"]
    assert said["sessions"].endswith("; at most 20000")
    assert "unknown: refuse, known: tunnel, connect: auto" in said["tls"]


def test_check_tells_every_error_of_a_policy(capport: Capport, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("login_url: ftp://a.example/\nrefresh: soon\nnetwrok: x\n")
    ran = capport("check", "bad.yaml")
    assert (ran.status, ran.out) == (1, "")
    for place in ("bad.yaml:1:12: ", "bad.yaml:2:10: ", "bad.yaml:3:1: "):
        assert place in ran.err
    assert "Traceback" not in ran.err


def test_check_tells_warnings_and_is_content(here: Capport, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("login_url: http://login.example.net/\n")
    ran = here("check", "p.yaml")
    assert ran.status == 0
    assert ran.err.startswith("warning: p.yaml:1:")
    assert "can be used" in ran.out


@pytest.mark.parametrize(
    ("login", "families", "would_do"),
    [
        (["192.0.2.1:8511"], {4, 6}, "add an IPv6 address of the router to login_server.listen"),
        (["[2001:db8::1]:8511"], {4, 6}, "add an IPv4 address of the router"),
        (["192.0.2.1:8511"], {4}, None),
        (["192.0.2.1:8511", "[2001:db8::1]:8511"], {4, 6}, None),
        ("http://192.0.2.9/", {4, 6}, "give login_url a name that has both"),
        ("http://login.lan/", {4, 6}, None),
    ],
)
def test_check_warns_of_a_family_of_addresses_that_cannot_sign_in(
    here: Capport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    login: str | list[str],
    families: set[int],
    would_do: str | None,
) -> None:
    monkeypatch.setattr(neighbour_lookup, "families", lambda interface: families)
    router = {"client_interface": "br-lan", "origin_interface": "wan"}
    where = {"login_url": login} if isinstance(login, str) else {"login_server": {"listen": login}}
    (tmp_path / "p.yaml").write_text(json.dumps(where | {"router": router}))
    ran = here("check", "p.yaml")
    assert ran.status == 0
    assert would_do in ran.err if would_do else not ran.err


@pytest.mark.parametrize(
    ("name", "would_do"),
    [
        ("terms.it.md", "call it terms.md, or terms.LANGUAGE.md for one of de, en, es, fr"),
        ("Terms_de.html", "call it terms.html"),
        ("terms.txt", "call it terms.md"),
        ("logo.jpeg", "did you mean logo.jpg?"),
        ("Logo.SVG", "did you mean logo.svg?"),
        ("style.css", "did you mean theme.css?"),
        ("sign_in.html", "put it into templates/sign_in.html"),
        ("templates/signin.html", "did you mean sign_in.html?"),
        ("notes.doc", "possible names are logo.jpg, "),
        ("terms.de.md", None),
        ("terms.html", None),
        ("templates/sign_in.html", None),
        (".terms.md.swp", None),
    ],
)
def test_check_warns_of_a_page_that_nobody_would_see(
    here: Capport, tmp_path: Path, name: str, would_do: str | None
) -> None:
    (tmp_path / "p.yaml").write_text("login_server: {listen: 192.0.2.1:8511}\n")
    path = tmp_path / "login" / name
    path.parent.mkdir(parents=True)
    path.write_text("a")
    ran = here("check", "p.yaml")
    assert ran.status == 0
    if would_do is None:
        assert ran.err == ""
    else:
        assert ran.err.startswith(f"warning: {path} has no use: ")
        assert would_do in ran.err


def test_check_of_a_file_that_is_not_there_is_one_line(here: Capport) -> None:
    assert here("check", "none.yaml").error.startswith("none.yaml: ")


# --- explain -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "verdict", "tls", "status", "line"),
    [
        ("192.0.2.7 http://a.example/", "NetworkAuthenticationRequired", None, 511, None),
        ("192.0.2.7 http://www.example.org/", "Pass", None, None, 6),
        (
            "192.0.2.7 http://www.example.org:8080/",
            "NetworkAuthenticationRequired",
            None,
            511,
            None,
        ),
        ("192.0.2.7 https://www.example.org/", "Pass", "Tunnel", None, 6),
        ("192.0.2.7 https://login.example.net/", "Pass", "Tunnel", None, 1),
        ("192.0.2.7 https://a.example/", "NetworkAuthenticationRequired", "Refuse", None, None),
        ("192.0.2.66 http://a.example/", "NetworkAuthenticationRequired", None, 511, 4),
        ("192.0.2.9 --mac 02-00-00-00-00-07 http://a.example/", "Pass", None, None, 3),
        ("192.0.2.7 http://captive.apple.com/hotspot-detect.html", "SignIn", None, 302, None),
        ("::ffff:192.0.2.66 http://a.example/", "NetworkAuthenticationRequired", None, 511, 4),
    ],
)
def test_explain_names_the_verdict_the_status_and_the_line(
    here: Capport,
    policy: str,
    asked: str,
    verdict: str,
    tls: str | None,
    status: int | None,
    line: int | None,
) -> None:
    ran = here("explain", policy, "--json", "--client", *asked.split())
    assert (ran.status, ran.err) == (0, "")
    said = json.loads(ran.out)
    assert (said["verdict"], said["tls"], said["status"]) == (verdict, tls, status)
    decided = said["decided_by"]
    assert (decided and decided["line"]) == line
    if decided:
        assert decided["text"] == POLICY.splitlines()[decided["line"] - 1]
    assert [rule["verdict"] for rule in said["rules"][:-1]] == [None] * (len(said["rules"]) - 1)
    assert said["rules"][-1]["verdict"] == verdict


@pytest.mark.parametrize(
    ("tls", "status", "seen", "line"),
    [
        ("unknown: refuse", None, "access_denied (49)", 3),
        ("unknown: drop", None, "the connection is reset", 3),
        ("unknown: intercept", 511, "511 inside TLS, if the user accepts a certificate error", 3),
        ("connect: answer", None, "through an explicit proxy: 511 to the CONNECT", None),
        ("connect: alert", None, "the same, inside the tunnel", None),
    ],
)
def test_explain_says_what_https_comes_to(
    here: Capport, tmp_path: Path, tls: str, status: int | None, seen: str, line: int | None
) -> None:
    (tmp_path / "p.yaml").write_text(f"login_url: https://login.example.net/\ntls:\n  {tls}\n")
    ran = here("explain", "p.yaml", "--json", "--client", "192.0.2.7", "https://a.example/")
    said = json.loads(ran.out)
    assert said["status"] == status
    assert seen in said["seen"]
    assert (said["decided_by"] and said["decided_by"]["line"]) == line


@pytest.mark.parametrize(
    ("asked", "policy_says", "status", "closed"),
    [
        ("192.0.2.7 http://127.0.0.1/", "", 502, True),
        ("192.0.2.7 http://[::1]:22/", "", 502, True),
        ("192.0.2.7 https://127.0.0.1/", "", None, True),
        ("192.0.2.7 https://127.0.0.1/", "tls: {known: inspect}\n", 502, True),
        ("192.0.2.7 http://198.51.100.7/", "", None, False),
        ("192.0.2.8 http://127.0.0.1/", "", 511, False),
        ("127.0.0.1 http://127.0.0.1:22/", "", None, False),
        ("192.0.2.8 http://127.0.0.1/", "walled_garden: [127.0.0.1]\n", None, False),
    ],
)
def test_explain_says_what_is_closed_to_every_client(
    here: Capport, tmp_path: Path, asked: str, policy_says: str, status: int | None, closed: bool
) -> None:
    known = "".join(
        f"  - {{address: {one}, access: known}}\n" for one in ("192.0.2.7", "127.0.0.1")
    )
    text = f"login_url: https://login.example.net/\nclients:\n{known}{policy_says}"
    (tmp_path / "p.yaml").write_text(text)
    said = json.loads(here("explain", "p.yaml", "--json", "--client", *asked.split()).out)
    assert (said["status"], said["closed"]) == (status, closed)
    shown = here("explain", "p.yaml", "--client", *asked.split()).out
    assert ("closed to every client" in shown) == closed


def test_explain_names_the_line_of_a_certificate_that_opens_a_place(
    here: Capport, tmp_path: Path
) -> None:
    certificate(tmp_path, places=True)
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "login_url: https://login.example.net:8511/\n"
        "login_server:\n  listen: 192.0.2.1:8511\n  certificate: cert.pem\n  key: key.pem\n"
    )
    asked = ("explain", str(policy), "--client", "192.0.2.7", "http://ocsp.example.org/")
    said = json.loads(here(*asked, "--json").out)
    assert said["verdict"] == "Pass"
    assert said["decided_by"]["line"] == 4
    assert f"Decided by {policy}:4\n    certificate: cert.pem" in here(*asked).out


@pytest.mark.parametrize(
    ("asked", "verdict", "status", "key"),
    [
        ("--header Cookie:" + 300 * "a", "HeaderFieldsTooLarge", 431, "header_field"),
        ("--after 3", "TooManyRequests", 429, "unknown_requests"),
        ("--after 2", "NetworkAuthenticationRequired", 511, None),
        ("--after 9 --header Cookie:" + 300 * "a", "HeaderFieldsTooLarge", 431, "header_field"),
        ("--mac 02:00:00:00:00:07 --method PUT", "PreconditionRequired", 428, "require_conditions"),
        ("--mac 02:00:00:00:00:07 --method PUT --header If-Match:*", "Pass", None, None),
        ("--mac 02:00:00:00:00:07 --after 5", "TooManyRequests", 429, "requests"),
        ("--mac 02:00:00:00:00:07 --after 4", "Pass", None, None),
    ],
)
def test_explain_shows_which_limit_comes_first(
    here: Capport, asked: str, verdict: str, status: int | None, key: str | None
) -> None:
    Path("p.yaml").write_text(
        "login_url: https://login.example.net/\n"
        "clients: [{mac: 02:00:00:00:00:07, access: known}]\n"
        "limits:\n"
        "  requests: {count: 5, per: 1m}\n"
        "  unknown_requests: {count: 3, per: 1m}\n"
        "  header_field: 256\n"
        "  require_conditions: [a.example]\n"
    )
    one = ("explain", "p.yaml", "--json", "--client", "192.0.2.7", *asked.split())
    said = json.loads(here(*one, "http://a.example/").out)
    assert (said["verdict"], said["status"]) == (verdict, status)
    if key:
        assert said["decided_by"]["text"].strip().startswith(f"{key}:")


def test_explain_is_for_people_too(capport: Capport, policy: str) -> None:
    ran = capport("explain", policy, "--client", "192.0.2.66", "http://a.example/")
    assert ran.status == 0
    assert "Verdict  NetworkAuthenticationRequired: 192.0.2.66 is blocked by" in ran.out
    assert "Status   511" in ran.out
    assert "  walled_garden            says nothing\n" in ran.out
    assert f"Decided by {policy}:4\n    - {{address: 192.0.2.66, access: blocked}}" in ran.out


def test_explain_counts_a_session_in_the_store(here: Capport, policy: str) -> None:
    put("s.db", "192.0.2.7")
    put("s.db", "192.0.2.8", seconds=-1)
    asked = ("explain", policy, "--json", "--sessions", "s.db", "http://a.example/", "--client")
    known = json.loads(here(*asked, "192.0.2.7").out)
    assert (known["verdict"], known["session"]) == ("Pass", "192.0.2.7")
    assert 3000 < known["seconds_remaining"] <= 3600
    over = json.loads(here(*asked, "192.0.2.8").out)
    assert (over["status"], over["because"].endswith("its session is over")) == (511, True)
    none = json.loads(here(*asked, "192.0.2.9").out)
    assert (none["status"], none["session"], none["sessions"]) == (511, None, "in s.db")


def test_explain_says_where_no_session_was_sought(here: Capport, policy: str) -> None:
    asked = ("explain", policy, "--client", "192.0.2.7", "http://a.example/")
    assert "Session  none (there is no " in here(*asked).out
    assert not Path("state").exists()
    Path(policy).write_text(POLICY + "  store: ':memory:'\n")
    assert "(not read: :memory: is in the memory of one process" in here(*asked).out
    Path("broken.db").write_bytes(b"this is no database" * 100)
    Path(policy).write_text(POLICY + "  store: broken.db\n")
    assert "(not read: " in here(*asked).out
    assert "broken.db" in here(*asked, "--sessions", "broken.db").error


def test_a_client_rule_decides_before_the_store_is_asked(here: Capport, policy: str) -> None:
    put("s.db", "192.0.2.66")
    ran = here(
        *("explain", policy, "--client", "192.0.2.66", "http://a.example/"),
        *("--sessions", "s.db"),
    )
    assert "not read: a client rule decides" in ran.out
    assert "Status   511" in ran.out


@pytest.mark.parametrize(
    ("on_link", "mac", "status"), [(True, None, 511), (False, None, None), (True, MAC, None)]
)
def test_explain_knows_who_may_be_blocked_by_a_mac_that_is_not_known(
    here: Capport,
    tmp_path: Path,
    neighbours: dict[Address, Mac],
    monkeypatch: pytest.MonkeyPatch,
    on_link: bool,
    mac: str | None,
    status: int | None,
) -> None:
    (tmp_path / "p.yaml").write_text(
        "login_url: https://login.example.net/\n"
        "clients:\n"
        f"  - {{mac: {RANDOM_MAC}, access: blocked}}\n"
        "  - {address: 192.0.2.0/24, access: known}\n"
    )
    way = Way(parse_address("192.0.2.7")) if on_link else None
    monkeypatch.setattr(neighbour_lookup, "way", lambda address, interfaces: way)
    if mac:
        neighbours[parse_address("192.0.2.7")] = parse_mac(mac)
    asked = ("explain", "p.yaml", "--json", "--client", "192.0.2.7", "http://a.example/")
    said = json.loads(here(*asked).out)
    assert said["status"] == status
    assert ("has a MAC that is not known now" in said["because"]) == (status == 511)


@pytest.mark.parametrize(("hop", "mac"), [("192.0.2.7", MAC), ("192.0.2.1", None)])
def test_explain_takes_a_mac_as_the_portal_does_so_a_false_one_does_not_count(
    here: Capport,
    tmp_path: Path,
    neighbours: dict[Address, Mac],
    monkeypatch: pytest.MonkeyPatch,
    hop: str,
    mac: str | None,
) -> None:
    """Any device on the link can claim, by ARP, an address that is behind a router."""
    (tmp_path / "p.yaml").write_text(
        "login_url: https://login.example.net/\n"
        "router: {client_interface: lo, origin_interface: wan}\n"
        f"clients: [{{mac: {MAC}, access: blocked}}]\n"
    )
    put("s.db", "192.0.2.7")
    neighbours[parse_address("192.0.2.7")] = parse_mac(MAC)
    way = Way(parse_address(hop))
    monkeypatch.setattr(neighbour_lookup, "way", lambda address, interfaces: way)
    asked = ("explain", "p.yaml", "--json", "--sessions", "s.db", "http://a.example/", "--client")
    said = json.loads(here(*asked, "192.0.2.7").out)
    assert (said["mac"], said["status"]) == (mac, 511 if mac else None)
    given = json.loads(here(*asked, "192.0.2.7", "--mac", MAC).out)
    assert (given["mac"], given["status"]) == (MAC, 511)


# --- grant, revoke, clients --------------------------------------------------------------------


def test_a_grant_is_in_the_store_and_says_for_how_long(capport: Capport) -> None:
    ran = capport(
        "grant", "192.0.2.7", "--for", "2h", "--name", "Ada's phone", "--sessions", "s.db"
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("192.0.2.7 (by its address; no MAC is known for it) is known until ")
    assert ran.out.endswith(", for 2h\n")
    assert abs(printed_time(ran.out) - (time.time() + 7200)) < 60
    session = sessions("s.db")["192.0.2.7"]
    assert session.expires - session.granted == pytest.approx(7200)
    assert (session.name, session.how, session.by != "") == ("Ada's phone", "command", True)


@pytest.mark.parametrize(
    ("who", "filed"),
    [
        ("00-00-5E-00-53-01", MAC),
        ("2001:DB8::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        (f"{MAC}@192.0.2.7", f"{MAC}@192.0.2.7"),
    ],
)
def test_a_client_is_filed_under_one_spelling(here: Capport, who: str, filed: str) -> None:
    assert here("grant", who, "--sessions", "s.db").status == 0
    assert set(sessions("s.db")) == {filed}
    assert here("revoke", who, "--sessions", "s.db").out == f"{filed} is revoked\n"
    assert sessions("s.db") == {}


def test_lifetime_idle_and_store_are_the_policys(here: Capport, policy: str) -> None:
    Path(policy).write_text(POLICY + "  store: mine.db\n")
    ran = here("grant", "192.0.2.7", "--policy", policy)
    assert ran.out.endswith(", for 1h, or 10m without traffic\n")
    session = sessions("mine.db")["192.0.2.7"]
    assert session.expires - session.granted == pytest.approx(3600)
    assert session.idle == 600
    # What is left is until it ends whatever the client does, not the time of a silence.
    _, row = here("clients", "--policy", policy).out.splitlines()[:2]
    assert re.search(r"^192\.0\.2\.7 .* (1h|59m)", row), row
    asked = ("explain", policy, "--client", "192.0.2.7", "http://origin.example/")
    assert re.search(r"of 192\.0\.2\.7, (1h|59m).* left", here(*asked).out)
    assert here("revoke", "192.0.2.7", "--policy", policy).status == 0


def test_no_more_are_granted_than_the_policy_allows(here: Capport, policy: str) -> None:
    Path(policy).write_text(POLICY + "  store: mine.db\n  most: 1\n")
    assert here("grant", "192.0.2.7", "--policy", policy).status == 0
    error = here("grant", "192.0.2.8", "--policy", policy).error
    assert error == "there are as many sessions as sessions.most allows: 1"
    assert here("grant", "192.0.2.7", "--policy", policy).status == 0


def test_without_either_the_addons_own_defaults_hold(capport: Capport) -> None:
    assert capport("grant", "192.0.2.7").out.endswith(", for 8h\n")
    assert set(sessions("state/capport/sessions.db")) == {"192.0.2.7"}


def test_the_default_policy_says_nothing_of_sessions() -> None:
    assert policy_file.default().sessions == Sessions()


def test_the_user_that_grants_may_have_any_name(
    here: Capport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", os.fsdecode(b"Andr\xe9"))
    assert here("grant", "192.0.2.7", "--sessions", "s.db").status == 0
    assert sessions("s.db")["192.0.2.7"].by == r"Andr\udce9"


def test_a_second_grant_replaces_the_first(here: Capport) -> None:
    here("grant", "192.0.2.7", "--for", "2h", "--sessions", "s.db")
    here("grant", "192.0.2.7", "--for", "1m", "--sessions", "s.db")
    session = sessions("s.db")["192.0.2.7"]
    assert session.expires - session.granted == pytest.approx(60)


def test_a_client_that_no_session_makes_known_is_granted_none(
    here: Capport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def random_mac(facts: standing.Facts, policy: Policy) -> Standing | None:
        mac = facts.client.mac
        made_up = mac is not None and is_random(mac)
        return Standing(facts.client, Kind.BLOCKED, "has a made-up MAC") if made_up else None

    monkeypatch.setattr(standing, "RULES", (random_mac, *standing.RULES))
    error = here("grant", RANDOM_MAC).error
    assert error == f"{RANDOM_MAC} has a made-up MAC: a session would change nothing"
    assert here("grant", MAC).status == 0


@pytest.mark.parametrize("who", ["192.0.2.66", "::ffff:192.0.2.66", f"{MAC}@192.0.2.66"])
def test_a_blocked_client_is_not_granted_what_would_be_void(
    here: Capport, policy: str, who: str
) -> None:
    ran = here("grant", who, "--policy", policy)
    assert "192.0.2.66 is blocked by" in ran.error
    assert f"{policy}:4" in ran.error


@pytest.mark.parametrize("command", ["grant", "revoke"])
def test_what_is_in_one_process_cannot_be_changed_from_another(here: Capport, command: str) -> None:
    assert "--sessions PATH" in here(command, "192.0.2.7", "--sessions", ":memory:").error


@pytest.mark.parametrize("command", [("revoke", "192.0.2.7"), ("clients",)])
def test_a_command_that_only_looks_makes_no_file(here: Capport, command: tuple[str, ...]) -> None:
    here(*command, "--sessions", "s.db")
    assert not Path("s.db").exists()


def test_a_grant_that_cannot_be_kept_fails_in_one_line(here: Capport) -> None:
    Path("s.db").write_bytes(b"this is no database" * 100)
    assert "s.db" in here("grant", "192.0.2.7", "--sessions", "s.db").error
    assert "no/s.db" in here("grant", "192.0.2.7", "--sessions", "no/s.db").error
    refused = here("grant", "192.0.2.7", "--sessions", "redis://ann:pa55word@h/0").error
    assert "CAPPORT_REDIS_PASSWORD_FILE" in refused
    assert "pa55word" not in refused


def test_a_revocation_holds_though_the_database_is_broken(capport: Capport) -> None:
    put("s.db", "192.0.2.7")
    good = Path("s.db").read_bytes()
    Path("s.db").write_bytes(b"this is no database" * 100)
    ran = capport("revoke", "192.0.2.7", "--sessions", "s.db")
    assert ran.status == 0, ran
    assert "192.0.2.7 is revoked, whether or not it had a session" in ran.out
    Path("s.db").write_bytes(good)
    with store("s.db") as opened:
        assert opened.find([ClientId("192.0.2.7")], clock.now()) is None


def test_an_unknown_client_cannot_be_revoked(capport: Capport) -> None:
    put("s.db", "192.0.2.8")
    error = capport("revoke", "192.0.2.7", "--sessions", "s.db").error
    assert error == "192.0.2.7 has no session in s.db; see capport clients"
    assert set(sessions("s.db")) == {"192.0.2.8"}


def test_an_address_on_the_link_is_filed_under_its_mac(
    here: Capport, neighbours: dict[Address, Mac]
) -> None:
    for address in ("192.0.2.7", "2001:db8::7"):
        neighbours[parse_address(address)] = parse_mac(MAC)
    ran = here("grant", "192.0.2.7", "--for", "90s", "--sessions", "s.db")
    assert ran.out.startswith(f"{MAC} (now at 192.0.2.7, 2001:db8::7) is known until ")
    assert ran.out.endswith(", for 1m 30s\n")
    assert set(sessions("s.db")) == {MAC}
    assert "not on the network now" in here("grant", RANDOM_MAC, "--sessions", "s.db").out


@pytest.mark.parametrize("filed", [MAC, "192.0.2.7", "2001:db8::7", f"{MAC}@192.0.2.7"])
@pytest.mark.parametrize("named", [MAC, "192.0.2.7", "2001:db8::7"])
def test_a_session_is_found_whatever_it_is_filed_under(
    here: Capport, neighbours: dict[Address, Mac], filed: str, named: str
) -> None:
    for address in ("192.0.2.7", "2001:db8::7"):
        neighbours[parse_address(address)] = parse_mac(MAC)
    put("s.db", filed, "192.0.2.8", RANDOM_MAC)
    ran = here("revoke", named, "--sessions", "s.db")
    assert (ran.status, ran.out) == (0, f"{filed} is revoked\n")
    assert set(sessions("s.db")) == {"192.0.2.8", RANDOM_MAC}


def test_every_session_of_a_client_is_ended(here: Capport, neighbours: dict[Address, Mac]) -> None:
    neighbours[parse_address("192.0.2.7")] = parse_mac(MAC)
    mine = {MAC, "192.0.2.7", f"{MAC}@192.0.2.7", f"{MAC}@192.0.2.9"}
    put("s.db", *mine, f"{RANDOM_MAC}@192.0.2.8")
    ran = here("revoke", "192.0.2.7", "--sessions", "s.db")
    assert set(ran.out.splitlines()) == {f"{client} is revoked" for client in mine}
    assert set(sessions("s.db")) == {f"{RANDOM_MAC}@192.0.2.8"}


def test_a_bound_session_is_revoked_alone_when_it_is_named(
    here: Capport, neighbours: dict[Address, Mac]
) -> None:
    neighbours[parse_address("192.0.2.7")] = parse_mac(MAC)
    put("s.db", MAC, f"{MAC}@192.0.2.7")
    assert here("revoke", f"{MAC}@192.0.2.7", "--sessions", "s.db").status == 0
    assert set(sessions("s.db")) == {MAC}


def test_clients_tells_people(capport: Capport) -> None:
    put("s.db", "192.0.2.7", name="Ada", how="voucher 12", by="login server")
    put("s.db", RANDOM_MAC, seconds=7259)  # 2h, and still so in a minute
    put("s.db", "192.0.2.9", seconds=-1)
    ran = capport("clients", "--sessions", "s.db")
    assert (ran.status, ran.err) == (0, "")
    title, first, second, legend = ran.out.splitlines()
    assert title.split() == ["CLIENT", "NAME", "SINCE", "UNTIL", "LEFT", "HOW"]
    assert first.split()[:2] == ["192.0.2.7", "Ada"]
    assert first.endswith("  voucher 12, login server")
    assert second.startswith(f"{RANDOM_MAC}~ ")
    assert "2h" in second
    assert legend == "~ a MAC address that the device made up"


def test_clients_tells_programs(capport: Capport) -> None:
    put("s.db", f"{RANDOM_MAC}@2001:db8::7", name="Ada", how="command", by="root")
    ran = capport("clients", "--json", "--sessions", "s.db")
    (said,) = json.loads(ran.out)
    left = said.pop("seconds_remaining")
    assert 3000 < left <= 3600
    times = [said.pop(name) for name in ("granted", "expires", "ends")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)
    assert said == {
        "client": f"{RANDOM_MAC}@2001:db8::7",
        "mac": RANDOM_MAC,
        "address": "2001:db8::7",
        "random_mac": True,
        "name": "Ada",
        "idle": None,
        "by": "root",
        "how": "command",
    }


def test_clients_lists_those_that_a_rule_of_the_policy_makes_known(
    capport: Capport, tmp_path: Path
) -> None:
    put("s.db", "192.0.2.9")
    long = "2001:db8:1111:2222:3333:4444:5555:6666"
    (tmp_path / "staff.csv").write_text(f"{long}, {'Ada ' * 20}\n")
    (tmp_path / "lab.yaml").write_text(
        "login_url: https://login.example.net/\n"
        "clients:\n"
        "  - {address: 192.0.2.64/26, access: blocked}\n"
        f"  - {{mac: {RANDOM_MAC}, access: known, name: printer}}\n"
        "  - {address: 192.0.2.66, access: known}\n"  # idle: blocked by line 3
        "  - {address: 192.0.2.0/24, access: known}\n"
        "  - {address: 198.51.100.7, access: known}\n"
        "  - {file: staff.csv, access: known}\n"
    )
    asked = ("clients", "--sessions", "s.db", "--policy", str(tmp_path / "lab.yaml"))
    _, session, *rules, legend = capport(*asked).out.splitlines()
    assert session.startswith("192.0.2.9")
    assert [line.split() for line in rules[:3]] == [
        [f"{RANDOM_MAC}~", "printer", "always", "lab.yaml:4"],
        ["192.0.2.0/24", "always", "lab.yaml:6"],
        ["198.51.100.7", "always", "lab.yaml:7"],
    ]
    assert rules[3].startswith(long)
    assert rules[-1].split()[-2:] == ["always", "staff.csv:1"]
    assert legend.startswith("~ ")
    assert max(map(len, [session, *rules])) <= 80
    said = json.loads(capport(*asked, "--json").out)
    assert len({tuple(one) for one in said}) == 1  # the same members, in the same order
    rows = [(one["client"], one["mac"], one["address"], one["random_mac"]) for one in said[1:]]
    assert rows == [
        (RANDOM_MAC, RANDOM_MAC, None, True),
        ("192.0.2.0/24", None, None, None),
        ("198.51.100.7", None, "198.51.100.7", None),
        (long, None, long, None),
    ]
    assert [one["by"].rpartition("/")[2] for one in said[1:]] == [
        *("lab.yaml:4", "lab.yaml:6", "lab.yaml:7", "staff.csv:1")
    ]
    assert {one["how"] for one in said[1:]} == {"client rule"}
    assert {one["seconds_remaining"] for one in said[1:]} == {None}


def test_clients_leaves_out_a_session_of_a_client_that_the_policy_blocks(
    here: Capport, policy: str
) -> None:
    put("s.db", "192.0.2.66", "192.0.2.7")
    asked = ("clients", "--json", "--sessions", "s.db")
    assert [one["client"] for one in json.loads(here(*asked).out)] == ["192.0.2.66", "192.0.2.7"]
    by_policy = json.loads(here(*asked, "--policy", policy).out)
    assert [one["client"] for one in by_policy] == ["192.0.2.7", "02:00:00:00:00:07"]


def test_clients_says_that_no_client_has_a_session(here: Capport) -> None:
    assert here("clients").out == "Nobody has a session.\n"
    assert json.loads(here("clients", "--json").out) == []


@pytest.mark.parametrize(
    "command", ["clients", "grant 192.0.2.7", "revoke 192.0.2.7", "user list", "voucher new"]
)
def test_a_name_of_nothing_is_not_the_default_store(here: Capport, command: str) -> None:
    """As from a variable of the shell that is not set."""
    assert "names no file" in here(*command.split(), "--sessions", "").error
    assert not Path("state").exists()


def test_a_store_that_was_named_has_to_be_there(here: Capport, tmp_path: Path) -> None:
    for more in ((), ("--json",)):
        ran = here("clients", "--sessions", f"{tmp_path}/no/a.db", *more)
        assert f"there is no {tmp_path}/no/a.db; name the portal's store" in ran.error
    (tmp_path / "p.yaml").write_text(f"{POLICY}  store: sqlite://{tmp_path}/not/yet.db\n")
    assert here("clients", "--policy", "p.yaml").status == 0


# --- vouchers ----------------------------------------------------------------------------------


def test_a_sheet_says_where_to_go_only_if_a_policy_does(here: Capport, policy: str) -> None:
    without = here("voucher", "new", "--sessions", "s.db").out
    assert "page that opens" in " ".join(without.split())
    assert "://" not in without
    by_policy = here("voucher", "new", "--policy", policy, "--sessions", "s.db").out
    assert "https://login.example.net" in by_policy


def test_a_sheet_of_vouchers_is_printed_and_can_be_used(capport: Capport, policy: str) -> None:
    ran = capport(
        *("voucher", "new", "--count", "3", "--for", "24h", "--devices", "2", "--note", "July"),
        *("--sessions", "s.db"),
    )
    assert (ran.status, ran.err) == (0, "")
    codes = re.findall(r"\b[0-9A-Z]{4}(?:-[0-9A-Z]{4}){3}\b", ran.out)
    assert len(codes) == 3
    assert ran.out.count("for 2 devices") == 3
    assert re.findall(r"No\. (\d)", ran.out) == ["1", "2", "3"]
    with contextlib.closing(Records(Path("portal.db"))) as records:
        code = vouchers.digest(codes[0])
        assert code is not None
        assert records.use_voucher(code, ClientId("192.0.2.7"), moment()) == (1, 86400.0)
    listed = capport("voucher", "list", "--sessions", "s.db")
    assert not any(code in listed.out for code in codes)
    assert max(map(len, listed.out.splitlines())) <= 80
    said = json.loads(capport("voucher", "list", "--json", "--sessions", "s.db").out)
    assert [(one["number"], one["used"], one["state"]) for one in said] == [
        (1, 1, "open"),
        (2, 0, "open"),
        (3, 0, "open"),
    ]


def test_a_voucher_or_user_that_the_policy_does_not_ask_for_gets_a_warning(
    here: Capport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n" * 3))
    embedded = "login_server: {{listen: 127.0.0.1:8511, conditions: {}}}\n"
    none = "login_url: https://login.example.net/\n"
    cases = {"voucher": embedded.format("voucher"), "password": embedded.format("password")}
    for name, text in (cases | {"terms": embedded.format("terms"), "none": none}).items():
        (tmp_path / name).write_text(f"{text}sessions: {{store: 'sqlite://{tmp_path}/s.db'}}\n")
    for command, wanted in ((("voucher", "new"), "voucher"), (("user", "add", "ada"), "password")):
        assert here(*command, "--policy", wanted).err == ""
        said = here(*command, "--policy", "terms")
        want = "warning: nobody is asked for it: terms has login_server.conditions: terms\n"
        assert (said.status, said.err) == (0, want)
        said = here(*command, "--policy", "none")
        assert said.err == "warning: nobody is asked for it: none has no login_server\n"


def test_a_revoked_voucher_ends_the_sessions_that_it_opened(here: Capport) -> None:
    here("voucher", "new", "--sessions", "s.db")
    with contextlib.closing(Records(Path("portal.db"))) as records:
        records.add_vouchers([b"x"], lifetime=60, devices=9, valid=None, note="", at=moment())
        for client in ("192.0.2.7", "192.0.2.8", "192.0.2.9"):
            records.use_voucher(b"x", ClientId(client), moment())
    put("s.db", "192.0.2.7", how="voucher 2, terms 1")
    put("s.db", "192.0.2.8", how="command")  # granted again, in another way
    ran = here("voucher", "revoke", "2", "--sessions", "s.db")
    assert (ran.status, ran.out) == (0, "voucher 2 is revoked\n192.0.2.7 is revoked\n")
    assert set(sessions("s.db")) == {"192.0.2.8"}
    said = json.loads(here("voucher", "list", "--json", "--sessions", "s.db").out)
    assert [one["state"] for one in said] == ["open", "revoked"]
    assert "there is no voucher 7" in here("voucher", "revoke", "7", "--sessions", "s.db").error


def test_the_clock_that_vouchers_expire_by_can_be_asked_and_put_right(here: Capport) -> None:
    here("voucher", "new", "--sessions", "s.db")
    assert "Vouchers expire by it." in here("voucher", "clock", "--sessions", "s.db").out
    with contextlib.closing(Records(Path("portal.db"))) as records:
        ahead = moment()
        records.keep_time(replace(ahead, wall=ahead.wall + 1e9, boot="the boot before"))
    unsure = here("voucher", "clock", "--sessions", "s.db").out
    assert "vouchers that expire are not accepted" in unsure
    assert unsure.endswith(
        "\nIf it was wrong then and is right now, run `capport voucher clock --is-right`.\n"
    )
    refused = here("voucher", "new", "--valid", "1d", "--sessions", "s.db")
    assert (refused.status, "capport voucher clock --is-right" in refused.error) == (1, True)
    assert here("voucher", "new", "--sessions", "s.db").status == 0
    right = here("voucher", "clock", "--is-right", "--sessions", "s.db").out
    assert "Vouchers expire by it." in right
    assert here("voucher", "new", "--valid", "1d", "--sessions", "s.db").status == 0


# --- users and tokens --------------------------------------------------------------------------


def test_a_user_can_be_added_and_removed(here: Capport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert here("user", "add", "Ada", "--sessions", "s.db").out == "ada can sign in\n"
    with contextlib.closing(Records(Path("portal.db"))) as records:
        assert is_password(records.password_of("ada"), "correct horse")
    assert here("user", "list", "--sessions", "s.db").out == "ada\n"
    assert here("user", "remove", "ADA", "--sessions", "s.db").status == 0
    assert here("user", "remove", "ada", "--sessions", "s.db").error.startswith("there is no user")
    assert here("user", "list", "--sessions", "s.db").out == ""


def test_a_user_without_a_password_is_not_added(
    here: Capport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "1 to 256 characters" in here("user", "add", "ada", "--sessions", "s.db").error
    assert "is not a name" in here("user", "add", "\x1b", "--sessions", "s.db").error
    assert here("user", "list", "--sessions", "s.db").out == ""


@pytest.mark.parametrize(
    ("piped", "why"),
    [
        (b"Schl\xfcssel\n", "not utf-8: nothing is changed"),
        (b"x" * 10_000_000, "1 to 256 characters"),
    ],
    ids=["latin-1", "endless"],
)
def test_an_unusable_password_is_an_error_of_one_line(
    here: Capport, monkeypatch: pytest.MonkeyPatch, piped: bytes, why: str
) -> None:
    source = io.BytesIO(piped)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source, "utf-8"))
    assert why in here("user", "add", "ada", "--sessions", "s.db").error
    assert source.tell() < 100_000
    assert here("user", "list", "--sessions", "s.db").out == ""


def test_a_prompt_that_is_left_is_an_error_of_one_line(
    here: Capport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", left)
    assert "nothing is changed" in here("user", "add", "ada", "--sessions", "s.db").error


def test_a_token_is_shown_once_and_known_by_its_digest(here: Capport) -> None:
    token = here("token", "new", "hotel desk", "--sessions", "s.db").out.strip()
    with contextlib.closing(Records(Path("portal.db"))) as records:
        assert records.token_name(token_digest(token)) == "hotel desk"
    assert token.encode() not in Path("portal.db").read_bytes()


def test_a_token_can_be_ended(here: Capport) -> None:
    token = here("token", "new", "hotel desk", "--sessions", "s.db").out.strip()
    here("token", "new", "bar", "--sessions", "s.db")
    assert here("token", "list", "--sessions", "s.db").out == "bar\nhotel desk\n"
    assert here("token", "remove", "hotel desk", "--sessions", "s.db").status == 0
    again = here("token", "remove", "hotel desk", "--sessions", "s.db")
    assert again.error == "there is no token hotel desk; see capport token list"
    assert here("token", "list", "--sessions", "s.db").out == "bar\n"
    with contextlib.closing(Records(Path("portal.db"))) as records:
        assert records.token_name(token_digest(token)) is None


# --- router, script ----------------------------------------------------------------------------


def test_a_router_needs_its_part_of_the_policy(capport: Capport, policy: str) -> None:
    assert f"{policy} has no router" in capport("router", "up", policy).error


def test_the_script_lies_beside_the_package(capport: Capport) -> None:
    path = Path(capport("script").out.removesuffix("\n"))
    assert path == CHECKOUT / "addon" / "captive_portal.py"
    assert path.is_file()


def test_the_script_is_found_where_the_package_is_installed(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(CHECKOUT / "addon", site, ignore=shutil.ignore_patterns("__pycache__"))
    ran = subprocess.run(
        [sys.executable, "-m", "capport", "script"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        check=True,
    )
    assert ran.stdout == f"{site / 'captive_portal.py'}\n"
