"""A device that sends frames of its own from the address of a known client is not that client.

The known client has left without signing out. The router's neighbour table still has its MAC, and
its session is open. The other device takes the address, keeps its own MAC, and reads what the
bridge floods for the client that is gone.
"""

import json
from collections.abc import Iterator

import pytest

import requires
from capport import clock
from capport.core.captivity import PATH
from capport.service.kernel import CARRIED_OUT
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, ROUTER4, Client, Lab

pytestmark = pytest.mark.lab

LOGIN = f"http://{ROUTER4}:8511"
INSPECT = "http: {known: inspect}\ntls: {known: inspect}\n"
REDIRECT = """
table inet own {
chain redirects { type nat hook prerouting priority dstnat; policy accept;
iifname "br-lan" tcp dport { 80, 443 } redirect to :8080
}
}
"""
OVERHEARD = """
table netdev overheard {
chain inward { type filter hook ingress device "eth0" priority 0; policy accept;
ether daddr %s ether daddr set %s meta pkttype set host
}
}
"""
BEHIND = "203.0.113.9"


@pytest.fixture(scope="module", params=["by the kernel", "inspected", "by the proxy alone"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab: known clients go past the proxy, or through it; or there are no rules at all."""
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    policy = POLICY + INSPECT * (request.param == "inspected")
    with Lab(clients=2, policy=policy, name="intruder") as it:
        if request.param == "by the proxy alone":
            assert it.capport("router", "down").returncode == 0
            it.rules.run(REDIRECT)
        yield it


@pytest.fixture
def victim(lab: Lab) -> Iterator[Client]:
    """A client that is known, and has been online."""
    client = lab.client
    lab.capport("grant", client.mac, "--policy", str(lab.policy_file))
    wait_for(lambda: client.status(f"http://{ORIGIN4}/") == 200)
    yield client
    lab.capport("revoke", client.mac, "--policy", str(lab.policy_file))


@pytest.fixture
def intruder(lab: Lab, victim: Client) -> Iterator[Client]:
    """The victim has left; another device has its addresses."""
    other = lab.clients[1]
    addresses = (f"{victim.v4}/24", f"{victim.v6}/64")
    victim.namespace.ip("link set eth0 down")
    lab.router.ip(
        *(
            f"neighbour replace {address.partition('/')[0]} lladdr {victim.mac} dev br-lan"
            " nud permanent"
            for address in addresses
        )
    )
    rules = OVERHEARD % (victim.mac, other.mac)
    assert not other.namespace.run("nft", "-f", "-", input=rules).stderr
    other.namespace.ip(*(f"address add {address} dev eth0" for address in addresses))
    yield other
    other.namespace.ip(*(f"address del {address} dev eth0" for address in addresses))
    other.namespace.run("nft", "delete", "table", "netdev", "overheard")
    lab.router.ip(*(f"neighbour del {a.partition('/')[0]} dev br-lan" for a in addresses))
    victim.namespace.ip("link set eth0 up", f"route replace default via {ROUTER4}")
    wait_for(victim.has_v6)


def sessions(lab: Lab) -> list[object]:
    said = lab.capport("clients", "--json", "--policy", str(lab.policy_file)).stdout
    return [(one["client"], one["granted"]) for one in json.loads(said)]


def events(lab: Lab, event: str) -> list[dict[str, object]]:
    lines = (lab.folder / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == event]


@pytest.mark.parametrize("version", [4, 6])
def test_it_is_unknown_to_the_proxy(
    lab: Lab, victim: Client, intruder: Client, version: int
) -> None:
    address, origin = ((victim.v4, ORIGIN4), (victim.v6, f"[{ORIGIN6}]"))[version == 6]
    before = lab.packets()
    assert intruder.status(f"http://{origin}/", "--interface", address) == 511
    said = intruder.curl("-k", "--interface", address, f"https://{origin}/").stderr
    assert "alert access denied" in said
    of_the_victim = {p["from_port"] for p in before}  # whose last connection may still be ending
    reached = [p for p in lab.packets()[len(before) :] if p["protocol"] == "tcp"]
    assert [p for p in reached if p["from_port"] not in of_the_victim] == []


def test_it_neither_sees_nor_ends_the_session_of_its_address(
    lab: Lab, victim: Client, intruder: Client
) -> None:
    before = sessions(lab)
    asked = ("--interface", victim.v4, "--location", "--cookie", "", "--cookie-jar", "/dev/null")
    form = intruder.curl(*asked, f"{LOGIN}/status").stdout
    assert "sign-out" not in form
    assert 'name="terms"' in form
    captive = intruder.curl(
        *("--interface", victim.v4, "-H", "Accept: application/captive+json"), f"{LOGIN}{PATH}"
    ).stdout
    assert json.loads(captive.rpartition("\n")[0])["captive"] is True
    token = form.partition('name="_xsrf" value="')[2].partition('"')[0]
    left = ("--cookie", f"capport={token}", "--data", f"_xsrf={token}", f"{LOGIN}/sign-out")
    assert intruder.status(left[-1], "--interface", victim.v4, *left[:-1]) == 303
    assert sessions(lab) == before


def test_it_is_unknown_if_the_kernel_answers_with_cookies(
    lab: Lab, victim: Client, intruder: Client
) -> None:
    """With a SYN cookie no MAC is seen, and on a router no client is known without its MAC."""
    lab.router.sysctl(ipv4__tcp_syncookies=2)
    try:
        interface = ("--interface", victim.v4)
        assert intruder.status(f"http://{ORIGIN4}/", *interface) == 511
        assert "cannot be distinguished" in intruder.curl(*interface, f"{LOGIN}/status").stdout
        assert intruder.status(f"{LOGIN}/", "--location") == 200, "an unknown client may sign in"
    finally:
        lab.router.sysctl(ipv4__tcp_syncookies=1)


@pytest.fixture
def behind(lab: Lab) -> Iterator[Client]:
    """The first client is a router itself, and has a known client behind it."""
    hop, other = lab.clients
    lab.router.ip(f"route replace {BEHIND}/32 via {hop.v4} dev br-lan")
    lab.origin.ip(f"route replace {BEHIND}/32 via 198.51.100.1")
    for client in (hop, other):
        client.namespace.ip(f"address add {BEHIND}/32 dev lo")
    hop.namespace.run("ping", "-c1", "-W2", ROUTER4)
    lab.capport("grant", BEHIND, "--policy", str(lab.policy_file))
    yield hop
    lab.capport("revoke", BEHIND, "--policy", str(lab.policy_file))
    for client in (hop, other):
        client.namespace.ip(f"address del {BEHIND}/32 dev lo")
    lab.router.ip(f"route del {BEHIND}/32")
    lab.origin.ip(f"route del {BEHIND}/32")


def test_a_client_behind_a_router_is_known_by_that_routers_frames_alone(
    lab: Lab, behind: Client
) -> None:
    other = lab.clients[1]
    hidden = ("--interface", BEHIND)
    wait_for(lambda: behind.status(f"http://{ORIGIN4}/", *hidden) == 200)
    assert "sign-out" in behind.curl(*hidden, f"{LOGIN}/status").stdout
    # The first client gets what goes to that address, and passes it on to the other one.
    other.namespace.run("nft", "-f", "-", input=OVERHEARD % (behind.mac, other.mac))
    behind.namespace.ip("link set eth0 down")
    lab.router.ip(f"neighbour replace {behind.v4} lladdr {behind.mac} dev br-lan nud permanent")
    try:
        assert other.status(f"http://{ORIGIN4}/", *hidden) == 511
        assert "cannot be distinguished" in other.curl(*hidden, f"{LOGIN}/status").stdout
    finally:
        other.namespace.run("nft", "delete", "table", "netdev", "overheard")
        lab.router.ip(f"neighbour del {behind.v4} dev br-lan")
        behind.namespace.ip("link set eth0 up", f"route replace default via {ROUTER4}")
        wait_for(behind.has_v6)


def test_a_session_that_the_kernel_lacks_is_a_fault_that_is_put_right(
    lab: Lab, victim: Client
) -> None:
    if lab.capport("router", "show").returncode:
        pytest.skip("without rules the kernel holds nobody")
    pair = f"{victim.v4} . {victim.mac}"
    wait_for(lambda: pair in lab.elements("known4"))
    granted = clock.now()
    wait_for(lambda: clock.now() > granted + CARRIED_OUT)
    # In one transaction, between whose parts the portal cannot compare.
    lab.router.run("nft", "flush set inet capport known4; flush set inet capport macs")
    assert victim.status(f"http://{ORIGIN4}/") == 503
    wait_for(lambda: pair in lab.elements("known4"))
    wait_for(lambda: events(lab, "fault") != [])  # a thread writes them
    faults = [one["what"] for one in events(lab, "fault")]
    assert faults == [
        "the kernel's sets have lost a client that has a session; capport adds it again"
    ]
    wait_for(lambda: victim.status(f"http://{ORIGIN4}/") == 200)
