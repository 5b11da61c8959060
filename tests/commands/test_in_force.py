"""Grants and revocations with the router's rules up: real nftables, in a namespace."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import requires
from capport import clock
from capport.commands import in_force
from capport.commands.login_records import moment
from capport.core.client import ClientId
from capport.core.policy import Policy
from capport.linux.neighbours import NetlinkNeighbours
from capport.policy import policy_file
from capport.router.known_clients import KnownClients
from capport.stores.opening import open_store
from capport.web.records import Records
from commandline import capport
from lab.namespaces import Namespace, let_go, namespaces
from stores.contract import session

pytestmark = [pytest.mark.lab, requires.namespaces(), requires.tool("nft")]

MAC, HOP = "00:00:5e:00:53:07", "00:00:5e:00:53:09"  # RFC 7042 section 2.1.2
POLICY = """\
login_url: https://login.example.net/
clients:
  - {address: 192.0.2.66, access: blocked}
router: {client_interface: lan0, origin_interface: wan0}
"""


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A router with a client on the link, whose rules are up."""
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)
    with namespaces("inforce") as (made,):
        made.ip(
            "link add lan0 type bridge",
            "link add wan0 type bridge",
            "link set lan0 up",
            "addr add 192.0.2.1/24 dev lan0",
            f"neigh add 192.0.2.7 lladdr {MAC} dev lan0 nud permanent",
            f"neigh add 192.0.2.8 lladdr {HOP} dev lan0 nud permanent",
            "route add 198.51.100.0/24 via 192.0.2.8",
        )
        ran = run(made, "router", "up", "policy.yaml", "--sessions", "s.db")
        assert ran.returncode == 0, ran.stderr
        yield made
    let_go()


def run(router: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return router.call(capport, *arguments)


def run_patiently(router: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same, with more than a second for the portal, which this process is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_force, "PATIENCE", 60.0)
        return run(router, *arguments)


@contextlib.contextmanager
def followed(router: Namespace, folder: Path) -> Iterator[None]:
    """Does what a portal does: the rules follow the store."""
    policy: Policy = policy_file.load(folder / "policy.yaml")
    with (
        contextlib.closing(open_store(str(folder / "s.db"))) as store,
        contextlib.closing(router.call(NetlinkNeighbours, ["lan0"])) as neighbours,
    ):
        known = router.call(KnownClients, lambda: policy, store, neighbours)
        with contextlib.closing(known):
            store.watch(known.changed)
            router.call(known.start)
            yield


def known(router: Namespace) -> str:
    return router.run("nft", "list", "set", "inet", "capport", "known4").stdout


def test_the_kernel_has_let_the_client_in_when_a_grant_returns(
    router: Namespace, tmp_path: Path
) -> None:
    with followed(router, tmp_path):
        for _ in range(3):
            granted = run_patiently(router, "grant", "192.0.2.7", "--sessions", "s.db")
            assert (granted.returncode, granted.stderr) == (0, "")
            assert granted.stdout.startswith(f"{MAC} (now at 192.0.2.7) is known until ")
            assert f"192.0.2.7 . {MAC}" in known(router)
            revoked = run_patiently(router, "revoke", "192.0.2.7", "--sessions", "s.db")
            assert (revoked.returncode, revoked.stdout) == (0, f"{MAC} is revoked\n")
            assert MAC not in known(router)


def test_a_client_behind_another_router_is_known_by_its_address_and_that_routers_mac(
    router: Namespace, tmp_path: Path
) -> None:
    with followed(router, tmp_path):
        granted = run_patiently(router, "grant", "198.51.100.7", "--sessions", "s.db")
        assert (granted.returncode, granted.stderr) == (0, "")
        assert f"198.51.100.7 . {HOP}" in known(router)
        revoked = run_patiently(router, "revoke", "198.51.100.7", "--sessions", "s.db")
        assert (revoked.returncode, revoked.stdout) == (0, "198.51.100.7 is revoked\n")
        assert HOP not in known(router)


def test_a_grant_that_nobody_carries_over_says_so(router: Namespace, tmp_path: Path) -> None:
    ran = run(router, "grant", "192.0.2.7", "--sessions", "s.db")
    assert ran.returncode == 1
    assert "no portal that uses this store runs" in ran.stderr
    assert f"{MAC} (now at 192.0.2.7) is known until " in ran.stdout  # stored nevertheless
    with contextlib.closing(open_store(str(tmp_path / "s.db"))) as store:
        assert [session.client for session in store.sessions()] == [MAC]


def test_a_grant_to_an_address_that_nobody_has_yet_says_so(
    router: Namespace, tmp_path: Path
) -> None:
    """On the link, without a MAC: it is let through with its first packet."""
    for address, said in (("192.0.2.9", True), ("192.0.2.7", False)):
        granted = run(router, "grant", address, "--sessions", "s.db")
        assert (granted.returncode, "or the client is not there yet" in granted.stderr) == (1, said)


def test_a_revocation_that_nobody_carries_over_says_so(router: Namespace, tmp_path: Path) -> None:
    with followed(router, tmp_path):
        granted = run_patiently(router, "grant", MAC, "--sessions", "s.db")
        assert granted.returncode == 0
    ran = run(router, "revoke", MAC, "--sessions", "s.db")
    assert (ran.returncode, ran.stdout) == (1, f"{MAC} is revoked\n")
    assert "still let it through" in ran.stderr
    up = run(router, "router", "up", "policy.yaml", "--sessions", "s.db")
    assert (up.returncode, MAC in known(router)) == (0, False)


def test_a_voucher_is_revoked_in_the_kernel_when_the_command_returns_or_it_says_so(
    router: Namespace, tmp_path: Path
) -> None:
    with contextlib.closing(Records(tmp_path / "portal.db")) as records:
        codes = [b"x", b"y"]
        records.add_vouchers(codes, lifetime=60, devices=1, valid=None, note="", at=moment())
        for code in codes:
            records.use_voucher(code, ClientId(MAC), moment())
    for number in (1, 2):
        with contextlib.closing(open_store(str(tmp_path / "s.db"))) as store:
            store.put(session(ClientId(MAC), clock.now(), how=f"voucher {number}, terms 1"))
        up = run(router, "router", "up", "policy.yaml", "--sessions", "s.db")
        assert (up.returncode, MAC in known(router)) == (0, True)
        revoke = ("voucher", "revoke", str(number), "--sessions", "s.db")
        if number == 1:
            with followed(router, tmp_path):
                ran = run_patiently(router, *revoke)
            assert (ran.returncode, MAC in known(router)) == (0, False)
        else:
            ran = run(router, *revoke)
            assert ran.returncode == 1
            assert ran.stderr.startswith("voucher 2 is revoked, but the router's rules still let")
        assert ran.stdout == f"voucher {number} is revoked\n{MAC} is revoked\n"


def test_a_client_that_is_not_on_the_network_is_not_waited_for(
    router: Namespace, tmp_path: Path
) -> None:
    ran = run(router, "grant", "02:00:5e:00:53:99", "--sessions", "s.db")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "not on the network now" in ran.stdout


def test_a_client_that_the_policy_blocks_is_not_let_in_by_a_command(
    router: Namespace, tmp_path: Path
) -> None:
    with followed(router, tmp_path):
        ran = run(router, "grant", "192.0.2.66", "--sessions", "s.db")  # no --policy
        assert ran.returncode == 1
        assert "a client rule overrides it" in ran.stderr


def ip_rules(router: Namespace) -> str:
    return router.run("ip", "rule").stdout + router.run("ip", "-6", "rule").stdout


def test_rules_that_somebody_took_away_are_shown_to_be_missed(
    router: Namespace, tmp_path: Path
) -> None:
    router.run("nft", "flush", "ruleset")
    shown = run(router, "router", "show")
    assert shown.returncode == 1
    assert "until then nothing is forwarded from lan0" in shown.stderr
    assert run(router, "router", "up", "policy.yaml").returncode == 0
    router.run("ip", "rule", "del", "priority", "1")
    shown = run(router, "router", "show")
    assert shown.returncode == 0
    assert "warning: there is no ip rule" in shown.stderr


def test_the_rules_come_and_go_without_a_trace(router: Namespace, tmp_path: Path) -> None:
    assert "prohibit" in ip_rules(router)
    shown = run(router, "router", "show", "policy.yaml")
    assert (shown.returncode, shown.stdout.startswith("table inet capport {")) == (0, True)
    assert shown.stdout.endswith(
        "}\n# ip rule: nothing is forwarded from lan0 but what this table has marked\n"
    )
    (tmp_path / "policy.yaml").write_text("no longer: a policy\n")
    assert run(router, "router", "down", "policy.yaml").returncode == 0
    assert router.run("nft", "list", "ruleset").stdout == ""
    assert "prohibit" not in ip_rules(router)
    assert run(router, "router", "down").returncode == 0  # idempotent
    gone = run(router, "router", "show")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert (
        gone.stderr == "there is no table inet capport; to make it, run capport router up POLICY\n"
    )


def test_rules_for_an_interface_that_is_not_there_hold_nobody_and_say_so(
    router: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY.replace("lan0", "lan1"))
    up = run(router, "router", "up", "policy.yaml", "--sessions", "s.db")
    want = "warning: there is no interface lan1 yet; clients on other interfaces are not stopped\n"
    assert (up.returncode, up.stderr) == (0, want)
    router.ip("link add lan1 type bridge")
    up = run(router, "router", "up", "policy.yaml", "--sessions", "s.db")
    assert (up.returncode, up.stderr) == (0, "")


def test_known_clients_are_in_the_rules_from_the_start(router: Namespace, tmp_path: Path) -> None:
    assert run(router, "router", "down").returncode == 0
    assert run(router, "grant", "192.0.2.7", "--sessions", "s.db").returncode == 0
    up = run(router, "router", "up", "policy.yaml", "--sessions", "s.db")
    assert up.returncode == 0
    assert f"192.0.2.7 . {MAC}" in known(router)


def test_rules_come_up_though_the_store_is_broken(router: Namespace, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"this is no database" * 100)
    up = run(
        *(router, "router", "up", "policy.yaml", "--sessions", "s.db"),
        *("--proxy-port", "8081", "--proxy-port", "8082"),
    )
    assert up.returncode == 0, up.stderr
    assert "8082" in run(router, "router", "show").stdout
