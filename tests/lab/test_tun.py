"""Mode tun: a client's packets, all of them, UDP and QUIC too, go to mitmproxy."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

import requires
from confdir import confdir
from lab.namespaces import Namespace, end, namespaces, veth, wait_for
from lab.network import listening

pytestmark = [pytest.mark.lab, requires.namespaces(), requires.tool("curl")]

MITMDUMP = Path(sys.executable).with_name("mitmdump")
SCRIPT = Path(__file__).parents[2] / "addon" / "captive_portal.py"
HTTP3 = Path(__file__).with_name("http3.py")
OUTSIDE = "198.51.100.2"


@contextmanager
def tun(folder: Path, policy: str) -> Iterator[tuple[Namespace, Namespace]]:
    """A client, a router that sends everything of it into the portal's tun, and an origin."""
    (folder / "policy.yaml").write_text(f"login_url: https://login.example.net/\n{policy}")
    with namespaces("tunclient", "tunrouter", "tunorigin") as (client, router, origin):
        veth(client, "eth0", router, "lan")
        veth(origin, "eth0", router, "wan")
        client.ip("address add 192.0.2.7/24 dev eth0", "link set eth0 up")
        client.ip("route add default via 192.0.2.1")
        origin.ip(f"address add {OUTSIDE}/24 dev eth0", "link set eth0 up")
        router.ip("address add 192.0.2.1/24 dev lan", "link set lan up")
        router.ip("address add 198.51.100.1/24 dev wan", "link set wan up")
        router.sysctl(
            ipv4__ip_forward=1, ipv4__conf__all__rp_filter=0, ipv4__conf__lan__rp_filter=0
        )
        process = router.start(
            str(MITMDUMP),
            *("--set", f"confdir={confdir()}", "--mode", "tun:portal0", "-s", str(SCRIPT)),
            *("--set", f"portal_policy={folder / 'policy.yaml'}"),
            *("--set", "portal_sessions=:memory:"),
        )
        try:
            wait_for(lambda: "portal0" in router.call(interfaces), 60, "no tun")
            router.ip("link set portal0 up", "rule add iif lan lookup 100")
            router.ip("route add default dev portal0 table 100")
            yield client, origin
        finally:
            end(process)


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_an_intercepted_clients_quic_is_not_answered(tmp_path: Path) -> None:
    with tun(tmp_path, "tls: {unknown: intercept}") as (client, _):
        assert client.run(sys.executable, str(HTTP3), OUTSIDE, "5", timeout=100).stdout == ""
        intercepted = client.run("curl", "-sS", "-m", "60", "-k", f"https://{OUTSIDE}/", "-I")
        assert " 511 " in intercepted.stdout


def test_an_unknown_clients_quic_is_not_answered_and_http_is(tmp_path: Path) -> None:
    with tun(tmp_path, "") as (client, _):
        asked = client.run("curl", "-s", "-m", "60", "-w", "%{http_code}", f"http://{OUTSIDE}/")
        assert asked.stdout.endswith("511"), asked.stderr
        refused = client.run("curl", "-sS", "-m", "60", "-k", f"https://{OUTSIDE}/")
        assert "alert access denied" in refused.stderr
        assert client.run(sys.executable, str(HTTP3), OUTSIDE, "5", timeout=100).stdout == ""


def test_a_known_clients_quic_goes_on_as_it_is(tmp_path: Path) -> None:
    """`tls.known: tunnel`: the origin gets the client's own hello, and answers the handshake."""
    quic = QuicConnection(configuration=QuicConfiguration(server_name="elsewhere.example.com"))
    quic.connect((OUTSIDE, 443), now=time.time())
    ((hello, _),) = quic.datagrams_to_send(now=time.time())
    known = "clients: [{address: 192.0.2.7, access: known}]"
    with tun(tmp_path, known) as (client, origin):
        asking, answering = (
            it.call(socket.socket, type=socket.SOCK_DGRAM) for it in (client, origin)
        )
        with asking, answering:
            answering.bind((OUTSIDE, 443))
            answering.settimeout(1)
            for _ in range(60):  # it is UDP: what is lost is sent again
                asking.sendto(hello, (OUTSIDE, 443))
                with suppress(TimeoutError):
                    came, proxy = answering.recvfrom(65536)
                    break
            assert came == hello
            answering.sendto(b"and back", proxy)
            asking.settimeout(60)
            assert asking.recv(65536) == b"and back"


@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
def test_a_known_client_has_one_budget_for_http3_and_http1(tmp_path: Path) -> None:
    policy = (
        "clients: [{address: 192.0.2.7, access: known}]\n"
        "tls: {known: inspect}\nlimits: {requests: {count: 2, per: 1h}}\n"
    )
    with tun(tmp_path, policy) as (client, origin):
        server = origin.start(sys.executable, "-m", "http.server", "-d", str(tmp_path), "80")

        def over_http1() -> str:
            asked = ("curl", "-s", "-m", "60", "-o/dev/null", "-w%{http_code}")
            return client.run(*asked, f"http://{OUTSIDE}/").stdout

        try:
            wait_for(lambda: origin.call(listening)[80], 60, "no server")
            assert over_http1() == "200"
            over_http3 = client.run(sys.executable, str(HTTP3), OUTSIDE, "60", timeout=100)
            # The origin has no QUIC, so a request that is let through gets 502.
            assert over_http3.stdout.split() == ["502", "429"], over_http3.stderr
            assert over_http1() == "429"
        finally:
            end(server)
