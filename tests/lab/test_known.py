"""End to end: the kernel forwards a known client until it loses its session or its address."""

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from conftest import SOON
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, ROUTER4, Client, Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def granted(lab: Lab) -> Iterator[Client]:
    """The first client, granted by the command."""
    grant(lab, lab.client)
    yield lab.client
    revoke(lab, lab.client)


def grant(lab: Lab, client: Client, *more: str) -> None:
    done = lab.capport("grant", client.mac, *more, "--policy", str(lab.policy_file))
    assert done.returncode == 0, done.stderr


def revoke(lab: Lab, client: Client) -> None:
    lab.capport("revoke", client.mac, "--policy", str(lab.policy_file))


def echoes(client: Client, address: str = ORIGIN4, seconds: float = SOON) -> bool:
    def ask() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, 7), seconds) as talk:
            talk.sendall(b"there?")
            return talk.recv(100) == b"there?"
        return False

    return client.namespace.call(ask)


def test_a_grant_is_in_force_when_the_command_returns(lab: Lab) -> None:
    assert lab.client.status("http://www.example.com/") == 511
    grant(lab, lab.client)
    assert echoes(lab.client)
    assert lab.client.status("http://www.example.com/") == 200
    revoke(lab, lab.client)
    assert not echoes(lab.client)
    assert lab.client.status("http://www.example.com/") == 511


@pytest.mark.parametrize("address", [ORIGIN4, f"[{ORIGIN6}]"])
def test_a_known_client_goes_past_the_proxy_with_its_own_address(
    lab: Lab, granted: Client, address: str
) -> None:
    wait_for(lambda: echoes(granted, address.strip("[]")))
    before = len(lab.log())
    mine = granted.v6 if ":" in address else granted.v4
    assert f"origin, to {mine}" in granted.curl(f"http://{address}/").stdout
    certificate = ("--cacert", str(lab.folder / "cert.pem"))
    assert granted.status(f"https://{address}/", *certificate) == 200
    assert len(lab.log()) == before


def test_a_download_ends_with_the_revocation(lab: Lab, granted: Client) -> None:
    other = lab.clients[1]
    grant(lab, other)
    downloads = [
        client.namespace.start("curl", "-sN", "-o", str(lab.folder / f"slow{n}"), slow)
        for n, client in enumerate((granted, other))
        for slow in (f"http://{ORIGIN4}/slow",)
    ]
    try:
        mine, others = (lab.folder / f"slow{n}" for n in range(2))
        wait_for(lambda: all(file.exists() and file.stat().st_size for file in (mine, others)))
        revoke(lab, granted)
        ends = time.monotonic() + SOON
        while True:
            size = mine.stat().st_size
            grown = others.stat().st_size + 200  # the second client does not notice
            wait_for(lambda size=grown: others.stat().st_size > size)  # type: ignore[misc]
            if mine.stat().st_size == size:
                break
            assert time.monotonic() < ends
    finally:
        for download in downloads:
            download.send_signal(signal.SIGKILL)
            download.wait(SOON)
        revoke(lab, other)


def test_a_session_ends_by_itself(lab: Lab) -> None:
    grant(lab, lab.client)
    assert echoes(lab.client)
    grant(lab, lab.client, "--for", "2s")
    wait_for(lambda: not echoes(lab.client, seconds=3))
    assert lab.client.status("http://www.example.com/") == 511


@pytest.mark.rfc(6585, "6.1", "identifying unknown clients by their MAC addresses")
def test_a_device_that_takes_the_address_over_is_unknown(lab: Lab, granted: Client) -> None:
    thief = lab.clients[1]
    granted.namespace.ip("link set eth0 down")
    thief.namespace.ip(f"address add {granted.v4}/24 dev eth0")
    try:
        interface = ("--interface", granted.v4)
        before = [line for line in lab.reached() if granted.v4 in line]

        def is_refused() -> bool:
            # The router believes a new MAC only when it has not just heard the old one (arp(7)).
            thief.namespace.ip("neighbour flush dev eth0")
            got = thief.curl(*interface, f"http://{ORIGIN4}/", seconds=3).stdout[-3:]
            assert got in ("000", "511")
            return got == "511"

        wait_for(is_refused)
        said = thief.curl("-k", *interface, f"https://{ORIGIN4}/").stderr
        assert "alert access denied" in said
        assert [line for line in lab.reached() if granted.v4 in line] == before
    finally:
        thief.namespace.ip(f"address del {granted.v4}/24 dev eth0")
        granted.namespace.ip("link set eth0 up", f"route replace default via {ROUTER4}")
        wait_for(granted.has_v6)


def test_a_session_of_an_address_is_that_of_the_first_device_there(lab: Lab) -> None:
    """The address was granted before any device had it: the second device to have it is unknown."""
    address, policy = "192.0.2.77", ("--policy", str(lab.policy_file))
    first, second = lab.clients
    said = lab.capport("grant", address, "--for", "1h", *policy)
    assert f"{address}: the session is in" in said.stderr
    assert "the client is not there yet" in said.stderr

    def status(client: Client) -> int:
        return client.status(f"http://{ORIGIN4}/", "--interface", address)

    def known() -> list[str]:
        listed = json.loads(lab.capport("clients", "--json", *policy).stdout)
        return [session["client"] for session in listed]

    try:
        first.namespace.ip(f"address add {address}/24 dev eth0")
        wait_for(lambda: status(first) == 200)
        wait_for(lambda: known() == [first.mac])
        assert status(first) == 200
        first.namespace.ip(f"address del {address}/24 dev eth0")
        lab.router.ip(f"neighbour del {address} dev br-lan")
        second.namespace.ip(f"address add {address}/24 dev eth0")
        assert status(second) == 511
        assert not [line for line in lab.reached() if address in line and second.mac in line]
    finally:
        revoke(lab, first)
        lab.capport("revoke", address, *policy)
        for client in lab.clients:
            with contextlib.suppress(OSError):
                client.namespace.ip(f"address del {address}/24 dev eth0")


def test_known_clients_go_on_while_the_rules_are_put_in_force_again(
    lab: Lab, granted: Client
) -> None:
    with granted.namespace.call(socket.create_connection, (ORIGIN4, 7), SOON) as talk:
        talk.settimeout(SOON)
        for _ in range(3):
            done = lab.capport("router", "up", str(lab.policy_file))
            assert done.returncode == 0, done.stderr
            assert "nftset" not in done.stdout  # the portal itself follows names without a star
            talk.sendall(b"still?")
            assert talk.recv(100) == b"still?"


def test_known_clients_go_on_without_the_proxy(lab: Lab, granted: Client) -> None:
    proxy = lab.proxies.pop()
    try:
        subprocess.run(["kill", "-KILL", str(proxy.pid)], check=True)
        proxy.wait(SOON)
        assert echoes(granted)
        assert granted.status(f"http://{ORIGIN4}/") == 200
    finally:
        lab.start_proxy(lab.proxy_ports[0])


def test_down_leaves_no_trace(lab: Lab) -> None:
    assert lab.capport("router", "show", str(lab.policy_file)).returncode == 0
    assert lab.capport("router", "down", str(lab.policy_file)).returncode == 0
    try:
        assert lab.router.run("nft", "list", "ruleset").stdout == ""
    finally:
        assert lab.capport("router", "up", str(lab.policy_file)).returncode == 0
    assert lab.client.status("http://www.example.com/") == 511


def test_two_proxies_share_a_store_and_one_may_die() -> None:
    ports = (8080, 8082)
    # Two processes cannot both be the login server.
    policy = POLICY.replace(
        "login_server:\n  listen: 192.0.2.1:8511", "login_url: http://192.0.2.1:8511/"
    )
    with Lab(clients=1, proxy_ports=ports, policy=policy, name="two") as lab:
        addresses = [f"192.0.2.{n}" for n in range(40, 64)]  # by a hash: all at one, once in 2**23
        lab.client.namespace.ip(*(f"address add {a}/24 dev eth0" for a in addresses))

        def statuses() -> list[int]:
            url = f"http://{ORIGIN4}/"
            return [lab.client.status(url, "--interface", a) for a in addresses]

        assert set(statuses()) == {511}
        logs = [lab.folder / f"mitmdump-{port}.log" for port in ports]
        assert all("511" in log.read_text() for log in logs), "each has its share"
        lab.proxies[0].kill()
        lab.proxies[0].wait(SOON)
        assert set(statuses()) == {0, 511}
        grant(lab, lab.client)
        assert set(statuses()) == {200}
        revoke(lab, lab.client)
        done = lab.capport("router", "up", str(lab.policy_file), "--proxy-port", "8082")
        assert done.returncode == 0, done.stderr
        assert set(statuses()) == {511}
