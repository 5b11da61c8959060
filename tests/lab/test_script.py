"""`scripts/lab`: one command in a client, its status, and nothing left of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import requires
from lab.namespaces import STATE, wait_for
from lab.network import CAPTIVE_PORTAL, CHECKOUT, POLICY

pytestmark = [
    pytest.mark.lab,
    requires.namespaces(),
    requires.tool("nft", "dnsmasq", "curl"),
]

COMMAND = [sys.executable, "-m", "lab"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(pid: int) -> list[str]:
    """What process `pid` has left of its lab."""
    places = (Path("/run/netns"), Path("/etc/netns"), STATE)
    return [
        path.name
        for place in places
        if place.exists()
        for path in place.iterdir()
        if path.name.startswith((f"cplab-{pid}-", f"{pid}.")) or path.name == str(pid)
    ]


def test_it_runs_a_command_and_returns_its_status() -> None:
    command = "curl -s -o /dev/null -w '%{http_code}' http://www.example.com/; exit 7"
    lab = start("--run", command)
    out, err = lab.communicate(timeout=100)
    assert (out, lab.returncode) == ("511", 7), err
    assert left(lab.pid) == []


def test_ctrl_d_ends_the_shell_and_the_lab() -> None:
    lab = start("--clients", "2")
    out, err = lab.communicate("curl -s -m60 http://www.example.org/\n", timeout=100)
    assert lab.returncode == 0, err
    assert "You are an unknown client" in out
    assert "origin, to 198.51.100.1" in out
    assert left(lab.pid) == []


@requires.tool("redis-server")
def test_with_two_routers_a_client_moves_between_their_access_points() -> None:
    lab = start("--routers", "2")
    moves = "ip netns identify; roam 3; roam 2 && curl -s -m60 http://www.example.org/"
    out, err = lab.communicate(f"{moves}\n", timeout=200)
    assert lab.returncode == 0, err
    assert "On the router 2, in another terminal:" in out
    assert "usage: roam 1..2" in err
    assert "origin, to 198.51.100.12" in out, "by the second router"
    assert left(lab.pid) == []


def test_several_routers_have_the_labs_own_policy(tmp_path: Path) -> None:
    lab = start("--routers", "2", "--policy", str(tmp_path / "own.yaml"))
    _, err = lab.communicate(timeout=100)
    assert lab.returncode == 2
    assert "several routers have the lab's own policy" in err


@pytest.mark.rfc(8910, "2", "the URI MUST be that of the captive portal API endpoint")
@pytest.mark.rfc(8908, "4", "MUST be accessed over HTTP using an https URI")
@pytest.mark.rfc(8908, "4", "SHOULD use the default https port")
def test_the_api_is_where_dhcp_and_the_advertisements_say() -> None:
    """RFC 8910 section 2, RFC 8908 section 4: over https, with a certificate that verifies."""
    ask = f"curl -sS -H 'Accept: application/captive+json' {CAPTIVE_PORTAL}"
    lab = start("--run", ask)
    out, err = lab.communicate(timeout=100)
    assert lab.returncode == 0, err
    said = json.loads(out)
    assert said["captive"] is True
    assert said["user-portal-url"].startswith("https://login.example.net/")


def test_ended_from_outside_it_leaves_nothing() -> None:
    lab = start("--run", "echo up; sleep 600")
    assert lab.stdout is not None
    assert lab.stdout.readline() == "up\n"
    lab.send_signal(signal.SIGTERM)
    lab.communicate(timeout=100)
    assert lab.returncode == 128 + signal.SIGTERM
    assert left(lab.pid) == []


def test_what_a_killed_lab_left_the_next_one_clears_away() -> None:
    lab = start("--run", "echo up; sleep 600")
    assert lab.stdout is not None
    assert lab.stdout.readline() == "up\n"
    assert left(lab.pid) != []  # seen now: any lab that starts after the kill clears it away
    lab.kill()
    lab.wait(100)
    following = start("--run", "true")
    _, err = following.communicate(timeout=100)
    assert following.returncode == 0, err
    wait_for(lambda: left(lab.pid) == [])
    assert left(following.pid) == []


def test_a_policy_that_cannot_be_used_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    policy = tmp_path / "bad.yaml"
    policy.write_text("login_ulr: https://login.example.net/\n")
    lab = start("--policy", str(policy), "--run", "true")
    _, err = lab.communicate(timeout=100)
    assert lab.returncode == 1
    assert err.startswith(f"scripts/lab: {policy}:1:1: ")
    assert "login_ulr" in err
    assert "Traceback" not in err
    assert left(lab.pid) == []


def test_a_missing_policy_is_reported_in_one_line(tmp_path: Path) -> None:
    lab = start("--policy", str(tmp_path / "none.yaml"), "--run", "true")
    _, err = lab.communicate(timeout=100)
    assert lab.returncode == 1
    assert err.startswith(f"scripts/lab: {tmp_path}/none.yaml: ")
    assert err.count("\n") == 1
    assert left(lab.pid) == []


def test_a_policy_for_other_interfaces_is_not_one_for_the_lab() -> None:
    """Its rules would let every client through."""
    lab = start("--policy", str(CHECKOUT / "policies" / "hotel.yaml"), "--run", "true")
    _, err = lab.communicate(timeout=100)
    assert (lab.returncode, err.count("\n")) == (1, 1), err
    assert "has guests and wan as the router's interfaces" in err
    assert left(lab.pid) == []


def test_a_policy_of_ones_own_finds_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "staff.csv").write_text("02:00:00:00:00:01\n")
    policy = tmp_path / "own.yaml"
    store = f"sessions: {{store: 'sqlite://{tmp_path}/s.db'}}\n"
    policy.write_text(POLICY.replace("sessions:\n  store: sqlite://{folder}/sessions.db\n", store))
    with policy.open("a") as file:
        file.write("clients:\n  - {file: staff.csv, access: known}\n")
    ask = "curl -s -m60 -o /dev/null -w '%{http_code}' http://www.example.com/"
    lab = start("--policy", str(policy), "--run", ask)
    out, err = lab.communicate(timeout=100)
    assert (out, lab.returncode) == ("200", 0), err
