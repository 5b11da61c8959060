"""Which other tables drop what ours accepts: real nftables, in the shapes of Docker's and ufw's."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import requires
from capport.linux.libnftables import Nftables
from capport.policy import policy_file
from capport.router import nftables
from capport.router.other_firewalls import CLOSED, in_the_way
from commandline import capport
from conftest import SOON
from lab.namespaces import Namespace, namespaces, veth

pytestmark = pytest.mark.lab

KNOWN, ORIGIN = "192.0.2.7", "198.51.100.2"
POLICY = f"""\
login_server: {{listen: 192.0.2.1:8511}}
clients:
  - {{address: {KNOWN}, access: known}}
router: {{client_interface: br-lan, origin_interface: wan}}
"""

DOCKER = """
-P FORWARD DROP
-N DOCKER
-N DOCKER-USER
-N DOCKER-ISOLATION-STAGE-1
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
"""

UFW = """
-P INPUT DROP
-N ufw-before-input
-N ufw-not-local
-N ufw-user-input
-N ufw-after-input
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp --icmp-type echo-request -j ACCEPT
-A ufw-before-input -p udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG
-A ufw-not-local -j DROP
-A ufw-before-input -p udp -d 224.0.0.251 --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp --dport 22 -j ACCEPT
-A ufw-user-input -p tcp -m multiport --dports 80,443 -j ACCEPT
-A ufw-after-input -m addrtype --dst-type BROADCAST -j DROP
"""

MINE = """
table inet mine {
chain inward { type filter hook input priority filter; policy drop;
ct state vmap { established : accept, related : accept, invalid : drop }
iifname { "lo", "eth*" } accept
tcp dport { 22, 80-90 } accept
meta l4proto { icmp, ipv6-icmp } accept
ACCEPTED
meta nfproto ipv6 drop
}
chain onward { type filter hook forward priority filter; policy accept;
ct state established,related accept
iifname "br-lan" oifname "wan" accept
reject
}
}
"""
LET_IN = (
    'iifname "br-lan" tcp dport { 8080, 8511 } accept\niifname "br-lan" udp dport { 53, 67 } accept'
)


@pytest.fixture
def router() -> Iterator[Namespace]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "iptables-nft"))
    with namespaces("intheway") as (made,):
        yield made


@pytest.fixture
def rules(router: Namespace) -> Iterator[Nftables]:
    with closing(router.call(Nftables)) as it:
        nftables.up(policy_file.parse(POLICY, "policy.yaml", Path("/")), rules=it)
        yield it


def iptables(router: Namespace, lines: str) -> None:
    for line in lines.strip().splitlines():
        done = router.run("iptables-nft", *line.split())
        assert done.returncode == 0, done.stderr


def test_alone_nothing_is_in_the_way(rules: Nftables) -> None:
    assert in_the_way(rules) == []
    nftables.down(rules=rules)
    assert in_the_way(rules) == []


def test_dockers_drop_is_named_with_what_lets_known_clients_pass(
    router: Namespace, rules: Nftables
) -> None:
    iptables(router, DOCKER)
    assert in_the_way(rules) == [
        "table ip filter, chain FORWARD drops what known clients send and the answers to them,"
        " although table inet capport accepts them; to allow them:"
        " iptables -I DOCKER-USER -i br-lan -o wan -j ACCEPT && iptables -I DOCKER-USER -i wan"
        " -o br-lan -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    ]


def test_ufws_drop_is_named_with_what_lets_clients_reach_the_portal(
    router: Namespace, rules: Nftables
) -> None:
    iptables(router, UFW)
    assert in_the_way(rules) == [
        "table ip filter, chain INPUT drops TCP port 8080 and TCP port 8511 and UDP port 53 and"
        " UDP port 67 from clients to the router, although table inet capport accepts them; to"
        " allow them: ufw allow in on br-lan to any port 8080,8511 proto tcp &&"
        " ufw allow in on br-lan to any port 53,67 proto udp"
    ]
    iptables(router, "-A ufw-user-input -i br-lan -p udp -m multiport --dports 53,67 -j ACCEPT")
    iptables(router, "-A ufw-user-input -i br-lan -p tcp -m multiport --dports 8080,22 -j ACCEPT")
    [left] = in_the_way(rules)
    assert "drops TCP port 8511 from clients" in left


def test_what_removes_the_units_own_table_is_a_command(rules: Nftables) -> None:
    closed = Path(__file__).parents[2] / "scripts" / "router" / "closed.nft"
    rules.run(closed.read_text())
    try:
        [said] = in_the_way(rules)
        assert said.startswith(f"table {CLOSED}, chain forward drops what known clients send")
        assert said.endswith("; to allow them: systemctl restart capport-router")
    finally:
        rules.run(f"delete table {CLOSED}\n")


@pytest.mark.parametrize("before", [DOCKER, UFW])
def test_what_would_do_does(router: Namespace, rules: Nftables, before: str) -> None:
    iptables(router, before)
    [said] = in_the_way(rules)
    for command in said.partition("to allow them: ")[2].split(" && "):
        name, _, rest = command.partition(" ")
        if name == "ufw":  # what `ufw allow in on br-lan to any port P proto X` makes
            *_, ports, _, protocol = rest.split()
            rest = (
                f"-A ufw-user-input -i br-lan -p {protocol} -m multiport --dports {ports} -j ACCEPT"
            )
        iptables(router, rest)
    assert in_the_way(rules) == []


def test_a_firewall_of_ones_own_is_in_the_way_by_what_it_leaves_out(rules: Nftables) -> None:
    rules.run(MINE.replace("ACCEPTED", LET_IN))
    assert in_the_way(rules) == []
    rules.run("delete table inet mine\n" + MINE.replace("ACCEPTED", "").replace("established,", ""))
    inward, onward = in_the_way(rules)
    assert inward.startswith("table inet mine, chain inward drops TCP port 8080 and TCP port 8511")
    assert onward.startswith("table inet mine, chain onward drops the answers to them,")
    for said in (inward, onward):
        for command in said.partition("to allow them: ")[2].split(" && "):
            rules.run(command.removeprefix("nft ") + "\n")
    assert in_the_way(rules) == []


@pytest.mark.parametrize(
    "rule",
    [
        "ip saddr @guests accept",
        "limit rate 9/second accept",
        "meta mark 7 accept",
        "icmp type echo-request drop; accept",
        "iifname vmap { br-lan : accept, lo : accept }",
        "iifname vmap { br-lan : jump on, lo : drop }; drop",
        "udp dport 1-65535 drop; ip protocol != tcp drop; tcp sport > 1023 accept",
        "ip saddr vmap { 192.0.2.9 : drop, 192.0.2.8 : accept }",
        "goto on",
    ],
)
def test_what_may_pass_is_not_said_to_be_dropped(rules: Nftables, rule: str) -> None:
    rules.run(
        "table ip other {\nset guests { type ipv4_addr; }\nchain on { accept; }\n"
        f"chain onward {{ type filter hook forward priority 0; policy drop; {rule}; }}\n}}\n"
    )
    assert [said for said in in_the_way(rules) if "what known clients send" in said] == []


def test_up_show_and_explain_say_it_and_the_kernel_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "iptables-nft"))
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)

    with namespaces("client", "router", "origin") as (client, router, origin):
        veth(client, "eth0", router, "br-lan")
        veth(origin, "eth0", router, "wan")
        router.ip(
            "address add 192.0.2.1/24 dev br-lan",
            "address add 198.51.100.1/24 dev wan",
            "link set br-lan up",
            "link set wan up",
        )
        client.ip(
            f"address add {KNOWN}/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.0.2.1",
        )
        origin.ip(
            f"address add {ORIGIN}/24 dev eth0",
            "link set eth0 up",
            "route add default via 198.51.100.1",
        )
        router.sysctl(ipv4__ip_forward=1)

        def said(*arguments: str) -> str:
            done = router.call(capport, *arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        def reaches(seconds: float = SOON) -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection((ORIGIN, 7), seconds).close()
                return True
            return False

        up = ("router", "up", "policy.yaml", "--sessions", "s.db")
        explain = ("explain", "policy.yaml", "--client", KNOWN, "http://www.example.com/")
        with origin.call(socket.create_server, ("", 7)):
            assert "in force" in said(*up)
            assert client.call(reaches)
            assert "FORWARD" not in said("router", "show") + said(*explain)
            iptables(router, DOCKER)
            assert not client.call(reaches, 0.5)
            for command in (up, ("router", "show"), explain, (*explain, "--json")):
                assert "table ip filter, chain FORWARD drops what known clients send" in said(
                    *command
                )
            iptables(router, "-I DOCKER-USER -i br-lan -o wan -j ACCEPT")
            answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            iptables(router, f"-I DOCKER-USER -i wan -o br-lan {answers}")
            assert "FORWARD" not in said("router", "show")
            assert client.call(reaches)
