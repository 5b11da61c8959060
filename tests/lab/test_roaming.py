"""Two routers that share their sessions, and a client that moves between their access points."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Self

import pytest

import requires
from conftest import SOON
from lab.fleet import Fleet
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, Client, Lab

pytestmark = [pytest.mark.lab, requires.tool("redis-server")]

ECHO = 7
EACH = 0.01  # seconds between two datagrams
SECOND = round(1 / EACH)
"""As many as are sent in a second: a slow machine sends fewer, and so loses no more."""


@pytest.fixture(scope="module")
def network() -> Iterator[Fleet]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Fleet(2, clients=2) as fleet:
        yield fleet


@pytest.fixture
def at_first(network: Fleet) -> Iterator[Client]:
    """A client at the first router, with no session."""
    first = network.routers[0]
    yield first.client
    first.client.roam(1)
    first.capport("revoke", first.client.mac, "--policy", str(first.policy_file))
    wait_for(lambda: first.client.status(f"http://{ORIGIN4}/") == 511)


class Stream:
    """Numbered datagrams to the origin's echo, one each 10 ms, and which came back."""

    def __init__(self, client: Client, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = client.namespace.call(socket.socket, family, socket.SOCK_DGRAM)
        self._socket.settimeout(0.1)
        self._to = address
        self.sent = 0
        self.back: set[int] = set()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def goes_on(self) -> None:
        """Waits until ten more have come back, which are sent from now on."""
        after = self.sent
        wait_for(lambda: sum(number > after for number in tuple(self.back)) >= 10, SOON)

    @property
    def lost(self) -> int:
        """How many were lost, of those sent before the last one that came back."""
        return max(self.back) - len(self.back)

    def _send(self) -> None:
        while not self._closed.wait(EACH):
            self.sent += 1
            with contextlib.suppress(OSError):
                self._socket.sendto(str(self.sent).encode(), (self._to, ECHO))

    def _receive(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                self.back.add(int(self._socket.recv(100)))


def capport(router: Lab, *arguments: str) -> str:
    done = router.capport(*arguments, "--policy", str(router.policy_file))
    assert done.returncode == 0, done.stderr
    return done.stdout


def sign_in(network: Fleet, client: Client) -> None:
    """Follows the link in a 511, and accepts the terms."""
    jar = str(network.routers[0].folder / "cookies")
    page = client.curl("--header", "Accept: text/plain", f"http://{ORIGIN4}/").stdout
    found = re.search(r"(http://[^/]+/)\S+", page)
    assert found, page
    form = client.curl("--cookie-jar", jar, found[0]).stdout
    fields = re.findall(r'name="(\w+)" value="([^"]*)"', form)
    sent = [part for one in fields for part in ("--data-urlencode", "=".join(one))]
    done = client.curl("--cookie", jar, *sent, f"{found[1]}sign-in").stdout
    assert client.status(f"http://{ORIGIN4}/") == 200, done


def test_a_client_that_roams_signs_in_once_and_loses_less_than_a_second(
    network: Fleet, at_first: Client
) -> None:
    assert at_first.status(f"http://{ORIGIN4}/") == 511
    sign_in(network, at_first)
    with (
        Stream(at_first, ORIGIN4) as by4,
        Stream(at_first, ORIGIN6) as by6,
        at_first.namespace.call(socket.create_connection, (ORIGIN4, ECHO), SOON) as kept,
    ):
        for number in (2, 1, 2):
            for stream in (by4, by6):
                stream.goes_on()
            at_first.roam(number)
            for origin in (ORIGIN4, f"[{ORIGIN6}]"):
                assert at_first.status(f"http://{origin}/") == 200
            kept.sendall(b"still?")
            assert kept.recv(100) == b"still?"
            for stream in (by4, by6):
                stream.goes_on()
        assert by4.lost < SECOND
        assert by6.lost < SECOND


def test_a_revocation_at_the_second_router_ends_the_session_at_the_first(
    network: Fleet, at_first: Client
) -> None:
    first, second = network.routers
    sign_in(network, at_first)
    at_first.roam(2)
    with Stream(at_first, ORIGIN4) as stream:
        stream.goes_on()
        capport(second, "revoke", at_first.mac)
        assert at_first.status(f"http://{ORIGIN4}/") == 511
        at_first.roam(1)
        assert at_first.status(f"http://{ORIGIN4}/") == 511
        last = stream.sent
    assert max(stream.back) <= last
    assert capport(first, "clients", "--json") == "[]\n"


def test_a_client_that_gets_another_address_at_the_second_router_stays_known(
    network: Fleet, at_first: Client
) -> None:
    """Its session is filed under its MAC."""
    sign_in(network, at_first)
    at_first.roam(2)
    other = "192.0.2.77"
    at_first.namespace.ip(f"address add {other}/24 dev eth0")
    try:
        at_first.roam(2)
        assert at_first.status(f"http://{ORIGIN4}/", "--interface", other) == 200
    finally:
        at_first.namespace.ip(f"address del {other}/24 dev eth0")


def test_a_client_that_roams_is_known_without_redis_until_the_lease_is_over(
    network: Fleet, at_first: Client
) -> None:
    sign_in(network, at_first)
    stranger = network.routers[0].clients[1]
    network.stop_redis()
    try:
        for client, status in ((at_first, 200), (stranger, 511)):
            client.roam(2)
            assert client.status(f"http://{ORIGIN4}/") == status
    finally:
        network.start_redis()
