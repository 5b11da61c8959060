"""Mode tun: a client's packets, all of them, UDP and QUIC too, go to mitmproxy."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import requires
from lab.namespaces import Namespace, end, namespaces, veth, wait_for

pytestmark = [pytest.mark.lab, requires.namespaces(), requires.tool("curl")]

MITMDUMP = Path(sys.executable).with_name("mitmdump")
SCRIPT = Path(__file__).parents[2] / "addon" / "captive_portal.py"
HTTP3 = Path(__file__).with_name("http3.py")
OUTSIDE = "198.51.100.2"  # nobody is there: whatever left would be seen on the router's other side


@contextmanager
def tun(folder: Path, policy: str) -> Iterator[Namespace]:
    """A client behind a router that has everything of it go into the portal's tun."""
    (folder / "policy.yaml").write_text(f"login_url: https://login.example.net/\n{policy}")
    with namespaces("tunclient", "tunrouter") as (client, router):
        veth(client, "eth0", router, "lan")
        client.ip("address add 192.0.2.7/24 dev eth0", "link set eth0 up")
        client.ip("route add default via 192.0.2.1")
        router.ip("address add 192.0.2.1/24 dev lan", "link set lan up")
        router.sysctl(
            ipv4__ip_forward=1, ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0
        )
        process = router.start(
            str(MITMDUMP),
            *("--set", f"confdir={folder}", "--mode", "tun:portal0", "-s", str(SCRIPT)),
            *("--set", f"portal_policy={folder / 'policy.yaml'}"),
            *("--set", "portal_sessions=:memory:"),
        )
        try:
            wait_for(lambda: "portal0" in router.run("ip", "link").stdout, 60, "no tun")
            router.ip("link set portal0 up", "rule add iif lan lookup 100")
            router.ip("route add default dev portal0 table 100")
            yield client
        finally:
            end(process)


def test_http3_inside_interception_is_answered_511(tmp_path: Path) -> None:
    with tun(tmp_path, "tls: {unknown: intercept}") as client:
        done = client.run(sys.executable, str(HTTP3), OUTSIDE, "60", timeout=100)
        assert done.stdout.split() == ["511", "511"], done.stderr


def test_unless_intercepted_quic_is_not_answered_and_http_is(tmp_path: Path) -> None:
    with tun(tmp_path, "") as client:
        asked = client.run("curl", "-s", "-m", "60", "-w", "%{http_code}", f"http://{OUTSIDE}/")
        assert asked.stdout.endswith("511"), asked.stderr
        refused = client.run("curl", "-sS", "-m", "60", "-k", f"https://{OUTSIDE}/")
        assert "alert access denied" in refused.stderr
        assert client.run(sys.executable, str(HTTP3), OUTSIDE, "10", timeout=100).stdout == ""
