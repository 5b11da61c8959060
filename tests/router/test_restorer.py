"""The rules stay, whatever other programs do to nftables, and known clients' traffic goes on."""

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

import requires
from capport.core.client import ClientId
from capport.linux.libnftables import RulesError
from capport.router import nftables
from capport.router.known_clients import KnownClients
from capport.router.restorer import Restorer
from capport.stores.memory import MemoryStore
from lab.namespaces import wait_for
from lab.network import ORIGIN4, Lab
from router.granting import grant

pytestmark = pytest.mark.lab

FIREWALL = """
table inet firewall {
chain onward { type filter hook forward priority filter; ct state established,related accept
}
}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=2, portal=False, name="keeper") as it:
        yield it


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def known(lab: Lab, store: MemoryStore) -> Iterator[KnownClients]:
    """The rules, with the first client known."""
    with suppress(RulesError):
        lab.rules.run("delete table inet firewall\n")
    nftables.up(lab.policy, proxy_ports=(8080, 8082), rules=lab.rules)
    grant(store, lab.client.mac, 3600)
    following = lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    store.watch(following.changed)
    lab.router.call(following.start)
    following.update([ClientId(lab.client.mac)])
    yield following
    following.close()


@pytest.fixture
def noticed() -> list[nftables.InForce | None]:
    """The tables in force that the restorer has noticed as new."""
    return []


@pytest.fixture
def restorer(
    lab: Lab, known: KnownClients, reports: list[str], noticed: list[nftables.InForce | None]
) -> Iterator[Restorer]:
    def another() -> None:
        noticed.append(nftables.in_force())

    restorer = lab.router.call(Restorer, known, reports.append, another)
    lab.router.call(restorer.start)
    yield restorer
    restorer.close()


def reaches(lab: Lab, number: int) -> bool:
    return lab.clients[number].status(f"http://{ORIGIN4}/") == 200


def is_tracked(lab: Lab) -> bool | None:
    state = lab.router.call(nftables.in_force)
    return state.tracked if state else None


@pytest.mark.parametrize("how", ["flush ruleset", "delete table inet capport"])
def test_rules_that_somebody_takes_away_are_back_at_once_with_the_known_clients(
    lab: Lab, restorer: Restorer, reports: list[str], how: str
) -> None:
    before = lab.rules.outline("list table inet capport")
    assert reaches(lab, 0)
    for times in (1, 2):
        lab.rules.run(f"{how}\n")
        wait_for(lambda times=times: len(reports) == times)  # type: ignore[misc]
        assert lab.rules.outline("list table inet capport") == before
    assert reaches(lab, 0)
    assert not reaches(lab, 1)
    assert reports[0] == "another program removed table inet capport; capport put it back"


def macs(lab: Lab) -> dict[str, float]:
    """The MACs in the kernel's set, and how many seconds each has left."""
    return lab.elements("macs")


def test_what_changes_while_a_command_puts_the_rules_up_is_in_force_when_it_has(
    lab: Lab,
    store: MemoryStore,
    known: KnownClients,
    restorer: Restorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`capport router up` lists the known clients a moment before its rules are there."""
    revoked, prolonged, granted = "02:00:00:00:00:a1", "02:00:00:00:00:a2", "02:00:00:00:00:a3"
    known.update([grant(store, revoked, 3600), grant(store, prolonged, 60)])
    load = nftables.up

    def late(*given: Any, **named: Any) -> None:
        monkeypatch.setattr(nftables, "up", load)
        store.revoke(ClientId(revoked))
        changed = [grant(store, prolonged, 3600), grant(store, granted, 3600)]
        known.update([ClientId(revoked), *changed])
        load(*given, **named)

    monkeypatch.setattr(nftables, "up", late)
    with closing(
        lab.router.call(KnownClients, lambda: lab.policy, store, lab.neighbours)
    ) as command:
        lab.router.call(command.apply, (8080, 8082), only_replace=False)
    wait_for(lambda: macs(lab).keys() == {lab.client.mac, prolonged, granted})
    wait_for(lambda: macs(lab)[prolonged] > 600)


def test_the_garden_is_looked_up_at_once_where_the_table_is_another(
    lab: Lab, restorer: Restorer, noticed: list[nftables.InForce | None]
) -> None:
    assert noticed == []
    lab.rules.run("flush ruleset\n")
    wait_for(lambda: noticed)
    nftables.down(rules=lab.rules)
    nftables.up(lab.policy, rules=lab.rules)
    table = lab.router.call(nftables.in_force)
    wait_for(lambda: noticed[-1] == table)


def test_an_unexpected_exception_does_not_end_the_restorer(
    lab: Lab, restorer: Restorer, reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force, faults = nftables.in_force, [KeyError("elem"), KeyError("elem")]

    def faulty() -> nftables.InForce | None:
        if faults:
            raise faults.pop()
        return in_force()

    monkeypatch.setattr(nftables, "in_force", faulty)
    lab.rules.run("flush ruleset\n")
    wait_for(lambda: len(reports) == 1)
    assert nftables.show(rules=lab.rules) is not None


def test_a_change_of_the_sets_alone_is_no_reason_to_look_at_the_rules(
    lab: Lab,
    store: MemoryStore,
    known: KnownClients,
    restorer: Restorer,
    monkeypatch: pytest.MonkeyPatch,
    reports: list[str],
) -> None:
    """Reading all chains is slow, and each grant changes something."""
    in_force, seen = nftables.in_force, list[nftables.InForce | None]()

    def looked() -> nftables.InForce | None:
        seen.append(in_force())
        return seen[-1]

    monkeypatch.setattr(nftables, "in_force", looked)
    for number in range(20):
        known.update([grant(store, f"02:00:00:00:01:{number:02x}", 600)])
    assert len(macs(lab)) >= 20
    lab.rules.run("flush ruleset\n")  # what the kernel reports comes in order
    wait_for(lambda: bool(reports))
    assert seen[0] is None


def test_capport_router_down_is_meant(
    lab: Lab, restorer: Restorer, reports: list[str], noticed: list[nftables.InForce | None]
) -> None:
    nftables.down(rules=lab.rules)
    lab.rules.run("table inet later\ndelete table inet later\n")  # something else happens
    with pytest.raises(TimeoutError):
        wait_for(lambda: nftables.show(rules=lab.rules) is not None, 0.5)
    assert reports == []
    nftables.up(lab.policy, rules=lab.rules)
    wait_for(lambda: [one.proxy_ports for one in noticed[-1:] if one] == [(8080,)])
    lab.rules.run("flush ruleset\n")
    wait_for(lambda: nftables.show(rules=lab.rules) is not None)


def test_down_is_meant_however_soon_after_up_it_comes(
    lab: Lab, restorer: Restorer, reports: list[str]
) -> None:
    """The kernel's message about one change may be read after the next one."""
    for _ in range(30):
        nftables.up(lab.policy, rules=lab.rules)
        lab.rules.run("table inet later\ndelete table inet later\n")
        nftables.down(rules=lab.rules)
    with pytest.raises(TimeoutError):
        wait_for(lambda: nftables.show(rules=lab.rules) is not None, 0.5)
    assert reports == []


def test_without_rules_at_the_start_there_is_nothing_to_put_back(
    lab: Lab, known: KnownClients, reports: list[str]
) -> None:
    nftables.down(rules=lab.rules)
    restorer = lab.router.call(Restorer, known, reports.append)
    lab.router.call(restorer.start)
    try:
        lab.rules.run("flush ruleset\n")
        lab.rules.run("table inet later\ndelete table inet later\n")
        with pytest.raises(TimeoutError):
            wait_for(lambda: nftables.show(rules=lab.rules) is not None, 0.5)
    finally:
        restorer.close()


def test_known_clients_are_tracked_as_soon_as_another_table_may_go_by_it(
    lab: Lab, restorer: Restorer
) -> None:
    assert is_tracked(lab) is False
    lab.rules.run("table inet without_a_hook {\nchain nothing {\n}\n}\n")
    assert is_tracked(lab) is False
    lab.rules.run(FIREWALL)
    wait_for(lambda: is_tracked(lab) is True)
    assert reaches(lab, 0)
    assert not reaches(lab, 1)
    state = lab.router.call(nftables.in_force)
    assert state is not None
    assert state.proxy_ports == (8080, 8082)
    lab.rules.run("delete table inet firewall\n")
    wait_for(lambda: is_tracked(lab) is False)
    assert reaches(lab, 0)


def test_rules_that_are_taken_down_while_they_are_made_again_stay_down(
    lab: Lab, known: KnownClients, restorer: Restorer
) -> None:
    nftables.down(rules=lab.rules)
    lab.router.call(known.apply, (8080,), only_replace=True)
    assert nftables.show(rules=lab.rules) is None


def test_rules_that_cannot_be_put_back_are_tried_again(
    lab: Lab,
    known: KnownClients,
    restorer: Restorer,
    reports: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    apply, failures = known.apply, [RulesError("No buffer space available")] * 2

    def fails_twice(ports: tuple[int, ...], *, only_replace: bool) -> None:
        if failures:
            raise failures.pop()
        apply(ports, only_replace=only_replace)

    monkeypatch.setattr(known, "apply", fails_twice)
    lab.rules.run("flush ruleset\n")
    wait_for(lambda: len(reports) == 1)
    assert caplog.text.count("Cannot keep the router's rules loaded: No buffer space") == 1
    assert not reaches(lab, 1)
