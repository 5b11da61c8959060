"""DHCP by the snippet that is shipped: a client's statements about itself do not affect others."""

import shutil
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest

import requires
from conftest import SOON
from lab.dhcp import lease
from lab.namespaces import end, namespaces, veth, wait_for
from lab.network import CAPTIVE_PORTAL, ROUTER4, ROUTER6, SHIPPED, Lab
from lab.resolving import exchange

pytestmark = pytest.mark.lab

INFORMATION_REQUEST, REPLY, CLIENT_ID, ASKED_FOR, CAPTIVE = 11, 7, 1, 6, 103


@pytest.mark.parametrize("name", ["wpad", "isatap"])
def test_no_client_is_found_by_the_name_it_gives_itself(lab: Lab, name: str) -> None:
    for client in lab.clients:
        client.namespace.call(lease, "eth0", client.mac, host_name=name)
    for resolver in (ROUTER4, ROUTER6):
        assert lab.client.namespace.call(exchange, resolver, name)[6:8] == b"\0\0"


def test_a_client_that_says_it_is_another_does_not_get_its_address(lab: Lab) -> None:
    """By the client identifier, which anybody can read in another client's DHCP messages."""
    one, other = lab.clients
    named = bytes([1]) + bytes.fromhex(one.mac.replace(":", ""))
    assert one.namespace.call(lease, "eth0", one.mac, client_id=named).address == one.v4
    assert other.namespace.call(lease, "eth0", other.mac, client_id=named).address == other.v4


def informed(interface: str) -> dict[int, bytes] | None:
    """The options of the answer to one question for the portal's URL (RFC 8415 section 18.2.6)."""
    device = b"\0\3\0\1" + bytes(5) + b"\7"  # a DUID, of which the server only has to copy it
    options = ((CLIENT_ID, device), (ASKED_FOR, struct.pack("!H", CAPTIVE)))
    said = b"".join(struct.pack("!HH", kind, len(value)) + value for kind, value in options)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as talk:
        talk.bind(("::", 546))
        talk.settimeout(0.5)
        to = ("ff02::1:2", 547, 0, socket.if_nametoindex(interface))
        with suppress(OSError):  # nobody answers yet, or there is no address to ask from
            talk.sendto(bytes([INFORMATION_REQUEST, 0, 0, 1]) + said, to)
            answer = talk.recv(1500)
            assert answer[:4] == bytes([REPLY, 0, 0, 1])
            found, at = {}, 4
            while at < len(answer):
                kind, size = struct.unpack_from("!HH", answer, at)
                found[kind] = answer[at + 4 : at + 4 + size]
                at += 4 + size
            return found
    return None


@requires.namespaces()
@requires.tool("dnsmasq")
@pytest.mark.rfc(8910, "2.2", "option 103: the URI")
def test_dhcpv6_names_the_portal_too(tmp_path: Path) -> None:
    config = tmp_path / "dnsmasq.conf"
    shutil.copyfile(SHIPPED / "capport.dnsmasq.conf", config)
    with config.open("a") as more:
        more.write(f"keep-in-foreground\nuser=root\npid-file=\ndhcp-leasefile={tmp_path}/leases\n")
    with namespaces("dhcpclient", "dhcprouter") as (client, router):
        veth(client, "eth0", router, "br-lan")
        router.ip(
            f"address add {ROUTER4}/24 dev br-lan", f"address add {ROUTER6}/64 dev br-lan nodad"
        )
        router.ip("link set br-lan up")
        client.ip("link set eth0 up")
        server = router.start("dnsmasq", f"--conf-file={config}")
        try:
            answers: list[dict[int, bytes]] = []

            def answered() -> bool:
                if found := client.call(informed, "eth0"):
                    answers.append(found)
                return bool(answers)

            wait_for(answered, SOON)
        finally:
            end(server)
    assert answers[0][CAPTIVE].decode() == CAPTIVE_PORTAL
