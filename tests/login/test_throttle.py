"""Guessing is slowed down, for each client and for all together."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from capport.core.client import Client, Mac
from capport.login.throttle import FOR_ALL, FREE, LONGEST, SIGN_INS, Often, Throttle

ADA, EVE = Client(IPv4Address("192.0.2.7")), Client(IPv4Address("192.0.2.8"))


def test_after_ten_wrong_ones_the_wait_doubles() -> None:
    throttle, now, waits = Throttle(), 0.0, []
    for _ in range(FREE):
        assert throttle.attempt(ADA, now) == 0
    for _ in range(11):
        wait = throttle.attempt(ADA, now)
        waits.append(wait)
        now += wait
        assert throttle.attempt(ADA, now) == 0
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, LONGEST]
    assert throttle.attempt(EVE, now) == 0


def test_a_right_one_does_not_pay_for_the_wrong_ones_before() -> None:
    throttle = Throttle()
    for _ in range(FREE - 1):
        throttle.attempt(ADA, 0.0)
    for _ in range(5):
        assert throttle.attempt(ADA, 0.0) == 0
        throttle.forgive(ADA)
    assert throttle.attempt(ADA, 0.0) == 0
    assert throttle.attempt(ADA, 0.0) > 0


def test_a_client_that_makes_up_addresses_meets_the_limit_for_all() -> None:
    throttle = Throttle()
    clients = [Client(ip_address(f"10.0.{n // 256}.{n % 256}")) for n in range(300)]
    waits = []
    for client in clients:
        waits.append(throttle.for_all(1.0))
        throttle.attempt(client, 1.0)
    assert waits.count(0) == FOR_ALL
    assert set(waits) == {0, 60}
    assert throttle.for_all(60.9) > 0
    assert throttle.for_all(61.1) == 0


def at(address: str, mac: str | None = None) -> Client:
    return Client(IPv6Address(address), Mac(mac) if mac else None)


def test_all_addresses_of_one_ipv6_network_are_one_client_where_there_is_no_mac() -> None:
    throttle = Throttle()
    for n in range(FREE):
        assert throttle.attempt(at(f"2001:db8::{n:x}"), 0.0) == 0
    assert throttle.attempt(at("2001:db8::ffff"), 0.0) > 0
    assert throttle.attempt(at("2001:db8:0:1::1"), 0.0) == 0


def test_one_device_that_guesses_holds_up_no_other_of_its_network() -> None:
    throttle = Throttle()
    for n in range(FREE):
        assert throttle.attempt(at(f"2001:db8::{n:x}", "02:00:00:00:00:07"), 0.0) == 0
    assert throttle.attempt(at("2001:db8::aaaa", "02:00:00:00:00:07"), 0.0) > 0
    assert throttle.attempt(at("2001:db8::bbbb", "02:00:00:00:00:08"), 0.0) == 0


def test_a_device_signs_in_only_so_often_by_all_the_addresses_of_its_own() -> None:
    """RFC 8981: without a MAC it is known by its /64."""
    often = Often()
    waits = [
        often.spend(Client(IPv6Address(f"2001:db8::{n:x}")), 0.0) for n in range(SIGN_INS.count + 1)
    ]
    assert waits[:-1] == [0] * SIGN_INS.count
    assert waits[-1] > 0
    assert often.spend(Client(IPv6Address("2001:db8:0:1::1")), 0.0) == 0
