"""End to end: the kernel drops a client that is refused too often, and leads 428 to the portal."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

import requires
from capport.core.client import Client as CoreClient
from capport.core.client import parse_address
from capport.router.known_clients import KnownClients
from capport.stores.memory import MemoryStore
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, Client, Lab

pytestmark = pytest.mark.lab

REFUSALS, SECONDS = 20, 12
LIMITS = f"""\
limits:
  requests: {{count: 1200, per: 1m}}
  drop_after: {{count: {REFUSALS}, per: {SECONDS}s}}
  require_conditions: [status.example.net]
"""
ELSEWHERE = "http://www.example.com/"
CONDITIONAL = "http://status.example.net/"


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=2, policy=POLICY + LIMITS, name="limits") as it:
        yield it


def elements(lab: Lab, name: str) -> list[str]:
    return list(lab.elements(name))


def hears_nothing(client: Client, address: str) -> bool:
    """Whether a SYN to port 80 gets no answer at all: neither a connection nor RST."""

    def ask() -> bool:
        try:
            socket.create_connection((address, 80), 1).close()
        except TimeoutError:
            return True
        return False

    return client.namespace.call(ask)


@pytest.mark.rfc(6585, "7.2", "it may be more appropriate to just drop connections")
def test_the_kernel_drops_a_client_that_was_refused_too_often_for_a_time(lab: Lab) -> None:
    storm, other = lab.clients
    assert [storm.status(ELSEWHERE) for _ in range(REFUSALS)] == [511] * REFUSALS
    # It goes on: on a slow machine so many refusals take longer than the budget takes to refill.
    wait_for(
        lambda: (
            storm.status(ELSEWHERE, "--max-time", "1") == 0
            and elements(lab, "dropped") == [storm.mac]
        )
    )
    assert hears_nothing(storm, ORIGIN4)
    assert hears_nothing(storm, ORIGIN6)
    assert storm.status("http://192.0.2.1:8511/") == 200
    assert other.status(ELSEWHERE) == 511
    loaded = lab.capport("router", "up", str(lab.policy_file))
    assert loaded.returncode == 0, loaded.stderr
    assert elements(lab, "dropped") == [storm.mac]
    wait_for(lambda: storm.status(ELSEWHERE, "--connect-timeout", "1") == 511)
    assert elements(lab, "dropped") == []
    events = (lab.folder / "events.jsonl").read_text().splitlines()
    (dropped,) = [one for one in map(json.loads, events) if one["event"] == "dropped"]
    assert (dropped["mac"], dropped["seconds"]) == (storm.mac, SECONDS)


def test_limits_that_the_kernel_passes_by_are_named_when_the_rules_are_loaded(lab: Lab) -> None:
    for command in ("router", "up"), ("check",):
        said = lab.capport(*command, str(lab.policy_file)).stdout
        assert "past limits.requests: these need http.known: inspect, or an explicit proxy" in said
        assert "port 80 of status.example.net goes to the portal" in said


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
def test_a_known_client_meets_428_at_the_hosts_named_and_is_forwarded_elsewhere(
    lab: Lab, family: str
) -> None:
    client = lab.clients[1]
    granted = lab.capport("grant", client.mac, "--policy", str(lab.policy_file))
    assert granted.returncode == 0, granted.stderr
    wait_for(lambda: bool(elements(lab, "conditional4") and elements(lab, "conditional6")))
    own = client.v4 if family == "-4" else client.v6
    wait_for(lambda: own in client.curl(family, ELSEWHERE).stdout)
    update = (family, "--request", "PUT", "--data", "x")
    assert client.status(CONDITIONAL, *update) == 428
    assert client.status(CONDITIONAL, *update, "--header", 'If-Match: "a"') == 200
    assert client.status(ELSEWHERE, *update) == 200
    assert own not in client.curl(family, CONDITIONAL).stdout
    assert own in client.curl(family, ELSEWHERE).stdout


def test_a_client_without_a_mac_is_dropped_by_its_address_and_no_client_for_another(
    lab: Lab,
) -> None:
    known = lab.router.call(KnownClients, lambda: lab.policy, MemoryStore(), lab.neighbours)
    with closing(known):
        for address, astray in (
            ("192.0.2.77", False),
            ("2001:db8:9::7", False),
            ("192.0.2.78", True),
        ):
            known.drop(CoreClient(parse_address(address), astray=astray), 60, known=False)
    assert elements(lab, "dropped4") == ["192.0.2.77"]
    assert elements(lab, "dropped6") == ["2001:db8:9::7"]


@pytest.mark.rfc(6585, "7.2", "it may be more appropriate to just drop connections")
def test_a_known_client_is_dropped_only_where_it_is_sent_to_the_portal(lab: Lab) -> None:
    client = lab.clients[1]
    assert lab.capport("grant", client.mac, "--policy", str(lab.policy_file)).returncode == 0
    update = ("--request", "PUT", "--data", "x", "--max-time", "1")
    wait_for(lambda: client.status(CONDITIONAL, *update) == 0)
    wait_for(lambda: elements(lab, "dropped_known") == [client.mac])
    assert client.status(CONDITIONAL, "--max-time", "1") == 0
    assert client.status(ELSEWHERE) == 200
