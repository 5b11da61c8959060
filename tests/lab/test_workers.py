"""`capport run --workers` on a router, with real rules, while its workers are stopped."""

import contextlib
import itertools
import re
import socket
from collections.abc import Iterator

import pytest

import requires
from capport import clock
from capport.service.kernel import CARRIED_OUT
from conftest import SOON
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, Client, Lab
from suspension import suspend

pytestmark = pytest.mark.lab

REQUESTS, REFUSALS = 100, 200
LIMITS = f"""
limits:
  unknown_requests: {{count: {REQUESTS}, per: 1h}}
  drop_after: {{count: {REFUSALS}, per: 1h}}
"""

SERVES = re.compile(r"Worker (\d) serves: process (\d+)")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=1, policy=POLICY + LIMITS, name="workers", workers=2) as it:
        yield it


def workers(lab: Lab) -> dict[str, int]:
    """The process of each worker that serves."""
    return {number: int(pid) for number, pid in SERVES.findall(lab.log())}


def echoes(client: Client) -> bool:
    """Whether the kernel forwards what the client sends: no proxy gets this port."""

    def ask() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((ORIGIN4, 7), SOON) as talk:
            talk.sendall(b"there?")
            return talk.recv(100) == b"there?"
        return False

    return client.namespace.call(ask)


def test_unknown_clients_are_refused_in_both_families(lab: Lab) -> None:
    for origin in (ORIGIN4, f"[{ORIGIN6}]"):
        assert lab.client.status(f"http://{origin}/") == 511


def test_a_session_that_the_kernel_lacks_is_put_right_by_the_first_process(lab: Lab) -> None:
    client, options = lab.client, ("--policy", str(lab.policy_file))
    assert client.status(f"http://{ORIGIN4}/") == 511
    assert lab.capport("grant", client.v4, *options).returncode == 0
    granted, pair = clock.now(), f"{client.v4} . {client.mac}"
    wait_for(lambda: clock.now() > granted + CARRIED_OUT)
    for name in ("known4", "macs"):
        lab.router.run("nft", "flush", "set", "inet", "capport", name)
    assert client.status(f"http://{ORIGIN4}/") == 200  # a worker relays meanwhile
    wait_for(lambda: pair in lab.elements("known4"))
    wait_for(lambda: "capport adds it again" in (lab.folder / "events.jsonl").read_text())
    assert lab.capport("revoke", client.v4, *options).returncode == 0


def test_a_grant_and_a_revocation_are_in_force_in_the_kernel_while_no_worker_runs(lab: Lab) -> None:
    wait_for(lambda: len(workers(lab)) == 2)
    client, before = lab.client, workers(lab)
    pair = f"{client.v4} . {client.mac}"
    options = ("--policy", str(lab.policy_file))
    assert client.status(f"http://{ORIGIN4}/") == 511
    assert lab.capport("grant", client.v4, *options).returncode == 0
    assert echoes(client)
    for pid in before.values():
        suspend(pid)
    assert lab.capport("revoke", client.v4, *options).returncode == 0
    assert pair not in lab.elements("known4")
    assert not echoes(client)
    assert lab.capport("grant", client.v4, *options).returncode == 0
    assert echoes(client)
    wait_for(lambda: not set(workers(lab).values()) & set(before.values()))
    assert lab.capport("revoke", client.v4, *options).returncode == 0
    # The command waits for the kernel; a worker follows the store by itself.
    wait_for(lambda: client.status(f"http://{ORIGIN4}/") == 511)


@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
@pytest.mark.rfc(6585, "7.2", "it may be more appropriate to just drop connections")
def test_a_device_has_one_budget_over_its_addresses_and_the_workers(lab: Lab) -> None:
    """It is the last test in this file, because it ends with the device dropped."""
    wait_for(lambda: len(workers(lab)) == 2)
    addresses = [f"192.0.2.{number}" for number in range(200, 208)]
    lab.client.namespace.ip(*(f"address add {each}/24 dev eth0" for each in addresses))
    addresses.append(lab.client.v6)
    open_ = [lab.client.namespace.call(connection_from, each) for each in addresses]
    wait_for(lambda: len(serving(lab)) == 2)
    asking = itertools.cycle(open_)
    first = [status(next(asking)) for _ in range(REFUSALS * 9 // 10)]
    assert REQUESTS * 0.9 <= first.count(b"511") <= REQUESTS * 1.1  # the tests above used a few
    assert set(first) == {b"511", b"429"}
    assert dropped(lab) == []
    rest = [status(next(asking)) for _ in range(REFUSALS * 2 // 10)]
    assert set(rest) <= {b"429", b""}  # it takes a moment until all know that it is dropped
    wait_for(lambda: dropped(lab) == [lab.client.mac])
    wait_for(lambda: {status(one) for one in open_} == {b""})
    for one in open_:
        one.close()


def dropped(lab: Lab) -> list[str]:
    """The MACs that the kernel drops."""
    return list(lab.elements("dropped"))


def serving(lab: Lab) -> set[str]:
    """The processes that have clients' connections."""
    found = lab.router.run("ss", "-Htnp", "state", "established", "sport = :8080").stdout
    return set(re.findall(r"pid=(\d+)", found))


def connection_from(address: str) -> socket.socket:
    origin = ORIGIN6 if ":" in address else ORIGIN4
    return socket.create_connection((origin, 80), SOON, (address, 0))


def status(one: socket.socket) -> bytes:
    """The status of the answer to one request; empty if there is none."""
    data = b""
    with contextlib.suppress(OSError):
        one.sendall(b"GET / HTTP/1.1\r\nHost: www.example.com\r\nAccept: text/plain\r\n\r\n")
        while not data.endswith(b"\n") and (more := one.recv(65536)):
            data += more
    return data[9:12]
