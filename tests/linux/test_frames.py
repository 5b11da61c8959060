"""Finds the MAC that a connection was opened from: real connections, and SYNs as bytes."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

import requires
from capport.core.client import UNSEEN, Mac, parse_address
from capport.linux import frames
from lab.namespaces import Namespace, let_go, namespaces, veth

MAC = Mac("02:00:00:00:00:07")


@pytest.fixture(scope="module")
def link() -> Iterator[tuple[Namespace, Namespace]]:
    """A device and a router, with a cable between them."""
    requires.check(requires.namespaces())
    with namespaces("frames-device", "frames-router") as (device, router):
        veth(device, "eth0", router, "lan0")
        device.ip(
            f"link set eth0 address {MAC}",
            "link set eth0 up",
            "address add 192.0.2.7/24 dev eth0",
            "address add 2001:db8::7/64 dev eth0 nodad",
        )
        router.ip(
            "link set lan0 up",
            "address add 192.0.2.1/24 dev lan0",
            "address add 2001:db8::1/64 dev lan0 nodad",
        )
        yield device, router
    let_go()


def opened(client: Namespace, server: Namespace, address: str, *, kept: bool = True) -> Mac | None:
    """What the server learns of a connection to `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.call(socket.create_server, (address, 0), family=family) as listening:
        if kept:
            frames.keep(listening)
        with client.call(socket.create_connection, listening.getsockname()[:2], 10):
            accepted, _ = listening.accept()
            with contextlib.closing(accepted):
                return frames.sender(accepted)


@pytest.mark.lab
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_it_is_the_frames_own_whatever_the_neighbour_table_says(
    link: tuple[Namespace, Namespace], address: str
) -> None:
    device, router = link
    assert opened(device, router, address) == MAC
    assert opened(device, router, address, kept=False) == UNSEEN
    assert opened(router, router, address) is None, "what comes from this machine has no frame"


@pytest.mark.lab
def test_a_syn_that_a_cookie_answers_was_not_seen(link: tuple[Namespace, Namespace]) -> None:
    device, router = link
    router.sysctl(ipv4__tcp_syncookies=2)
    try:
        assert opened(device, router, "192.0.2.1") == UNSEEN
    finally:
        router.sysctl(ipv4__tcp_syncookies=1)


def test_what_is_not_tcp_over_ip_has_no_frame() -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))
        assert frames.sender(unix) is None
        assert frames.sender(udp) is None


ETHERNET = bytes.fromhex("020000000001020000000007")
IPV4 = bytes.fromhex("4500003c0bcc400040060000") + bytes([192, 0, 2, 7, 198, 51, 100, 2])
IPV6 = bytes.fromhex("600fff1500280640") + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
TCP = bytes(40)


@pytest.mark.parametrize(
    ("syn", "peer", "mac"),
    [
        (ETHERNET + b"\x08\0" + IPV4 + TCP, "192.0.2.7", MAC),
        (ETHERNET + b"\x08\0" + IPV4 + TCP, "::ffff:192.0.2.7", MAC),
        (ETHERNET + b"\x86\xdd" + IPV6 + TCP, "2001:db8::7", MAC),
        (ETHERNET + b"\x81\0\0\x0a\x08\0" + IPV4 + TCP, "192.0.2.7", MAC),  # with a tag
        (bytes(12) + b"\x08\0" + IPV4 + TCP, "192.0.2.7", None),  # loopback
        (IPV4 + TCP, "192.0.2.7", None),  # a tunnel
        (ETHERNET + b"\x08\0" + IPV4 + TCP, "192.0.2.8", UNSEEN),  # not its own
        (ETHERNET, "192.0.2.7", UNSEEN),
        (b"", "192.0.2.7", UNSEEN),
    ],
)
def test_the_mac_is_read_from_the_frame_with_the_peers_address(
    syn: bytes, peer: str, mac: Mac | None
) -> None:
    assert frames.sender_in(syn, parse_address(peer)) == mac
