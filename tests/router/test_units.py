"""The units of scripts/router/: their settings hold, and their commands keep the promised order.

The commands are those of the files, with no more capabilities than the units give, in namespaces
in place of a machine that boots.
"""

import configparser
import contextlib
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import requires
from capport import clock
from capport.core.client import ClientId
from capport.core.policy import Sessions
from capport.core.session import Session
from capport.stores.opening import open_store
from capport.stores.sqlite.session_schema import COLUMNS
from conftest import SOON
from lab.namespaces import Namespace, end, namespaces, veth, wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = CHECKOUT / "scripts" / "router"
UNITS = sorted(FOLDER.glob("*.service"))
CAPPORT = str(Path(sys.executable).with_name("capport"))

KNOWN, UNKNOWN, ORIGIN, ECHO = "192.0.2.7", "192.0.2.8", "198.51.100.2", 7
KNOWN6, UNKNOWN6, ORIGIN6 = "2001:db8:1::7", "2001:db8:1::8", "2001:db8:2::2"
ROUTER6 = "2001:db8:1::1"
POLICY = f"""\
login_url: https://login.example.net/
clients:
  - {{address: {KNOWN}, access: known}}
  - {{address: {KNOWN6}, access: known}}
sessions:
  store: sqlite://{{folder}}/sessions.db
router:
  client_interface: br-lan
  origin_interface: wan
"""


def values(unit: str, key: str) -> list[str]:
    """Each value of a key, in order: a unit may have several."""
    lines = (FOLDER / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def words(unit: str, key: str) -> list[str]:
    return " ".join(values(unit, key)).split()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(unit)
        assert parser.sections() == ["Unit", "Service", "Install"]
        return
    for each in UNITS:
        (tmp_path / each.name).write_text(
            each.read_text().replace("/opt/capport/bin/capport", f'"{CAPPORT}"')
        )
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    verified = subprocess.run(
        [*argv, str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    # 10 is a service with nothing held back; one that needs the network and CAP_NET_ADMIN is at 2.
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager"]
    judged = subprocess.run(
        [*security, str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("unit", [path.name for path in UNITS])
def test_a_unit_may_do_no_more_than_change_the_network(unit: str) -> None:
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert words(unit, key) == ["CAP_NET_ADMIN"]
    assert words(unit, "User") == ["capport"]
    assert words(unit, "NoNewPrivileges") == ["yes"]
    assert words(unit, "ProtectSystem") == ["strict"]


def test_the_rules_come_before_any_network_and_the_portal_after_the_rules() -> None:
    assert "network-pre.target" in words("capport-router.service", "Before")
    assert words("capport-router.service", "DefaultDependencies") == ["no"]
    for key in ("Wants", "PartOf", "After"):
        assert "capport-router.service" in words("capport.service", key)


def test_no_unit_is_given_up_for_good_nor_holds_the_network_up_where_the_rules_fail_at_first() -> (
    None
):
    # Only a unit that requires them, or that they want, does that: seen at a boot.
    assert "capport-router.service" not in words("capport.service", "Requires")
    assert words("capport-router.service", "Wants") == ["network-pre.target"]
    assert words("capport.service", "WantedBy") == ["multi-user.target"]
    assert words("capport-router.service", "WantedBy") == ["multi-user.target"]
    for unit in UNITS:
        assert words(unit.name, "StartLimitIntervalSec") == ["0"]


def test_the_files_that_the_units_name_are_those_that_are_here() -> None:
    text = "".join(unit.read_text() for unit in UNITS)
    named = set(re.findall(r"/etc/capport/(\S+)", text))
    assert named == {"policy.yaml", "closed.nft", "resolver-%i.conf"}
    assert (FOLDER / "closed.nft").exists()
    assert (FOLDER / "resolver-unknown.conf").exists()


class Booting:
    """A client, a router and an origin; the units' commands are carried out on the router."""

    def __init__(self, client: Namespace, router: Namespace, origin: Namespace, folder: Path):
        self.client, self.router, self.folder = client, router, folder
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY.replace("{folder}", str(folder)))
        veth(client, "eth0", router, "br-lan")
        veth(origin, "eth0", router, "wan")
        router.ip(
            "address add 192.0.2.1/24 dev br-lan",
            "address add 198.51.100.1/24 dev wan",
            f"address add {ROUTER6}/64 dev br-lan nodad",
            "address add 2001:db8:2::1/64 dev wan nodad",
            "link set br-lan up",
            "link set wan up",
        )
        client.ip(
            *(f"address add {address}/24 dev eth0" for address in (KNOWN, UNKNOWN)),
            *(f"address add {address}/64 dev eth0 nodad" for address in (KNOWN6, UNKNOWN6)),
            "link set eth0 up",
            "route add default via 192.0.2.1",
            f"route add default via {ROUTER6}",
        )
        origin.ip(
            f"address add {ORIGIN}/24 dev eth0",
            f"address add {ORIGIN6}/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 198.51.100.1",
            "route add default via 2001:db8:2::1",
        )

    def argv(self, command: str) -> list[str]:
        """A unit's command with a unit's capabilities, on the router."""
        for there, here in {
            "/opt/capport/bin/capport": CAPPORT,
            "/etc/capport/policy.yaml": str(self.policy),
            "/etc/capport/closed.nft": str(FOLDER / "closed.nft"),
            "/var/lib/capport": str(self.folder),
        }.items():
            command = command.replace(there, shlex.quote(here))
        only = "-all,+net_admin"
        held = [f"--{which}={only}" for which in ("bounding-set", "inh-caps", "ambient-caps")]
        return ["setpriv", "--no-new-privs", *held, *shlex.split(command.removeprefix("-"))]

    def carry_out(self, key: str, unit: str = "capport-router.service") -> list[int]:
        """The statuses of a key's commands; the first that fails is the last that is run."""
        statuses = []
        for command in values(unit, key):
            done = self.router.run(*self.argv(command))
            statuses.append(done.returncode)
            if done.returncode:
                break
        return statuses

    def reaches(self, source: str, seconds: float = 0.4) -> bool:
        """Whether a connection from `source` comes to the origin."""

        def connect() -> bool:
            origin = ORIGIN6 if ":" in source else ORIGIN
            with contextlib.suppress(OSError):
                socket.create_connection((origin, ECHO), seconds, (source, 0)).close()
                return True
            return False

        return self.client.call(connect)

    def awaits(self, source: str) -> None:
        """Returns once it does: a link's own address comes first, and a busy machine is slow."""
        wait_for(lambda: self.reaches(source, SOON), message=f"{source} does not reach the origin")

    def forwarding(self) -> str:
        def read() -> str:
            return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()

        return self.router.call(read)


@pytest.fixture
def booting(tmp_path: Path) -> Iterator[Booting]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft"))
    with namespaces("client", "router", "origin") as (client, router, origin):
        it = Booting(client, router, origin, tmp_path)
        listeners = [
            origin.call(socket.create_server, ("", ECHO)),
            origin.call(lambda: socket.create_server(("", ECHO), family=socket.AF_INET6)),
        ]
        try:
            yield it
        finally:
            for listener in listeners:
                listener.close()


@pytest.fixture
def booted(booting: Booting) -> Booting:
    """The same, once the rules are in force."""
    for key in ("ExecStartPre", "ExecStart", "ExecStartPost"):
        assert set(booting.carry_out(key)) == {0}
    return booting


def test_forwarding_begins_when_the_rules_are_in_force(booting: Booting) -> None:
    booting.router.sysctl(ipv4__ip_forward=0)
    assert booting.carry_out("ExecStartPre") == [0]
    assert booting.carry_out("ExecStart") == [0]
    assert booting.forwarding() == "0"
    assert not booting.reaches(KNOWN)
    assert set(booting.carry_out("ExecStartPost")) == {0}
    assert booting.forwarding() == "1"
    booting.awaits(KNOWN)
    booting.awaits(KNOWN6)
    assert not booting.reaches(UNKNOWN)
    assert not booting.reaches(UNKNOWN6)


def test_nothing_is_forwarded_before_the_rules_nor_where_they_cannot_be_put_in_force(
    booting: Booting,
) -> None:
    booting.router.sysctl(ipv4__ip_forward=1)  # by something that did not wait
    booting.awaits(KNOWN)
    assert booting.carry_out("ExecStartPre") == [0]
    assert not booting.reaches(KNOWN)
    good = booting.policy.read_text()
    booting.policy.write_text(good.replace("router:", "ruoter:"))
    assert booting.carry_out("ExecStart") == [1]
    assert not booting.reaches(KNOWN)
    booting.policy.write_text(good)
    assert booting.carry_out("ExecStartPre") == [0]
    assert booting.carry_out("ExecStart") == [0]
    assert set(booting.carry_out("ExecStartPost")) == {0}
    booting.awaits(KNOWN)


def test_a_reload_that_fails_leaves_the_rules_and_a_stop_leaves_it_closed(booted: Booting) -> None:
    good = booted.policy.read_text()
    booted.policy.write_text("login_url: nowhere\n")
    assert booted.carry_out("ExecReload") == [1]
    booted.awaits(KNOWN)
    assert not booted.reaches(UNKNOWN)
    booted.policy.write_text(good)
    assert booted.carry_out("ExecReload") == [0]
    assert set(booted.carry_out("ExecStop")) == {0}
    assert set(booted.carry_out("ExecStopPost")) == {0}
    assert booted.forwarding() == "0"
    booted.router.sysctl(ipv4__ip_forward=1)
    assert not booted.reaches(KNOWN)
    assert not booted.reaches(UNKNOWN)
    tables = booted.router.run("nft", "list", "tables").stdout.split("\n")
    assert [line for line in tables if line] == ["table inet capport_closed"]


def test_a_stop_closes_also_where_it_was_in_the_middle_of_a_reload_and_the_ruleset_is_flushed(
    booted: Booting,
) -> None:
    # systemd carries out no ExecStop= then, and a stop of nftables.service flushes what is left.
    booted.awaits(KNOWN6)
    for _ in range(2):
        assert set(booted.carry_out("ExecStopPost")) == {0}
    booted.router.run("nft", "flush", "ruleset")
    for source in (KNOWN, UNKNOWN, KNOWN6, UNKNOWN6):
        assert not booted.reaches(source)
    for key in ("ExecStartPre", "ExecStart", "ExecStartPost"):
        assert set(booted.carry_out(key)) == {0}
    booted.awaits(KNOWN)
    booted.awaits(KNOWN6)


def test_a_stop_does_not_tell_clients_that_there_is_no_ipv6_router_any_more(
    booted: Booting,
) -> None:
    # RFC 4861 section 7.2.5: a router that says so is no longer a default router, and a restart
    # would leave every client without IPv6 until the next advertisement.
    assert set(booted.carry_out("ExecStop")) == {0}
    assert set(booted.carry_out("ExecStopPost")) == {0}

    def heard() -> str:
        booted.client.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)).sendto(
            b"", (ROUTER6, 9)
        )
        shown = booted.client.run("ip", "-6", "neighbour", "show", ROUTER6)
        return shown.stdout

    booted.client.ip("neighbour flush dev eth0")
    wait_for(lambda: "lladdr" in heard(), message="the router does not answer")
    assert " router " in heard()


def test_the_portal_keeps_the_kernels_set_with_the_units_capabilities_and_says_that_it_serves(
    booted: Booting,
) -> None:
    [command] = values("capport.service", "ExecStart")
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(booted.folder / "notify"),
        "WATCHDOG_USEC": "300000",
    }
    log = booted.folder / "log"
    with heard_by_systemd(booted.folder / "notify") as said:
        with log.open("wb") as out:
            portal = booted.router.start(*booted.argv(command), log=out, env=environment)
        try:
            wait_for(lambda: len(said) > 3 or portal.poll() is not None)
            assert said[:4] == [b"READY=1", *[b"WATCHDOG=1"] * 3], log.read_text()
            at = ("--policy", str(booted.policy))
            assert not booted.reaches(UNKNOWN)
            granted = booted.router.run(CAPPORT, "grant", UNKNOWN, *at)
            assert granted.returncode == 0, granted.stderr
            booted.awaits(UNKNOWN)
            assert booted.router.run(CAPPORT, "revoke", UNKNOWN, *at).returncode == 0
            assert not booted.reaches(UNKNOWN)
            end(portal, SOON)
            wait_for(lambda: said[-1] == b"STOPPING=1")
            assert set(said[1:-1]) == {b"WATCHDOG=1"}
        finally:
            end(portal)


def test_as_many_sessions_as_the_default_allows_fit_in_the_units_memory(booted: Booting) -> None:
    """Each under a MAC with an idle time, as with `terms`: all are in the kernel's sets too."""
    most, now = Sessions().most, clock.now()
    file = booted.folder / "sessions.db"
    with contextlib.closing(open_store(str(file))) as store:
        store.put(Session(ClientId("02:00:00:00:00:00"), now, now + 3600, 1800.0))
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        copied = COLUMNS.removeprefix("client, ")
        for number in range(1, most):
            client = (0x020000000000 + number).to_bytes(6).hex(":")
            db.execute(
                f"INSERT INTO sessions ({COLUMNS}) SELECT ?, {copied} FROM sessions"
                " WHERE client = '02:00:00:00:00:00'",
                (client,),
            )
    assert booted.carry_out("ExecReload") == [0]
    [command] = values("capport.service", "ExecStart")
    [limit] = values("capport.service", "MemoryMax")
    environment = {**os.environ, "NOTIFY_SOCKET": str(booted.folder / "notify")}
    with heard_by_systemd(booted.folder / "notify") as said:
        portal = booted.router.start(*booted.argv(command), env=environment)
        try:
            wait_for(lambda: b"READY=1" in said or portal.poll() is not None)
            status = Path(f"/proc/{portal.pid}/status").read_text()
            listed = booted.router.run("nft", "list", "set", "inet", "capport", "macs").stdout
        finally:
            end(portal, SOON)
    assert listed.count("expires") == most
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert limit.endswith("M")
    # Half of it is left for what clients can make it hold in addition.
    assert int(peak) / 1024 < int(limit[:-1]) / 2, f"{int(peak) // 1024} MiB of {limit}"


@contextlib.contextmanager
def heard_by_systemd(path: Path) -> Iterator[list[bytes]]:
    """Reads the notification socket all the time: senders fail if its short queue is full."""
    said: list[bytes] = []

    def hear() -> None:
        while word := receiver.recv(100):
            said.append(word)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        hearing = threading.Thread(target=hear)
        hearing.start()
        try:
            yield said
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(path))
            hearing.join()


def test_a_portal_that_systemd_did_not_start_serves_without_it(
    booting: Booting,
) -> None:
    argv = booting.argv(values("capport.service", "ExecStart")[0])
    nobody = {"NOTIFY_SOCKET": str(booting.folder / "nobody"), "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **nobody}
    log = booting.folder / "log"
    with log.open("wb") as said:
        portal = booting.router.start(*argv, log=said, env=environment)
    try:
        wait_for(lambda: "Cannot send READY=1 to systemd" in log.read_text())
        assert portal.poll() is None
    finally:
        end(portal)


@pytest.mark.parametrize("journal", [True, False])
def test_what_the_portal_says_is_in_the_log_at_once_and_in_the_journal_with_its_level(
    booting: Booting, journal: bool
) -> None:
    argv = booting.argv(values("capport.service", "ExecStart")[0])
    log = booting.folder / "log"
    with log.open("wb") as said:
        at = os.fstat(said.fileno())
        stream = f"{at.st_dev}:{at.st_ino if journal else at.st_ino + 1}"
        environment = {**os.environ, "JOURNAL_STREAM": stream}
        environment.pop("PYTHONUNBUFFERED", None)
        portal = booting.router.start(*argv, log=said, env=environment)
    try:
        wait_for(
            lambda: "does not stop unknown clients" in log.read_text(), message="nothing is said"
        )
        portal.kill()
        portal.wait(SOON)
        lines = log.read_text().splitlines()
        assert any("Policy in force: " in line for line in lines)
        if journal:
            assert {line[:3] for line in lines} == {"<4>", "<6>"}
            [line] = [line for line in lines if "does not stop unknown clients" in line]
            assert line.startswith("<4>There is no table inet capport: ")
        else:
            assert all(re.match(r"\[[0-9:.]+\] ", line) for line in lines)
    finally:
        end(portal)
