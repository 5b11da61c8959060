"""Two routers and a Redis that fails in every way: which clients are known where, what is lost."""

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import requires
from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores import FullError, SessionStore, StoreError
from capport.stores.opening import open_store
from capport.stores.redis import redis_link, redis_store
from capport.stores.redis.fleet_record import (
    MANY,
    NOTHING,
    ROUTERS,
    SKEW,
    FleetRecord,
    Grant,
    Revocation,
    dump,
)
from capport.stores.redis.fleet_time import FleetTime
from capport.stores.redis.redis_client import SECONDS
from capport.stores.redis.redis_link import CHANGES, KEY, LEASE
from capport.stores.redis.redis_store import RedisStore
from capport.stores.redis.router_marks import RouterMarks
from capport.stores.redis_url import RedisUrl
from capport.stores.replica import Row, pack
from capport.stores.sqlite.store import SqliteStore
from conftest import SOON
from lab.namespaces import namespaces
from stores.contract import ADDRESS, MAC, OTHER, session, until
from stores.redis_server import AHEAD, Fleet, RedisServer, SlowLink, server
from stores.router_process import RouterProcess
from suspension import suspend

pytestmark = requires.tool("redis-server")

Z = ClientId("192.0.2.99")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with server(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def fleet(redis: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, redis, routers=3)
    yield fleet
    redis.thaw_or_start()
    fleet.close()


@pytest.fixture
def two(fleet: Fleet) -> tuple[RedisStore, RedisStore]:
    return fleet.open(0), fleet.open(1)


def works(*stores: RedisStore) -> None:
    for store in stores:
        until(lambda store=store: store.fault is None, "the end of a fault")  # type: ignore[misc]


def fails(*stores: RedisStore) -> None:
    for store in stores:
        until(lambda store=store: store.fault is not None, "a fault")  # type: ignore[misc]


class Known:
    """Whether a client is known at a router now, or soon."""

    def __init__(self, fleet: Fleet) -> None:
        self._time = fleet.time

    def now(self, store: RedisStore, client: ClientId) -> bool:
        return store.find((client,), self._time.now) is not None

    def soon(self, client: ClientId, *stores: RedisStore) -> None:
        until(lambda: all(self.now(store, client) for store in stores), f"{client} known")

    def not_soon(self, client: ClientId, *stores: RedisStore) -> None:
        until(lambda: not any(self.now(store, client) for store in stores), f"{client} unknown")


@pytest.fixture
def known(fleet: Fleet) -> Known:
    return Known(fleet)


# --- Redis is away ---


def kill(redis: RedisServer) -> Callable[[], object]:
    redis.kill()
    return redis.start


def freeze(redis: RedisServer) -> Callable[[], object]:
    redis.freeze()
    return redis.thaw


def fill(redis: RedisServer) -> Callable[[], object]:
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    return lambda: redis.ask("CONFIG", "SET", "maxmemory", "0")


def make_read_only(redis: RedisServer) -> Callable[[], object]:
    redis.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
    redis.ask("REPLICAOF", "127.0.0.1", "1")
    return lambda: redis.ask("REPLICAOF", "NO", "ONE")


BREAKS = [kill, freeze, fill, make_read_only]


@pytest.mark.parametrize("break_it", BREAKS)
def test_without_redis_known_clients_stay_known_and_what_changed_travels_afterwards(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    break_it: Callable[[RedisServer], Callable[[], object]],
) -> None:
    one, other = two
    for client in (MAC, OTHER):
        one.put(session(client))
        known.soon(client, other)
    mend = break_it(fleet.server)
    fails(one, other)
    one.put(session(ADDRESS))
    assert one.fault, "a grant that holds on one router alone says so"
    assert known.now(one, ADDRESS)
    assert not known.now(other, ADDRESS)
    other.revoke(OTHER)
    assert other.fault, "a revocation of which the others do not know says so"
    assert not known.now(other, OTHER)
    fleet.time.now += LEASE - 1
    assert known.now(other, MAC)
    fleet.time.now += 2
    assert known.now(one, MAC), "it is known where it was granted"
    assert not known.now(other, MAC), "the lease is over"
    mend()
    works(one, other)
    known.soon(MAC, other)
    known.soon(ADDRESS, one, other)
    known.not_soon(OTHER, one, other)


@pytest.mark.parametrize("break_it", BREAKS)
def test_no_decision_waits_for_redis(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    break_it: Callable[[RedisServer], Callable[[], object]],
) -> None:
    one, other = two
    one.put(session())
    mend = break_it(fleet.server)
    asked = threading.Event()

    def ask() -> None:
        for _ in range(1000):
            for store in (one, other):
                store.find((OTHER, MAC), 1000.0)
                store.touch(MAC, 1000.0)
                list(store.sessions())
        asked.set()

    threading.Thread(target=ask, daemon=True).start()
    assert asked.wait(30)
    mend()


def test_a_router_starts_without_redis_and_knows_the_clients_that_it_granted(
    fleet: Fleet, known: Known
) -> None:
    one = fleet.open(0)
    one.put(session())
    one.revoke(OTHER)
    one.close()
    fleet.server.kill()
    again = fleet.open(0)
    assert again.fault
    assert known.now(again, MAC)
    again.put(session(OTHER))
    fleet.server.start()
    other = fleet.open(1)
    known.soon(MAC, other)
    known.soon(OTHER, other)


# --- Redis comes back, and is not what it was ---


def test_what_redis_has_forgotten_every_router_puts_back(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(MAC))
    one.put(session(Z))
    other.put(session(ADDRESS))
    known.soon(Z, other)
    known.soon(MAC, other)
    other.revoke(Z)
    known.not_soon(Z, one)
    one.close()  # what this one granted, the other one puts back
    fleet.server.kill()
    fails(other)
    fleet.server.start()
    works(other)
    third = fleet.open(2)
    known.soon(MAC, third)
    known.soon(ADDRESS, third)
    again = fleet.open(0)
    assert not any(known.now(store, Z) for store in (other, third, again))


def test_a_revocation_is_remembered_by_each_router_that_has_heard_of_it(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(MAC))
    known.soon(MAC, other)
    other.revoke(MAC)
    known.not_soon(MAC, one)
    for store in (other, one):
        store.close()
    fleet.server.ask("FLUSHALL")
    again = fleet.open(0)
    again.put(session(MAC))  # it stands against the revocation, which the other one puts back
    back = fleet.open(1)
    known.soon(MAC, back)
    assert known.now(again, MAC)


def test_an_emptied_redis_is_noticed_while_it_runs(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(MAC))
    known.soon(MAC, other)
    fleet.server.ask("FLUSHALL")
    until(lambda: fleet.server.ask("EXISTS", KEY + MAC) == b":1", "the record, put back")
    assert known.now(one, MAC)
    assert known.now(other, MAC)


def test_a_redis_that_came_back_older_undoes_no_revocation_and_loses_no_grant(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(Z))
    known.soon(Z, other)
    fleet.server.ask("SAVE")
    other.revoke(Z)
    known.not_soon(Z, one)
    one.put(session(MAC))
    known.soon(MAC, other)
    fleet.server.kill()
    fails(one, other)
    fleet.server.start()  # with what was saved
    works(one, other)
    third = fleet.open(2)
    known.soon(MAC, third)
    known.not_soon(Z, third)
    assert not known.now(one, Z)
    assert not known.now(other, Z)


@requires.tool("redis-sentinel")
def test_a_failover_by_sentinel_that_loses_the_last_writes_loses_nothing(
    tmp_path: Path,
) -> None:
    conf = tmp_path / "sentinel.conf"
    with server(tmp_path / "primary") as primary, server(tmp_path / "replica") as replica:
        replica.ask("REPLICAOF", "127.0.0.1", str(primary.port))
        until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
        conf.write_text(
            f"sentinel monitor fleet 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds fleet 500\nsentinel failover-timeout fleet 5000\n"
        )
        watching = RedisServer(tmp_path / "sentinel", sentinel=conf)
        try:
            fleet = Fleet(tmp_path, watching)
            known = Known(fleet)
            one, other = fleet.open(0), fleet.open(1)
            works(one, other)
            one.put(session(Z))
            known.soon(Z, other)
            until(lambda: b"slaves=1" in watching.ask("INFO", "sentinel"), "a replica")
            replica.freeze()
            primary.ask("CLIENT", "KILL", "TYPE", "replica")
            one.put(session(MAC))  # acknowledged, and never at the replica
            known.soon(MAC, other)
            other.revoke(Z)
            known.not_soon(Z, one)
            primary.kill()
            replica.thaw()
            until(lambda: replica.answers(b"*3", "ROLE"), "a new primary")
            until(lambda: replica.answers(b":1", "EXISTS", KEY + MAC), "the grant, put back")
            works(one, other)
            fleet.routers = 3
            third = fleet.open(2)
            known.soon(MAC, third)
            known.not_soon(Z, third)
            assert known.now(one, MAC)
            assert known.now(other, MAC)
            assert not known.now(one, Z)
            fleet.close()
        finally:
            watching.kill()


def test_after_a_split_both_sides_agree_and_the_revocation_wins(tmp_path: Path) -> None:
    with server(tmp_path / "left") as left, server(tmp_path / "right") as right:
        mine, yours = left.url.places[0], right.url.places[0]
        fleet = Fleet(tmp_path, left)
        known = Known(fleet)
        one = fleet.open(0, url=RedisUrl((mine, yours)))
        one.put(session(Z))
        other = fleet.open(1, url=RedisUrl((yours, mine)))  # its Redis knows nothing of the other
        other.revoke(Z)
        other.put(session(ADDRESS))
        one.put(session(Z, expires=9000.0))
        assert known.now(one, Z)
        right.kill()
        known.soon(ADDRESS, one)
        known.not_soon(Z, one, other)
        other.put(session(Z))  # this one has seen the revocation
        known.soon(Z, one)
        fleet.close()


def test_a_shorter_grant_that_is_over_ends_the_longer_one_that_redis_still_has(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(expires=5000.0))
    known.soon(MAC, other)
    one.close()
    fleet.server.freeze()
    fails(other)
    other.put(session(expires=1010.0))  # it does not travel
    other.close()
    fleet.server.thaw()
    fleet.time.now += 20
    stores = [fleet.open(number) for number in range(3)]
    known.not_soon(MAC, *stores)


def test_after_a_gap_in_the_stream_everything_is_read_again(
    fleet: Fleet, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fleet.open(0)
    one.put(session(MAC))
    monkeypatch.setattr(redis_link, "RETRY", 1.0)
    fleet.server.ask("CLIENT", "KILL", "TYPE", "normal")
    fails(one)
    now = fleet.time.now + AHEAD
    grant = Grant(9, "f" * 16, now, now + 3600, None, now, 1.7e9, "", "", "")
    for client in (Z, ADDRESS):
        text = dump(client, FleetRecord({}, grant))
        fleet.server.ask("SET", KEY + client, text)
        fleet.server.ask("XADD", CHANGES, "MAXLEN", "1", "*", "r", text)
    known.soon(ADDRESS, one)
    known.soon(Z, one)


# --- two routers at once ---


def test_of_a_grant_and_a_revocation_at_once_every_router_has_the_same_answer(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    clients = [ClientId(f"192.0.2.{number}") for number in range(40)]
    for client in clients:
        one.put(session(client))
    known.soon(clients[-1], other)
    start = threading.Barrier(2)

    def grant() -> None:
        for client in clients:
            start.wait()
            one.put(session(client, expires=8000.0))

    def revoke() -> None:
        for client in clients:
            start.wait()
            other.revoke(client)

    threads = [threading.Thread(target=work) for work in (grant, revoke)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def there(store: RedisStore) -> set[ClientId]:
        return {client for client in clients if known.now(store, client)}

    until(lambda: there(one) == there(other), "one answer")
    third = fleet.open(2)
    until(lambda: there(third) == there(one), "the same in Redis")


def test_a_grant_that_did_not_know_of_a_revocation_falls_to_it(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    fleet.server.freeze()
    fails(one, other)
    one.revoke(MAC)  # a client that this router has never heard of
    other.put(session(MAC))
    assert known.now(other, MAC)
    fleet.server.thaw()
    works(one, other)
    known.not_soon(MAC, one, other)
    other.put(session(MAC))
    known.soon(MAC, one, other)


@pytest.mark.parametrize("where", [0, 1], ids=["where it was granted", "elsewhere"])
def test_a_packet_at_any_router_keeps_an_idle_session_open_at_every_router(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known, where: int
) -> None:
    one, other = two
    one.put(session(MAC, idle=60.0))
    known.soon(MAC, other)
    for _ in range(3):
        fleet.time.now += 40.0
        known.soon(MAC, other)
        two[where].touch(MAC, fleet.time.now)
        fleet.time.now += 15.0  # touches travel after a quarter of the idle time
        later = fleet.time.now + 30.0
        until(lambda at=later: all(store.find((MAC,), at) for store in two), "the touch")  # type: ignore[misc]
    fleet.time.now += 50.0
    assert not known.now(one, MAC)
    known.not_soon(MAC, other)


def test_the_most_sessions_are_those_of_the_whole_fleet(
    two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(MAC), most=1)
    known.soon(MAC, other)
    with pytest.raises(FullError):
        other.put(session(ADDRESS), most=1)
    other.put(session(MAC), most=1)
    known.soon(MAC, one)


def test_a_client_that_is_granted_again_elsewhere_is_that_routers_from_then_on(
    two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    one.put(session(MAC, name="one"))
    known.soon(MAC, other)
    other.put(session(MAC, name="other", expires=1010.0))
    until(lambda: [s.name for s in one.sessions()] == ["other"], "the other's session")
    assert one.find((MAC,), 1000.0).lease < float("inf")  # type: ignore[union-attr]
    assert other.find((MAC,), 1000.0).lease == float("inf")  # type: ignore[union-attr]


def test_a_record_is_never_sent_with_the_order_of_one_grant_and_the_times_of_another(
    two: tuple[RedisStore, RedisStore], known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    other.put(session(MAC, expires=9000.0))
    known.soon(MAC, one)
    between, go_on = threading.Event(), threading.Event()

    def slow(row: Row) -> bytes:
        between.set()
        go_on.wait()
        return pack(row)

    monkeypatch.setattr(redis_store, "pack", slow)
    other.put(session(MAC, expires=1500.0))
    assert between.wait(SOON)
    read: list[FleetRecord] = []
    reader = threading.Thread(target=lambda: read.append(one.records([MAC])[MAC]))
    reader.start()
    reader.join(0.2)
    go_on.set()
    reader.join()
    assert read == [other.records([MAC])[MAC]]
    assert read[0].grant
    assert read[0].grant.expires == AHEAD + 1500.0


def test_what_is_over_is_forgotten_a_few_clients_at_a_time(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_store, "SOME", 2)
    one, other = two
    lasting = ClientId("192.0.2.1")
    for client in (MAC, ADDRESS, OTHER, Z):
        other.put(session(client))
    other.put(session(lasting, expires=1e6))
    known.soon(lasting, one)
    other.revoke(Z)
    known.not_soon(Z, one)
    for _ in range(2):  # the first one of them finds the revocation still in force
        fleet.time.now += redis_store.REMEMBERED
        until(lambda: [s.client for s in one.sessions()] == [lasting], "sessions, forgotten")
    until(lambda: one.records([Z]) == {Z: NOTHING}, "a revocation, forgotten")
    known.soon(lasting, one)


# --- commands beside the portal ---


def test_a_command_grants_and_revokes_without_reading_everything(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    other.put(session(ADDRESS))
    known.soon(ADDRESS, one)
    command = fleet.open(0, about=())
    assert list(command.sessions()) == []
    command.put(session(MAC))
    known.soon(MAC, one, other)
    assert command.revoke(ADDRESS)
    known.not_soon(ADDRESS, one, other)
    command.put(session(ADDRESS))  # it stands against the revocation that it has just made
    known.soon(ADDRESS, one, other)


def test_what_a_command_does_while_redis_is_away_is_in_force_at_once_and_travels_later(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    other.put(session(ADDRESS))
    known.soon(ADDRESS, one)
    fleet.server.freeze()
    fails(one, other)
    command = fleet.open(0, about=())
    command.put(session(MAC))
    command.revoke(ADDRESS)
    command.close()
    known.soon(MAC, one)
    known.not_soon(ADDRESS, one)
    fleet.server.thaw()
    works(one, other)
    known.soon(MAC, other)
    known.not_soon(ADDRESS, one, other)


def test_a_grant_of_which_the_portal_has_read_one_file_alone_lasts_as_long_everywhere(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command writes to fleet.db, and then to the file of the sessions."""
    one, other = two
    one.put(session(MAC, expires=1500.0))
    known.soon(MAC, other)
    command = fleet.open(0, about=())
    go_on, put = threading.Event(), SqliteStore.put

    def late(own: SqliteStore, granted: Session, *, most: int | None) -> bool:
        assert go_on.wait(SOON)
        return put(own, granted, most=most)

    def order(store: RedisStore) -> int:
        grant = store.records([MAC])[MAC].grant
        return grant.order if grant else 0

    before = order(other)
    monkeypatch.setattr(SqliteStore, "put", late)
    granting = threading.Thread(target=command.put, args=[session(MAC, expires=9000.0)])
    granting.start()
    until(lambda: order(other) > before, "what the portal has read")
    go_on.set()
    granting.join()
    for store in (one, other):
        until(lambda store=store: _expires(store) == 9000.0, "the times of the grant")  # type: ignore[misc]


def _expires(store: RedisStore) -> float:
    found = store.find((MAC,), 1000.0)
    return found.expires if found else 0.0


@pytest.mark.parametrize("is_new", [False, True], ids=["again", "for the first time"])
def test_what_a_command_granted_outlives_a_revocation_that_the_portal_reads_later(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
    is_new: bool,
) -> None:
    one, other = two
    if not is_new:
        one.put(session(MAC))
        known.soon(MAC, other)
    go_on, merge = threading.Event(), one.merge

    def late(found: Sequence[tuple[ClientId, FleetRecord]]) -> list[bool]:
        assert go_on.wait(SOON)
        return merge(found)

    monkeypatch.setattr(one, "merge", late)
    other.revoke(MAC)
    command = fleet.open(0, about=())  # it has read the revocation
    fleet.time.now += 1
    command.put(session(MAC, now=fleet.time.now))
    until(lambda: any(s.granted == fleet.time.now for s in one.sessions()), "the file, read")
    go_on.set()
    other.put(session(ADDRESS))
    known.soon(ADDRESS, one)
    known.soon(MAC, one, other)
    assert fleet.open(2).find((MAC,), fleet.time.now)


# --- what is in Redis does not fit ---


@pytest.mark.parametrize("text", ["", "garbage", '{"v":2}', '{"v":1,"client":"x"}'])
def test_what_does_not_fit_is_refused_and_reported_and_harms_nobody(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = two
    one.put(session(MAC))
    known.soon(MAC, other)
    fleet.server.ask("SET", KEY + MAC, text)
    fleet.server.ask("SET", f"{KEY}nobody", text)
    fleet.server.ask("XADD", CHANGES, "*", "r", text)
    fleet.server.ask("XADD", CHANGES, "*", "something", "else")
    one.put(session(ADDRESS))
    known.soon(ADDRESS, other)
    assert known.now(other, MAC)
    assert known.now(one, MAC)
    assert "refused a record" in caplog.text
    third = fleet.open(2)
    known.soon(ADDRESS, third)


def test_a_key_of_another_kind_is_reported_and_no_router_stops(fleet: Fleet, known: Known) -> None:
    one = fleet.open(0)
    one.put(session(MAC))
    fleet.server.ask("DEL", CHANGES)
    fleet.server.ask("SET", CHANGES, "text")
    until(lambda: "WRONGTYPE" in (one.fault or ""), "a fault")
    assert known.now(one, MAC)
    fleet.server.ask("DEL", CHANGES)
    works(one)


def by_many(first: int, until: float) -> FleetRecord:
    """A record of as many revocations as one may have."""
    return FleetRecord({f"{n:016x}": Revocation(7, until) for n in range(first, first + ROUTERS)})


def test_revocations_by_too_many_routers_hold_the_client_and_stop_no_router(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = two
    one.put(session(MAC))
    known.soon(MAC, other)
    ends = fleet.time.now + AHEAD + 50_000
    for record in (by_many(0, ends), by_many(9, ends)):
        fleet.server.ask("XADD", CHANGES, "*", "r", dump(MAC, record))
    known.not_soon(MAC, one, other)
    for store in (one, other):
        until(lambda store=store: {*store.records([MAC])[MAC].revoked} == {MANY}, "one for all")  # type: ignore[misc]
    with pytest.raises(StoreError, match="more than 256 routers have revoked it"):
        one.put(session(MAC))
    one.revoke(MAC)
    one.close()
    one = fleet.open(0)
    one.put(session(ADDRESS))
    known.soon(ADDRESS, one, other)
    assert not known.now(one, MAC)
    assert "damaged" not in caplog.text
    fleet.time.now += 2 * redis_store.REMEMBERED
    one.put(session(MAC, now=fleet.time.now))
    known.soon(MAC, one, other)


# --- this router's file does not fit ---


def damage(client: ClientId, folder: Path, text: str | bytes) -> None:
    with contextlib.closing(sqlite3.connect(folder / "fleet.db")) as db:
        db.execute("UPDATE marks SET record = CAST(? AS TEXT) WHERE client = ?", (text, client))
        db.commit()


TEXTS = ["", "garbage", b"\xff", dump(ADDRESS, NOTHING)]


@pytest.mark.parametrize("text", TEXTS)
def test_a_row_that_cannot_be_read_is_reported_once_and_written_again(
    fleet: Fleet, known: Known, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    one, other = fleet.open(0), fleet.open(1)
    for client in (MAC, OTHER):
        one.put(session(client))
    known.soon(MAC, other)
    one.revoke(OTHER)
    one.close()
    for client in (MAC, OTHER):
        damage(client, fleet.folder / "router0", text)
    one = fleet.open(0)
    known.soon(MAC, one, other)
    assert not known.now(one, OTHER)
    works(one)
    one.tick()
    one.close()
    assert caplog.text.count("is damaged") == 2
    third = fleet.open(0)
    assert third.records([OTHER])[OTHER].revoked, "as Redis knew"
    assert caplog.text.count("is damaged") == 2


@pytest.mark.parametrize("text", TEXTS)
def test_a_command_revokes_although_its_row_cannot_be_read(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known, text: str | bytes
) -> None:
    one, other = two
    one.put(session(MAC))
    known.soon(MAC, other)
    damage(MAC, fleet.folder / "router0", text)
    assert fleet.open(0, about=()).revoke(MAC)
    known.not_soon(MAC, one, other)


def test_a_store_that_cannot_be_opened_leaves_nothing_open(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RouterMarks) -> None:
        raise StoreError("unreadable")

    before = {*threading.enumerate()}
    monkeypatch.setattr(RouterMarks, "changed", fail)
    with pytest.raises(StoreError, match="unreadable"):
        fleet.open(0)
    assert {*threading.enumerate()} <= before
    held = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [path for path in held if path.is_relative_to(fleet.folder / "router0")]


def test_a_store_started_closed_waits_for_a_usable_file_and_keeps_revocations(
    redis: RedisServer, tmp_path: Path
) -> None:
    def known(store: SessionStore, client: ClientId) -> bool:
        return store.find((client,), clock.now()) is not None

    urls = [redis.url_of_router(tmp_path / name) for name in ("one", "other")]
    with contextlib.ExitStack() as stack:
        one, other = (open_store(url) for url in urls)
        stack.callback(other.close)
        for client in (MAC, ADDRESS):
            one.put(session(client, now=clock.now()))
        other.put(session(OTHER, now=clock.now()))
        until(lambda: known(one, OTHER) and known(other, MAC))
        one.close()
        path, backup = tmp_path / "one" / "fleet.db", tmp_path / "one" / "backup"
        path.rename(backup)
        path.write_bytes(b"fleet\n" * 1000)
        with pytest.raises(StoreError, match=r"fleet\.db: damaged"):
            open_store(urls[0])
        closed = open_store(urls[0], start_closed=True)
        stack.callback(closed.close)
        heard: list[ClientId] = []
        closed.watch(heard.append)
        assert "damaged" in (closed.fault or "")
        assert not any(known(closed, client) for client in (MAC, OTHER, ADDRESS))
        with pytest.raises(StoreError, match="damaged"):
            closed.put(session(MAC, now=clock.now()))
        for client in (MAC, OTHER):
            with pytest.raises(StoreError, match="no other router hears of it"):
                closed.revoke(client)
        backup.replace(path)
        until(lambda: known(closed, ADDRESS), "the backup, used")
        assert closed.fault is None
        assert not known(closed, MAC)
        until(lambda: not known(other, MAC) and not known(other, OTHER), "the revocations")
        until(lambda: ADDRESS in heard, "the watcher, called")
        closed.put(session(MAC, now=clock.now()))
        until(lambda: known(other, MAC))
        assert closed.revoke(MAC)
        until(lambda: not known(other, MAC))


def test_a_grant_that_failed_on_the_disk_counts_at_no_process(
    fleet: Fleet, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise StoreError("full")

    one, command = fleet.open(0), fleet.open(0, about=())
    with monkeypatch.context() as failing:
        failing.setattr(SqliteStore, "put", fail)
        with pytest.raises(StoreError, match="full"):
            command.put(session(MAC))
    one.tick()
    assert one.summary() == {"own": 0, "known": 0}
    command.put(session(MAC))
    known.soon(MAC, one)
    until(lambda: one.summary() == {"own": 1, "known": 1}, "the session, counted")


# --- revoking ---


def test_a_revocation_takes_effect_here_before_redis_answers(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = two
    one.put(session(MAC))
    other.put(session(OTHER))
    known.soon(MAC, other)
    known.soon(OTHER, one)
    called: list[ClientId] = []
    one.watch(called.append)
    asked: list[ClientId] = []
    fetch = redis_link.RedisLink.fetch

    def ask(link: redis_link.RedisLink, client: ClientId, seconds: float) -> object:
        assert not known.now(one, client)
        until(lambda: client in called, "the watchers, called")
        asked.append(client)
        return fetch(link, client, seconds)

    monkeypatch.setattr(redis_link.RedisLink, "fetch", ask)
    for client in (MAC, OTHER):
        one.revoke(client)
    assert asked == [MAC, OTHER]
    known.not_soon(MAC, other)
    known.not_soon(OTHER, other)


LAST = (1 << 53) - 1  # after this number there is none


@pytest.mark.parametrize("last", [1 << 52, LAST])
def test_a_revocation_is_newer_than_each_that_redis_knows_of_this_router(
    fleet: Fleet,
    two: tuple[RedisStore, RedisStore],
    known: Known,
    last: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = two
    for store in two:
        monkeypatch.setattr(store, "tick", lambda: None)  # it could send something meanwhile
    monkeypatch.setattr(redis_store, "TAKEN_SECONDS", SOON)
    works(one, other)
    other.put(session(MAC))
    known.soon(MAC, one)
    record = other.records([MAC])[MAC]
    assert record.grant
    other.close()  # it may send the record once more, when it reads its own file
    revoked = {one.router: Revocation(last, record.grant.expires)}
    fleet.server.ask("SET", KEY + MAC, dump(MAC, FleetRecord(revoked, record.grant)))
    assert one.revoke(MAC)
    after = one.records([MAC])[MAC].revoked
    assert after == (
        {MANY: Revocation(LAST, 0.0)} if last == LAST else {one.router: Revocation(last + 1, 0.0)}
    )
    known.not_soon(MAC, one, fleet.open(1))


# --- clocks ---


def test_the_clock_of_redis_is_measured_as_exactly_as_it_answers() -> None:
    now = 100.0
    time = FleetTime(lambda: now, lambda: 5000.0)
    assert time.now() == 5000.0  # the wall clock, until Redis has answered
    assert time.measure(99.0, 101.0, 7000.0) == 0.0
    assert time.now() == 7000.0
    assert time.skew == -2000.0
    assert time.measure(99.0, 101.0, 7000.9) == 0.0
    assert time.now() == 7000.0, "closer than the answer was quick"
    assert time.measure(99.9, 100.1, 7001.0) == 0.0
    assert time.now() == 7001.0
    assert time.measure(99.9, 100.1, 7010.0) == pytest.approx(9.0)
    assert time.now() == 7010.0


def test_a_clock_of_redis_that_jumps_moves_no_session_and_is_reported(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    class Jumping(FleetTime):
        by = 0.0

        def measure(self, sent: float, answered: float, theirs: float) -> float:
            return super().measure(sent, answered, theirs + self.by)

    fleet = Fleet(tmp_path, redis)
    one, other = (fleet.open(n, fleet_time=Jumping(fleet.time.clock)) for n in (0, 1))
    one.put(session(MAC))
    until(lambda: other.find((MAC,), 1000.0) is not None)
    before = other.find((MAC,), 1000.0)
    Jumping.by = 50 * SKEW
    until(lambda: "its clock has jumped by 100" in caplog.text, "a report")
    after = other.find((MAC,), 1000.0)
    assert before
    assert after
    assert after.expires == pytest.approx(before.expires, abs=SKEW)
    fleet.close()


# --- routers that die ---


def test_what_a_killed_router_acknowledged_is_known_elsewhere_and_at_its_next_start(
    redis: RedisServer, tmp_path: Path
) -> None:
    url = str(redis.url)
    one, other = (RouterProcess(url, tmp_path / name) for name in ("one", "other"))
    try:
        acknowledged = []
        for number in range(200):
            client = f"192.0.2.{number}"
            one.tell("put", client)
            if number == 150:
                os.kill(one.process.pid, signal.SIGKILL)
            if (said := one.said()) != "taken":
                assert not said
                break
            acknowledged.append(client)
        assert acknowledged
        for client in acknowledged:
            until(lambda client=client: other("find", client) == "known", client)  # type: ignore[misc]
        redis.kill()
        one.close()
        one = RouterProcess(url, tmp_path / "one")
        assert {one("find", client) for client in acknowledged} == {"known"}
    finally:
        one.close()
        other.close()


def test_a_router_that_was_frozen_lets_nobody_in_before_it_has_read_what_it_missed(
    redis: RedisServer, tmp_path: Path
) -> None:
    url = str(redis.url)
    one = RouterProcess(url, tmp_path / "one")
    other = RouterProcess(url, tmp_path / "other", lease=1.0)
    try:
        assert one("put", MAC) == "taken"
        until(lambda: other("find", MAC) == "known")
        suspend(other.process.pid)
        assert one("revoke", MAC) == "taken"
        threading.Event().wait(1.2)  # longer than the lease
        other.tell("find", MAC)
        other.process.send_signal(signal.SIGCONT)
        assert other.said() == "unknown"
        assert one("put", ADDRESS) == "taken"
        until(lambda: other("find", ADDRESS) == "known")
        assert other("find", MAC) == "unknown"
    finally:
        one.close()
        other.close()


def test_a_router_that_comes_back_after_an_hour_undoes_no_revocation(
    fleet: Fleet, two: tuple[RedisStore, RedisStore], known: Known
) -> None:
    one, other = two
    for client in (MAC, Z):
        one.put(session(client, expires=9000.0))
        known.soon(client, other)
    one.close()
    other.revoke(Z)
    fleet.server.ask("FLUSHALL")  # and nobody but the router that revoked it remembers
    fleet.time.now += 3600
    known.soon(MAC, other)
    back = fleet.open(0)
    known.soon(MAC, back, other)
    known.not_soon(Z, back, other)


# --- what an operator should know ---


def test_a_router_whose_files_are_a_copy_of_anothers_is_reported(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither router can tell its own grants from those of the other."""
    monkeypatch.setattr(redis_link, "BEAT", 0.01)
    fleet.open(0).close()
    shutil.copytree(fleet.folder / "router0", fleet.folder / "router1")
    looks, read = list[bytes | None](), redis_link.sign_of_life

    def noted(sign: bytes | None) -> dict[str, Any]:
        looks.append(sign)
        return read(sign)

    monkeypatch.setattr(redis_link, "sign_of_life", noted)
    works(fleet.open(0), fleet.open(0))  # the portal, and `capport login` beside it
    until(lambda: len(looks) > 10, "signs of life")
    assert "same id" not in caplog.text
    monkeypatch.setattr(clock, "boot_id", lambda: "another machine's")
    works(fleet.open(1))
    until(lambda: "has the same id as this one" in caplog.text, "a report")


def test_a_redis_that_may_forget_records_when_it_is_full_is_reported(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    works(fleet.open(0))
    assert "maxmemory-policy" not in caplog.text  # it has no limit
    fleet.server.ask("CONFIG", "SET", "maxmemory", "1gb")
    works(fleet.open(1))
    assert "maxmemory-policy is allkeys-lru" in caplog.text


# --- the network is slow, or cut ---


def test_a_redis_that_takes_its_time_only_delays_what_waits_for_it(
    fleet: Fleet, known: Known
) -> None:
    link = SlowLink(fleet.server)
    one, other = fleet.open(0, url=link.url), fleet.open(1)
    works(one, other)
    link.delay = 0.2
    one.put(session(MAC))
    assert one.fault is None, "it has taken it"
    known.soon(MAC, other)
    other.put(session(ADDRESS))
    known.soon(ADDRESS, one)
    for _ in range(3):
        fleet.time.now += LEASE - 1
        lease = fleet.time.now + LEASE
        until(lambda lease=lease: leases(one) == {lease}, "the lease, renewed")  # type: ignore[misc]
    one.revoke(ADDRESS)
    assert one.fault is None
    known.not_soon(ADDRESS, one, other)
    link.close()


def leases(store: RedisStore) -> set[float]:
    """Until when sessions of other routers are in force."""
    return {session.lease for session in store.sessions()} - {float("inf")}


@requires.tool("nft")
@requires.namespaces()
@pytest.mark.xdist_group("fleet-network")
@pytest.mark.parametrize("fault", ["input", "output", "input output", "slow"])
def test_a_network_that_is_slow_or_cut_one_way_or_both_is_as_a_redis_that_is_down(
    tmp_path: Path, fault: str
) -> None:
    with contextlib.ExitStack() as closing:
        middle, left, right = closing.enter_context(namespaces("redis", "left", "right"))
        middle.ip("link add br0 type bridge", "link set br0 up", "addr add 10.99.0.1/24 dev br0")
        for number, router in enumerate((left, right), 2):
            middle.ip(
                f"link add r{number} type veth peer name eth0 netns {router.name}",
                f"link set r{number} master br0 up",
            )
            router.ip("link set eth0 up", f"addr add 10.99.0.{number}/24 dev eth0")
        running = middle.call(
            RedisServer, tmp_path / "redis", "--protected-mode", "no", bind="10.99.0.1"
        )
        closing.callback(running.kill)
        link = middle.call(SlowLink, running)
        closing.callback(link.close)
        fleet = Fleet(tmp_path, running)
        closing.callback(fleet.close)
        known = Known(fleet)
        one, other = left.call(fleet.open, 0), right.call(fleet.open, 1, url=link.url)
        works(one, other)
        one.put(session(MAC))
        known.soon(MAC, other)
        other.put(session(Z))
        known.soon(Z, one)
        if fault == "slow":
            link.delay = 1.5 * SECONDS
        else:
            rules = "".join(
                f"add chain inet cut {h} {{ type filter hook {h} priority 0; policy drop; }}\n"
                for h in fault.split()
            )
            cut = right.run("nft", f"add table inet cut\n{rules}")
            assert cut.returncode == 0, cut.stderr
        other.put(session(ADDRESS))
        assert other.fault, "a grant that holds on one router alone says so"
        one.revoke(Z)  # taken, and yet unheard of on the router that granted it
        fleet.time.now += LEASE + 1
        assert known.now(other, Z), "it is known until it expires on the router that granted"
        assert not known.now(other, MAC), "the lease is over"
        known.soon(MAC, one)
        assert not known.now(one, ADDRESS)
        link.delay = 0.0
        right.run("nft", "delete table inet cut")
        works(other)
        known.soon(MAC, other)
        known.soon(ADDRESS, one)
        known.not_soon(Z, one, other)
