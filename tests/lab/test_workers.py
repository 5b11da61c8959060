"""`capport run --workers` on a router, with real rules, while its workers are stopped."""

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest

import requires
from capport.router import nftables
from conftest import SOON
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, Client, Lab

pytestmark = pytest.mark.lab

SERVES = re.compile(r"Worker (\d) serves: process (\d+)")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=1, name="workers", workers=2) as it:
        yield it


def workers(lab: Lab) -> dict[str, int]:
    """The process of each worker that serves."""
    return {number: int(pid) for number, pid in SERVES.findall(lab.log())}


def echoes(client: Client) -> bool:
    """Whether the kernel forwards what the client sends: no proxy sees this port."""

    def ask() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((ORIGIN4, 7), SOON) as talk:
            talk.sendall(b"there?")
            return talk.recv(100) == b"there?"
        return False

    return client.namespace.call(ask)


def test_unknown_clients_are_refused_in_both_families(lab: Lab) -> None:
    for origin in (ORIGIN4, f"[{ORIGIN6}]"):
        assert lab.client.status(f"http://{origin}/") == 511


def test_a_grant_and_a_revocation_are_in_force_in_the_kernel_while_no_worker_runs(lab: Lab) -> None:
    wait_for(lambda: len(workers(lab)) == 2)
    client, before = lab.client, workers(lab)
    pair = f"{client.v4} . {client.mac}"
    options = ("--policy", str(lab.policy_file))
    assert lab.capport("grant", client.v4, *options).returncode == 0
    assert echoes(client)
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)
    assert lab.capport("revoke", client.v4, *options).returncode == 0
    assert pair not in dict(nftables.listed(lab.rules, "known4"))
    assert not echoes(client)
    assert lab.capport("grant", client.v4, *options).returncode == 0
    assert echoes(client)
    wait_for(lambda: not set(workers(lab).values()) & set(before.values()))
    assert lab.capport("revoke", client.v4, *options).returncode == 0
    assert lab.client.status(f"http://{ORIGIN4}/") == 511
