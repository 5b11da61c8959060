"""A full set in the kernel: clients in it stay in, the log says it once, and nothing loops."""

import time
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import requires
from capport import clock
from capport.core.client import Address, ClientId, Mac, Way, parse_address
from capport.core.session import Session
from capport.linux import Neighbours, conntrack
from capport.linux.libnftables import Nftables, RulesError
from capport.policy import policy_file
from capport.router import known_clients, membership, nftables, ruleset
from capport.router.known_clients import KnownClients
from capport.stores import FullError
from capport.stores.memory import MemoryStore
from lab.namespaces import Namespace, namespaces, wait_for

pytestmark = pytest.mark.lab

POLICY = policy_file.parse(
    "login_url: https://login.example.net/\n"
    "router: {client_interface: lan0, origin_interface: wan0}\n",
    "policy.yaml",
    Path("/"),
)


class Nobody(Neighbours):
    """No neighbours: a session of a MAC holds for any address that comes with that MAC."""

    def addresses(self, mac: Mac) -> list[Address]:
        return []

    def items(self) -> list[tuple[Address, Mac]]:
        return []

    def way(self, address: Address) -> Way | None:
        return Way(None)


@pytest.fixture
def router() -> Iterator[Namespace]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft"))
    with namespaces("fullset") as (made,):
        yield made


@pytest.fixture
def rules(router: Namespace) -> Iterator[Nftables]:
    with closing(router.call(Nftables)) as it:
        yield it


def client(number: int) -> ClientId:
    return ClientId(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")


def grant(store: MemoryStore, *ids: ClientId) -> None:
    now = clock.now()
    for one in ids:
        store.put(Session(one, now, now + 3600, None, last_seen=now))


def inside(rules: Nftables) -> set[str]:
    return {one.text for one in membership.elements(rules, "macs")}


def test_a_client_in_a_full_set_stays_in_and_another_is_refused_until_there_is_a_place(
    router: Namespace, rules: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_clients, "MOST", 4)
    nftables.up(POLICY, rules=rules)
    store, reports = MemoryStore(), list[str]()
    grant(store, *map(client, (1, 2, 3)))
    with closing(
        router.call(KnownClients, lambda: POLICY, store, Nobody(), report=reports.append)
    ) as known:
        store.watch(known.changed)
        router.call(known.start)
        grant(store, client(4))
        known.update([client(4)])
        assert reports == []
        grant(store, *map(client, range(5, 1000)))
        for number in (5, 6):
            with pytest.raises(FullError, match="set macs of table inet capport is full"):
                known.update([client(number)])
        known.resync()
        assert inside(rules) == {client(number) for number in (1, 2, 3, 4)}
        assert reports == ["set macs of table inet capport is full: it has 4 clients, the maximum"]
        store.revoke(client(2))
        known.update([client(2), client(6)])  # at once: others of the thousand wait for a place too
        assert inside(rules) == {client(number) for number in (1, 3, 4, 6)}
        for number in range(7, 1000):
            store.revoke(client(number))
        store.revoke(client(5))
        known.resync()
        assert len(reports) == 1
        grant(store, client(7))
        known.resync()
        assert len(reports) == 2


def test_a_set_that_the_kernel_finds_full_causes_no_loop_and_keeps_no_revoked_client_in(
    router: Namespace, rules: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ruleset, "SET_SIZE", 64)
    monkeypatch.setattr(nftables, "TOGETHER", 4)
    monkeypatch.setattr(known_clients, "RETRY", 0.0)
    nftables.up(POLICY, rules=rules)
    store, compared, errors = MemoryStore(), list[tuple[float, float]](), list[str]()
    grant(store, *map(client, range(2000)))
    with closing(router.call(KnownClients, lambda: POLICY, store, Nobody())) as known:
        compare = known.resync

        def noted() -> None:
            compared.append((time.monotonic(), time.thread_time()))
            compare()

        monkeypatch.setattr(known, "resync", noted)
        monkeypatch.setattr(known_clients.logger, "error", lambda *said: errors.append(said[0]))
        monkeypatch.setattr(known_clients.logger, "exception", lambda *said: errors.append(said[0]))
        store.watch(known.changed)
        router.call(known.start)
        wait_for(lambda: len(compared) >= 6)
        (began, used), (ended, used_by_then) = compared[1], compared[5]  # the first is not its own
        assert used_by_then - used < (ended - began) / 5
        assert len(errors) == 1
        within = inside(rules)
        assert len(within) == 64
        gone = next(iter(within))
        store.revoke(ClientId(gone))
        wait_for(lambda: gone not in inside(rules))
        for number in range(40, 2000):
            store.revoke(client(number))
        wait_for(lambda: inside(rules) >= {client(n) for n in range(40)} - {gone})


def test_what_many_had_open_is_forgotten_in_one_reading_of_the_table(
    router: Namespace, rules: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    nftables.up(POLICY, rules=rules)
    readings: list[int] = []

    def forget(addresses: list[Address]) -> int:
        readings.append(len(addresses))
        return 0

    monkeypatch.setattr(conntrack, "forget", forget)
    store = MemoryStore()
    ids = [ClientId(f"10.0.{number >> 8}.{number & 255}") for number in range(1000)]
    grant(store, *ids)
    with closing(router.call(KnownClients, lambda: POLICY, store, Nobody())) as known:
        router.call(known.resync)
        for one in ids:
            store.revoke(one)
        router.call(known.resync)
        assert readings == [1000]
        grant(store, *ids)
        store.watch(known.changed)
        router.call(known.start)
        for one in ids:
            store.revoke(one)
        known.update(ids)
        wait_for(lambda: sum(readings) == 2000)
    assert len(readings) < 20


def test_what_the_kernel_refuses_of_one_does_not_leave_another_connected(
    router: Namespace, rules: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    nftables.up(POLICY, rules=rules)
    forgotten: set[Address] = set()
    monkeypatch.setattr(conntrack, "forget", lambda addresses: forgotten.update(addresses))
    store = MemoryStore()
    out, into = ClientId("10.0.0.1"), ClientId("10.0.0.2")
    grant(store, out)
    with closing(router.call(KnownClients, lambda: POLICY, store, Nobody())) as known:
        router.call(known.start)
        run = Nftables.run

        def refuses(its: Nftables, commands: str) -> str:
            if commands.startswith("add element") and into in commands:
                raise RulesError("Too many open files in system")
            return run(its, commands)

        monkeypatch.setattr(Nftables, "run", refuses)
        store.revoke(out)  # it does not watch the store, so its thread does not see this
        grant(store, into)
        with pytest.raises(RulesError, match="Too many open files"):
            known.update([into, out])
        wait_for(lambda: {str(address) for address in forgotten} == {out})


def test_an_error_that_nobody_thought_of_does_not_end_the_thread_that_disconnects(
    router: Namespace,
    rules: Nftables,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nftables.up(POLICY, rules=rules)
    tried: list[Collection[Address]] = []

    def fails(addresses: Collection[Address]) -> int:
        tried.append(addresses)
        raise KeyError("an unforeseen fault")

    monkeypatch.setattr(conntrack, "forget", fails)
    store = MemoryStore()
    ids = [ClientId(f"10.0.0.{number}") for number in (1, 2)]
    grant(store, *ids)
    with closing(router.call(KnownClients, lambda: POLICY, store, Nobody())) as known:
        router.call(known.start)
        for one in ids:
            store.revoke(one)
            known.update([one])
            wait_for(lambda one=one: {parse_address(one)} in tried)  # type: ignore[misc]
    assert "Cannot remove 1 addresses from conntrack: 'an unforeseen fault'" in caplog.text
