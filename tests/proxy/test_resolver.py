"""Which addresses are this machine's own, and which clients may reach them."""

import subprocess
import sys
from ipaddress import ip_address

import pytest

import requires
from capport.core.client import Address, parse_address
from capport.core.reach import Machine
from capport.linux.own_addresses import HERE as MACHINE
from capport.linux.own_addresses import OWN
from capport.proxy.resolver import SystemResolver
from conftest import SOON

FAR = parse_address("198.51.100.7")
HERE = parse_address("127.0.0.1")


def may_reach(client: Address, address: Address, *, listed: bool = False) -> bool:
    return Machine(OWN).closes(address, 80, client=client, listed=listed) is None


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]
)
def test_loopback_in_every_form_is_our_own(address: str) -> None:
    assert MACHINE.is_own(parse_address(address))
    assert not may_reach(FAR, parse_address(address))


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_another_machines_address_is_not_our_own(address: str) -> None:
    assert not MACHINE.is_own(parse_address(address))


def test_our_own_addresses_are_open_if_listed_and_to_clients_on_this_machine() -> None:
    own = parse_address("127.0.0.1")
    assert not may_reach(FAR, own)
    assert may_reach(FAR, own, listed=True)
    assert may_reach(HERE, own)


@pytest.mark.parametrize(
    "address", ["224.0.0.1", "255.255.255.255", "169.254.0.1", "ff02::1", "fe80::1"]
)
def test_no_client_reaches_multicast_or_link_local_addresses(address: str) -> None:
    assert not may_reach(HERE, parse_address(address), listed=True)


IN_A_NAMESPACE = """
import subprocess, time
from ipaddress import ip_address
from pathlib import Path
from capport.linux.own_addresses import HERE
for command in ("link add d0 type veth peer name d1",
                "link set lo up", "link set d0 up", "link set d1 up",
                "addr add 192.0.2.1/24 dev d0", "-6 addr add 2001:db8::1/64 dev d0 nodad",
                "route add local 203.0.113.0/24 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
ask = "192.0.2.1 2001:db8::1 203.0.113.9 192.0.2.2 2001:db8::2".split()
end = time.monotonic() + 30  # the kernel adds a route for an IPv6 address a moment later
while not HERE.is_own(ip_address(ask[1])) and time.monotonic() < end:
    time.sleep(0.01)
print([HERE.is_own(ip_address(one)) for one in ask])
for version in (4, 6):
    Path(f"/proc/sys/net/ipv{version}/ip_nonlocal_bind").write_text("1")
print([HERE.is_own(ip_address(one)) for one in ask])
"""


@requires.namespaces()
def test_our_own_are_known_whatever_may_be_bound() -> None:
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", IN_A_NAMESPACE],
        capture_output=True,
        text=True,
        timeout=SOON,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[True, True, True, False, False]\n" * 2


CHANGES = {
    "link add d0 type veth peer name d1": "00000",
    "link set lo up": "00000",
    "link set d0 up": "00000",
    "link set d1 up": "00000",
    "addr add 192.0.2.1/24 dev d0": "10000",
    "-6 addr add 2001:db8::1/64 dev d0 nodad": "11000",
    "route add local 203.0.113.0/24 dev lo": "11100",
    "addr del 192.0.2.1/24 dev d0": "01100",
    "link del d0": "00100",
    "route del local 203.0.113.0/24 dev lo": "00000",
}
IN_A_NAMESPACE_THAT_CHANGES = """
import subprocess, sys, time
from ipaddress import ip_address
from capport.linux.own_addresses import OWN
asked = "192.0.2.1 2001:db8::1 203.0.113.9 192.0.2.2 2001:db8::2".split()
for command, want in zip(sys.argv[1::2], sys.argv[2::2]):
    subprocess.run(["ip", *command.split()], check=True)
    end = time.monotonic() + 30  # the kernel adds a route for an IPv6 address a moment later
    while (found := "".join(str(int(ip_address(one) in OWN)) for one in asked)) != want:
        assert time.monotonic() < end, (command, found, want)
        time.sleep(0.01)
"""


@requires.namespaces()
def test_our_own_are_those_of_the_moment() -> None:
    steps = [word for step in CHANGES.items() for word in step]
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", IN_A_NAMESPACE_THAT_CHANGES, *steps],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


async def test_an_address_that_did_not_answer_is_tried_last() -> None:
    resolver = SystemResolver()
    first, *rest = await resolver.resolve("localhost")
    assert first == ip_address("127.0.0.1")
    resolver.did_not_answer(first)
    assert (await resolver.resolve("localhost"))[-1] == first
    assert rest


async def test_what_is_remembered_of_failed_connections_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("capport.proxy.resolver.MOST_SILENT", 2)
    resolver = SystemResolver()
    first = (await resolver.resolve("localhost"))[0]
    for failed in (first, parse_address("192.0.2.1"), first, parse_address("192.0.2.2")):
        resolver.did_not_answer(failed)
    assert (await resolver.resolve("localhost"))[-1] == first
    resolver.did_not_answer(parse_address("192.0.2.3"))
    assert (await resolver.resolve("localhost"))[0] == first  # it failed longest ago


async def test_a_name_without_an_address_is_said_by_its_name() -> None:
    want = r"^nowhere\.invalid (has no address: \S|did not resolve within)"
    with pytest.raises(OSError, match=want):
        await SystemResolver().resolve("nowhere.invalid")  # RFC 6761 section 6.4
