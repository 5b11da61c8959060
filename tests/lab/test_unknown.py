"""End to end: nothing that an unknown client sends reaches the origin, whatever it tries."""

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import requires
from conftest import SOON
from lab.advertise import advertised
from lab.namespaces import end, wait_for
from lab.network import (
    CAPTIVE_PORTAL,
    ORIGIN4,
    ORIGIN6,
    PROXY_PORT,
    ROUTER4,
    ROUTER6,
    TUNNEL,
    TUNNEL_PORT,
    Client,
    Lab,
)

pytestmark = pytest.mark.lab

QUIET = 0.3  # seconds for an answer, which an unknown client must not get


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address: str, port: int, source_port: int = 0, seconds: float = SOON) -> None:
    with socket.socket(family_of(address), socket.SOCK_STREAM) as talk:
        talk.settimeout(seconds)  # an unknown client is refused at once
        if source_port:
            talk.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            talk.bind(("", source_port))
        talk.connect((address, port))
        talk.sendall(b"away")
        talk.settimeout(QUIET)
        talk.recv(100)


def udp(address: str, port: int, source_port: int = 0) -> None:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as talk:
        talk.settimeout(QUIET)
        if source_port:
            talk.bind(("", source_port))
        for _ in range(3):
            talk.sendto(b"away", (address, port))
        talk.recv(100)


def icmp(address: str) -> None:
    version6 = ":" in address
    kind, protocol = (128, socket.IPPROTO_ICMPV6) if version6 else (8, socket.IPPROTO_ICMP)
    with socket.socket(family_of(address), socket.SOCK_RAW, protocol) as talk:
        talk.settimeout(QUIET)
        for size in (8, 1400):
            talk.sendto(bytes([kind, 0, 0xF7, 0xFF, 0, 0, 0, 0]) + bytes(size), (address, 0))
        talk.recv(100)


def protocol_of_its_own(address: str) -> None:
    """GRE: neither TCP nor UDP nor ICMP."""
    with socket.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_GRE) as talk:
        talk.sendto(b"\0\0\x08\0away", (address, 0))


def raw_on_a_web_port(address: str) -> None:
    """What is neither HTTP nor TLS, in pieces, on the port that is redirected."""
    for pieces in ((b"G", b"ET / HTTP/1.1\r\nHost: x\r\n\r\n"), (b"SSH-2.0-x\r\n",), (b"\x16",)):
        with socket.create_connection((address, 80), SOON) as talk:
            talk.settimeout(QUIET)
            for piece in pieces:
                talk.sendall(piece)
                time.sleep(0.05)
            with contextlib.suppress(OSError):
                while talk.recv(4096):
                    pass


ATTEMPTS = pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda a: tcp(a, 7), id="another TCP port"),
        pytest.param(lambda a: tcp(a, 8443), id="another TLS port"),
        pytest.param(lambda a: tcp(a, 8080), id="TCP to the proxy's port elsewhere"),
        pytest.param(lambda a: tcp(a, 53), id="DNS over TCP outside"),
        pytest.param(lambda a: tcp(a, 7, 53), id="TCP from port 53"),
        pytest.param(lambda a: tcp(a, 7, 80), id="TCP from port 80"),
        pytest.param(lambda a: udp(a, 7), id="UDP"),
        pytest.param(lambda a: udp(a, 443), id="QUIC"),
        pytest.param(lambda a: udp(a, 53), id="DNS outside"),
        pytest.param(lambda a: udp(a, 123), id="NTP"),
        pytest.param(lambda a: udp(a, 7, 53), id="UDP from port 53"),
        pytest.param(lambda a: udp(a, 7, 67), id="UDP from port 67"),
        pytest.param(icmp, id="ICMP"),
        pytest.param(protocol_of_its_own, id="GRE"),
        pytest.param(raw_on_a_web_port, id="not HTTP"),
    ],
)


@pytest.mark.rfc(
    6585,
    "6.1",
    "all traffic blocked, except for TCP port 80 and traffic to the login server itself",
)
@ATTEMPTS
@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_nothing_gets_to_the_origin(lab: Lab, attempt: Callable[[str], None], address: str) -> None:
    before = len(lab.packets())
    with contextlib.suppress(OSError):
        lab.client.namespace.call(attempt, address)
    assert lab.packets()[before:] == []


def spoofed(destination: str, protocol: int, packet: bytes) -> None:
    """Sends it with an address of the origin as its source, so that answers go there."""
    source = ORIGIN6 if ":" in destination else ORIGIN4
    family = family_of(destination)
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    if family == socket.AF_INET:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(packet), 1, 0, 64, protocol, 0) + ends
        option = (socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    else:
        head = struct.pack(">IHBB", 6 << 28, len(packet), protocol, 64) + ends
        option = (socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
    pseudo = ends + struct.pack(">II", len(packet), protocol)  # RFC 8200 section 8.1, and 9293 3.1
    at = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}.get(protocol, 2)
    summed = (b"" if protocol == socket.IPPROTO_ICMP else pseudo) + packet
    words = sum(struct.unpack(f">{len(summed) // 2}H", summed))
    check = ~(words % 0xFFFF or (words and 0xFFFF)) & 0xFFFF
    packet = packet[:at] + struct.pack(">H", check) + packet[at + 2 :]
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(*option)
        raw.sendto(head + packet, (destination, 0))


QUESTION = b"\0\1\1\0\0\1\0\0\0\0\0\0\1x\7example\3org\0\0\1\0\1"
SYN = struct.pack(">HHIIBBHHH", 1234, 80, 1, 0, 0x50, 2, 1000, 0, 0)


def udp_packet(port: int, body: bytes) -> bytes:
    return struct.pack(">HHHH", 1234, port, 8 + len(body), 0) + body + bytes(len(body) % 2)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "packet"),
    [
        pytest.param(socket.IPPROTO_UDP, udp_packet(53, QUESTION), id="a question"),
        pytest.param(socket.IPPROTO_UDP, udp_packet(9, b"what it quotes"), id="a closed port"),
        pytest.param(socket.IPPROTO_TCP, SYN, id="a connection"),
        pytest.param(None, bytes(4) + b"what it says again", id="an echo"),
    ],
)
def test_no_answer_goes_out_to_a_source_that_a_client_makes_up(
    lab: Lab, version: int, protocol: int | None, packet: bytes
) -> None:
    """If the router answered to a source that is not the client's, that would be a way out."""
    icmp, echo = ((1, b"\x08\0"), (58, b"\x80\0"))[version == 6]
    whole = packet if protocol else echo + packet
    lab.client.run("curl", "-s", "-m60", "http://warm-up.example.com/")
    before = len(lab.packets())
    for to in (ROUTER4, ORIGIN4) if version == 4 else (ROUTER6, ORIGIN6):
        lab.client.namespace.call(spoofed, to, protocol or icmp, whole)
    time.sleep(0.2)
    assert lab.packets()[before:] == []


@pytest.fixture(scope="module")
def known(lab: Lab) -> Iterator[Client]:
    """The second client, granted."""
    client = lab.clients[1]
    done = lab.capport("grant", client.mac, "--policy", str(lab.policy_file))
    assert done.returncode == 0, done.stderr
    yield client
    lab.capport("revoke", client.mac, "--policy", str(lab.policy_file))


@ATTEMPTS
@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_the_same_does_get_there_from_a_known_client(
    lab: Lab, known: Client, attempt: Callable[[str], None], address: str
) -> None:
    """Otherwise the test above would prove nothing."""
    before = len(lab.reached())
    with contextlib.suppress(OSError):
        known.namespace.call(attempt, address)
    wait_for(lambda: lab.reached()[before:] != [])


@pytest.mark.rfc(6585, "6", "the client needs to authenticate to gain network access")
@pytest.mark.parametrize(
    "url", ["http://www.example.com/", f"http://{ORIGIN4}/", f"http://[{ORIGIN6}]/"]
)
def test_http_is_answered_511_and_the_origin_gets_nothing(lab: Lab, url: str) -> None:
    lab.client.run("curl", "-s", "-m60", "http://warm-up.example.com/")
    before = len(connections(lab))
    assert lab.client.status(url) == 511
    assert len(connections(lab)) == before


def connections(lab: Lab) -> list[object]:
    """The first packet of each connection: the last ones of an earlier connection may come late."""
    return [packet for packet in lab.packets() if packet["begins"]]


def test_the_routers_own_web_port_is_answered_511_too(lab: Lab) -> None:
    assert lab.client.status(f"http://{ROUTER4}/") == 511


@pytest.mark.rfc(6585, "7.4", "will generate a certificate error on the client")
@pytest.mark.parametrize("address", [ORIGIN4, f"[{ORIGIN6}]"])
def test_tls_gets_the_alert(lab: Lab, address: str) -> None:
    before = len(connections(lab))
    said = lab.client.curl("--insecure", f"https://{address}/").stderr
    assert "alert access denied" in said
    assert len(connections(lab)) == before


def test_the_walled_garden_is_open_by_its_name_and_not_by_its_address(lab: Lab) -> None:
    assert lab.client.status("http://www.example.org/") == 200
    assert lab.client.status(f"http://{ORIGIN4}/") == 511
    before = len(connections(lab))
    host = "www.example.com"
    assert lab.client.status(f"http://{host}/", "--resolve", f"{host}:80:{ORIGIN4}") == 511
    assert len(connections(lab)) == before


@pytest.mark.parametrize("address", [ROUTER4, ROUTER6])
def test_a_hit_on_the_proxys_own_port_leads_nowhere(lab: Lab, address: str) -> None:
    """mitmproxy would connect to itself, again and again."""
    proxy = lab.proxies[0]
    descriptors = Path(f"/proc/{proxy.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="timed out"):
            lab.client.namespace.call(tcp, address, PROXY_PORT, seconds=1)
    assert len(list(descriptors.iterdir())) <= before + 2


@pytest.mark.parametrize("port", [22, 53535, 8081])
def test_the_routers_other_ports_are_refused_at_once(lab: Lab, port: int) -> None:
    listener = lab.router.call(socket.create_server, ("", port))
    with listener, pytest.raises(ConnectionRefusedError):
        lab.client.namespace.call(tcp, ROUTER4, port)


def test_one_client_does_not_get_to_another_by_way_of_the_router(lab: Lab) -> None:
    """On the link they do, if the access point lets them: that is layer 2."""
    one, other = lab.clients
    one.namespace.ip(f"route add {other.v4}/32 via {ROUTER4}")
    try:
        listener = other.namespace.call(socket.create_server, (other.v4, 7))
        with listener, pytest.raises(ConnectionRefusedError):
            one.namespace.call(tcp, other.v4, 7)
    finally:
        one.namespace.ip(f"route del {other.v4}/32 via {ROUTER4}")


@pytest.mark.rfc(8910, "2", "SHOULD ensure that the URIs provisioned by each method are identical")
@pytest.mark.rfc(8910, "2.1", "option 114: the URI")
@pytest.mark.rfc(8910, "2.3", "MUST be padded with NUL")
def test_the_lease_and_the_advertisements_name_the_portal(lab: Lab) -> None:
    """RFC 8910 sections 2.1 and 2.3."""
    assert lab.client.lease is not None
    assert lab.client.lease.captive_portal == CAPTIVE_PORTAL

    found = lab.client.namespace.call(advertised, SOON)
    assert found[37].rstrip(b"\0").decode() == CAPTIVE_PORTAL


@pytest.mark.slow
@requires.tool("iodine")
def test_a_tunnel_through_dns_comes_up_for_a_known_client(lab: Lab, known: Client) -> None:
    """An unknown client's tunnel does not come up (tests/lab/test_resolving.py)."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun here: iodine needs it")
    server = lab.origin.start(
        *("iodined", "-f", "-c", "-P", "secret", "-l", ORIGIN4, "-p", str(TUNNEL_PORT)),
        *("10.99.0.1/24", TUNNEL),
    )
    log = lab.folder / "iodine.log"
    with log.open("wb") as said:
        tunnel = known.namespace.start(
            "iodine", "-f", "-r", "-P", "secret", ROUTER4, TUNNEL, log=said
        )
    try:
        wait_for(lambda: b"setup complete" in log.read_bytes(), SOON)
    finally:
        end(tunnel)
        end(server)


def test_without_the_proxy_nobody_unknown_gets_out(lab: Lab) -> None:
    """The rules are in the kernel: killing mitmdump opens nothing."""
    proxy = lab.proxies.pop()
    try:
        subprocess.run(["kill", "-KILL", str(proxy.pid)], check=True)
        proxy.wait(SOON)
        before = len(lab.packets())
        assert lab.client.status(f"http://{ORIGIN4}/") == 0
        assert "access denied" not in lab.client.curl("-k", f"https://{ORIGIN4}/").stderr
        for attempt in (lambda: tcp(ORIGIN4, 7), lambda: udp(ORIGIN6, 443)):
            with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's to choose
                lab.client.namespace.call(attempt)
        assert lab.packets()[before:] == []
    finally:
        lab.start_proxy(PROXY_PORT)
    assert lab.client.status(f"http://{ORIGIN4}/") == 511


def test_the_login_server_is_nothing_to_those_beyond_the_router(lab: Lab) -> None:
    """A machine outside cannot guess there, or use up the attempts of all clients."""
    url = f"http://{ROUTER4}:8511/"
    assert lab.client.status(url) == 200
    assert "timed out" in lab.origin.run("curl", "-sS", "-m", "1", url).stderr
