"""A client that has IPv6 alone: it learns everything from router advertisements (RFC 8910)."""

import json
import re
import shutil
import subprocess
from ipaddress import IPv6Address
from pathlib import Path

import pytest

import requires
from conftest import SOON
from lab.advertise import advertised
from lab.namespaces import end, namespaces, veth, wait_for
from lab.network import CAPTIVE_PORTAL, ORIGIN4, ORIGIN6, ROUTER4, ROUTER6, WITH_TLS, Client, Lab

pytestmark = pytest.mark.lab

SNIPPET = Path(__file__).parents[2] / "scripts/router/capport.radvd.conf"
BOTH = WITH_TLS.replace(f"listen: {ROUTER4}:443", f"listen: [{ROUTER4}:443, '[{ROUTER6}]:443']")


def got(client: Client, *arguments: str) -> str:
    """What curl gets there."""
    options = ("--silent", "--show-error", "--globoff", "--max-time", str(SOON))
    done = client.run("curl", *options, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.rfc(8910, "2.3", "MUST be padded with NUL")
def test_a_client_without_ipv4_makes_the_whole_journey(tmp_path: Path) -> None:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    names = {"login.example.net": f"{ROUTER4} {ROUTER6}"}
    with Lab(policy=BOTH, names=names, name="six") as lab:
        client = lab.client
        client.run("ip", "-4", "address", "flush", "dev", "eth0")
        assert "198.51.100" not in client.run("ip", "-4", "route", "get", ORIGIN4).stdout

        said = client.namespace.call(advertised, SOON)
        resolver, portal = IPv6Address(said[25][6:22]), said[37].rstrip(b"\0").decode()
        assert portal == CAPTIVE_PORTAL
        configured = Path("/etc/netns") / client.namespace.name / "resolv.conf"
        configured.write_text(f"nameserver {resolver}\n")

        jar = str(tmp_path / "cookies")
        trusting = ("--cacert", str(lab.trusted), "--cookie", jar, "--cookie-jar", jar)

        def api() -> dict[str, object]:
            accept = ("--header", "Accept: application/captive+json")
            return dict(json.loads(got(client, *trusting, *accept, portal)))

        status = ("--output", "/dev/null", "--write-out", "%{http_code}")
        assert got(client, *status, "http://www.example.com/") == "511"
        document = api()
        assert document["captive"] is True
        page = got(client, *trusting, str(document["user-portal-url"]))
        fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page)
        assert dict(fields)["terms"], page
        form = [part for name, value in fields for part in ("--data-urlencode", f"{name}={value}")]
        got(client, *trusting, *form, "https://login.example.net/sign-in")
        assert api()["captive"] is False

        def opened() -> bool:
            places = ("www.example.com", f"[{ORIGIN6}]")
            return all(got(client, *status, f"http://{place}/") == "200" for place in places)

        wait_for(opened, message="what is beyond the router is not open")


def test_radvd_advertises_all_of_that_by_the_shipped_snippet(tmp_path: Path) -> None:
    requires.check(requires.namespaces())
    asked = ["radvd", "--version"] if shutil.which("radvd") else ["true"]
    said = subprocess.run(asked, capture_output=True, text=True)
    version = re.search(r"Version: (\d+)\.(\d+)", said.stdout + said.stderr)
    if version is None or (int(version[1]), int(version[2])) < (2, 20):
        pytest.skip("no radvd 2.20 or later here (Debian 12 has 2.19, which lacks option 37)")
    with namespaces("radvd", "device") as (router, device):
        veth(router, "br-lan", device, "eth0")
        router.sysctl(ipv6__conf__all__forwarding=1)
        router.ip("link set br-lan up", f"address add {ROUTER6}/64 dev br-lan nodad")
        device.ip("link set eth0 up")
        pid, log = tmp_path / "radvd.pid", tmp_path / "radvd.log"
        options = ("--nodaemon", "--logmethod", "stderr", "--pidfile", str(pid))
        with log.open("wb") as out:
            radvd = router.start("radvd", *options, "--config", str(SNIPPET), log=out)
        try:
            came = device.call(advertised, SOON)
        finally:
            end(radvd)
            print(log.read_text())
        assert came[37].rstrip(b"\0").decode() == CAPTIVE_PORTAL
        assert str(IPv6Address(came[25][6:22])) == ROUTER6
        assert str(IPv6Address(came[3][14:30])) == "2001:db8:1::"
