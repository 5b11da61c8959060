"""DNS of unknown clients: they find the portal, however busy, and it carries little else."""

import itertools
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import requires
from capport.router import nftables
from capport.router.dns_rules import ANSWERS, PAYLOAD, QUESTIONS
from conftest import SOON
from lab.namespaces import end, wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, ROUTER4, ROUTER6, TUNNEL, TUNNEL_PORT, Client, Lab
from lab.resolving import (
    AAAA,
    HTTPS,
    TXT,
    A,
    Tunnel,
    address6_record,
    address_record,
    alias_record,
    exchange,
    exchange_by_tcp,
    flood,
    found,
    in_any_second,
    many_addresses,
    payload,
    random_names,
    wire,
)

pytestmark = pytest.mark.lab

METERS = ("asked", "asked_rest", "answered", "answered_rest", "checked")
# Tries of a device that uses nearly all of its budget, and seconds between them, as resolv.conf(5)
# has it. If the kernel of a busy machine delays some questions, they come in a burst and are lost.
# Those that follow leave little room for repeating, so the last try comes after all of them; and
# the answer of a resolver that waits for a processor is not missed.
PATIENT = 4, 5
CHECK = "connectivitycheck.gstatic.com"
ELSEWHERE = ("8.8.8.8", "2001:4860:4860::8888")
_number = itertools.count()


@pytest.fixture(autouse=True)
def _has_asked_nothing_yet(lab: Lab) -> None:
    """An earlier test may have used up the device's questions for the first second."""
    lab.rules.run("".join(f"flush set {nftables.TABLE} {name}\n" for name in METERS))


@pytest.mark.parametrize("resolver", [*ELSEWHERE, ROUTER4, ROUTER6])
def test_a_device_with_a_resolver_of_its_own_gets_the_portal(lab: Lab, resolver: str) -> None:
    client = lab.client
    configured = Path("/etc/netns") / client.namespace.name / "resolv.conf"
    before = configured.read_text()
    configured.write_text(f"nameserver {resolver}\n")
    try:
        assert client.status("http://www.example.com/") == 511
    finally:
        configured.write_text(before)
    answer = client.namespace.call(exchange_by_tcp, resolver, "tcp.example.com")
    assert socket.inet_aton(ORIGIN4) in answer
    assert not [line for line in lab.reached() if line.endswith(" 53")]


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
@pytest.mark.parametrize(
    ("kind", "port"),
    [(socket.SOCK_STREAM, 853), (socket.SOCK_DGRAM, 853), (socket.SOCK_DGRAM, 443)],
    ids=["DNS over TLS", "DNS over QUIC", "QUIC"],
)
def test_encrypted_dns_is_refused_at_once(lab: Lab, address: str, kind: int, port: int) -> None:
    def attempt() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as talk:
            talk.settimeout(SOON)
            talk.connect((address, port))
            talk.send(b"hello")
            talk.recv(100)

    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the kernel's to choose
        lab.client.namespace.call(attempt)
    assert not isinstance(caught.value, TimeoutError)


def busy(rate: float, seconds: float, pattern: str) -> list[tuple[float, str]]:
    """Questions of a device's apps, each for another name."""
    count = int(rate * seconds)
    return [(n / rate, pattern.format(f"{next(_number):05d}")) for n in range(count)]


@pytest.mark.parametrize("rate", [8, 15, 40, 200])
def test_a_busy_device_finds_the_names_of_its_connectivity_checks(lab: Lab, rate: int) -> None:
    checks = [(0.25 * n, CHECK) for n in range(12)]
    asked = [*busy(rate, 3, "a-long-name-{}.telemetry.example.com"), *checks]
    answered = lab.client.namespace.call(found, ROUTER4, asked, 1)
    assert answered.count(CHECK) == 12


def test_after_a_burst_a_device_finds_its_connectivity_check(lab: Lab) -> None:
    burst = busy(1e6, 60e-6, "app{}.example.com")
    asked = [*burst, (0.01, CHECK), (0.5, "www.example.com")]
    answered = lab.client.namespace.call(found, ROUTER4, asked, 1)
    assert len(burst) == 60
    assert {CHECK, "www.example.com"} <= set(answered)


@pytest.mark.slow
@pytest.mark.parametrize("address", [ROUTER4, ROUTER6])
def test_forty_questions_a_second_for_ordinary_names_are_answered(lab: Lab, address: str) -> None:
    asked = busy(40, 10, "app{}.example.com")
    answered = lab.client.namespace.call(found, address, asked, *PATIENT)
    assert sorted(answered) == [name for _, name in asked]


@pytest.mark.slow
def test_twenty_questions_a_second_for_long_names_are_answered(lab: Lab) -> None:
    asked = busy(20, 10, "app{}.devices-of-asia.example.com")
    assert {len(name) for _, name in asked} == {36}
    answered = lab.client.namespace.call(found, ROUTER4, asked, *PATIENT)
    assert sorted(answered) == [name for _, name in asked]


def test_each_way_the_bound_is_that_of_the_readme() -> None:
    for budget in (QUESTIONS, ANSWERS):
        assert budget.unit * (budget.rate + budget.burst) <= PAYLOAD
    readme = (Path(__file__).parents[2] / "scripts/router/README.md").read_text()
    assert f"{PAYLOAD} bytes a second each way" in readme


@pytest.mark.slow
@pytest.mark.parametrize("records", [address_record, address6_record, alias_record, many_addresses])
@pytest.mark.parametrize("free", [2, 4, 11, 30, 77])
def test_a_tunnel_carries_no_more_than_the_bound_from_the_first_second_on(
    lab: Lab, free: int, records: Callable[[], tuple[int, bytes]]
) -> None:
    """Counts as if the domain were the shortest possible, and the client chose every other byte.

    A question counts when it was sent: the resolver in between may send it on later.
    """
    shortest = len(wire("ab.cd")) + 1
    kind = AAAA if records is address6_record else A
    tunnel = lab.origin.call(Tunnel, ORIGIN4, TUNNEL_PORT, records)
    try:
        names = random_names(free, TUNNEL)
        sent, answers = lab.client.namespace.call(flood, ROUTER4, names, 500, 2, kind)
    finally:
        tunnel.close()
    up = in_any_second(
        (max(when for when, name in sent if name == it and when <= at), len(it) - shortest)
        for at, it in tunnel.reached
    )
    down = in_any_second([(at, payload(answer)) for at, answer in answers])
    assert up <= PAYLOAD
    assert down <= PAYLOAD
    if free < 11:
        assert tunnel.reached, "or nothing was tried"
        assert answers


def test_a_name_carries_whole_bytes_so_each_is_charged_as_one(lab: Lab) -> None:
    """If the resolver changed some names, a longer one could cost the same."""
    tunnel = lab.origin.call(Tunnel, ORIGIN4, TUNNEL_PORT, address_record)
    name = b"\x06aB\x01\x80\xff!" + wire(TUNNEL)
    try:
        lab.client.namespace.call(flood, ROUTER4, [name] * 3, 5, SOON)
        wait_for(lambda: name in {reached for _, reached in tunnel.reached})
    finally:
        tunnel.close()


@pytest.mark.slow
def test_a_client_with_many_addresses_is_answered_no_more(lab: Lab) -> None:
    """A MAC has as many IPv6 addresses as it likes."""
    client = lab.client
    extra = [f"2001:db8:1::a:{n}" for n in range(8)]
    client.namespace.ip(*(f"address add {a}/64 dev eth0 nodad" for a in extra))
    tunnel = lab.origin.call(Tunnel, ORIGIN4, TUNNEL_PORT, many_addresses)
    answers: list[tuple[float, float]] = []
    try:
        for address in extra:
            client.namespace.ip(f"route replace {ROUTER6}/128 dev eth0 src {address}")
            _, got = client.namespace.call(flood, ROUTER6, random_names(4, TUNNEL), 100, 0.3)
            answers += [(at, payload(answer)) for at, answer in got]
    finally:
        tunnel.close()
        client.namespace.ip(
            f"route del {ROUTER6}/128 dev eth0",
            *(f"address del {a}/64 dev eth0" for a in extra),
        )
    assert in_any_second(answers) <= PAYLOAD


@pytest.mark.parametrize("kind", [TXT, HTTPS, 10], ids=["TXT", "HTTPS", "NULL"])
def test_records_that_are_made_to_carry_anything_are_left_out(lab: Lab, kind: int) -> None:
    def record() -> tuple[int, bytes]:
        return 1, struct.pack("!3HIH", 0xC00C, kind, 1, 0, 4) + b"\3abc"

    tunnel = lab.origin.call(Tunnel, ORIGIN4, TUNNEL_PORT, record)
    try:
        answer = lab.client.namespace.call(exchange, ROUTER4, f"x{kind}.{TUNNEL}", kind)
    finally:
        tunnel.close()
    assert answer[3] & 15 == 0
    assert answer[6:8] == b"\0\0"


@pytest.mark.slow
@requires.tool("iodine")
@pytest.mark.parametrize("options", [[], ["-M", "100"], ["-M", "60", "-T", "A"]], ids=" ".join)
def test_iodine_does_not_come_up(lab: Lab, options: list[str]) -> None:
    """A known client's resolver does so without an option: tests/lab/test_unknown.py."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun here: iodine needs it")
    server = lab.origin.start(
        *("iodined", "-f", "-c", "-P", "secret", "-l", ORIGIN4, "-p", str(TUNNEL_PORT)),
        *("10.99.0.1/24", TUNNEL),
    )
    log = lab.folder / "iodine.log"
    with log.open("wb") as said:
        tunnel = lab.client.namespace.start(
            *("iodine", "-f", "-r", "-P", "secret", *options, ROUTER4, TUNNEL), log=said
        )
    try:
        with pytest.raises(TimeoutError):
            wait_for(lambda: b"setup complete" in log.read_bytes(), 20)
    finally:
        end(tunnel)
        end(server)


def test_without_the_resolver_nothing_is_answered_and_show_says_so(lab: Lab) -> None:
    shown = lab.capport("router", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    end(lab.resolver)
    try:
        for address in (ROUTER4, *ELSEWHERE):
            with pytest.raises(ConnectionRefusedError):
                lab.client.namespace.call(exchange, address, "www.example.com")
        shown = lab.capport("router", "show")
        assert shown.returncode == 0
        assert "nothing listens on UDP port 5311" in shown.stderr
    finally:
        lab.resolver = lab.start_resolver()

    def answers() -> bool:
        return bool(lab.client.namespace.call(found, ROUTER4, [(0, CHECK)], 1, 0.2))

    wait_for(answers)


STAR = POLICY.replace("  - www.example.org\n", '  - "*.pay.example.com:8443"\n')


def test_a_star_opens_what_is_below_the_name_and_not_the_name_itself() -> None:
    requires.check(requires.namespaces())
    with Lab(policy=STAR, portal=False, name="star") as lab:

        def opened(client: Client, *names: str) -> dict[str, float]:
            for name in names:
                client.namespace.call(exchange, ROUTER4, name)
            return lab.elements("garden4_8443")

        assert opened(lab.client, "pay.example.com", "status.example.org", "example.com") == {}
        assert ORIGIN4 in opened(lab.client, "shop.pay.example.com")
