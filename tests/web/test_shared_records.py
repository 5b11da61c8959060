"""Vouchers and single-use states of routers that share a Redis: limits hold for all routers."""

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import requires
from capport.core.client import ClientId
from capport.stores import AwayError, StoreError
from capport.stores.redis import record_book
from capport.stores.redis.record_book import CHANGES, RECORD
from capport.web import shared_records
from capport.web.date_reckoning import Moment
from capport.web.records import Records
from capport.web.shared_records import FIRST_NUMBER, SharedRecords
from stores.redis_server import RedisServer, server

pytestmark = requires.tool("redis-server")

ADA, EVE, MAX = ClientId("192.0.2.7"), ClientId("02:00:00:00:00:07"), ClientId("2001:db8::7")
NOW = Moment(1.8e9, "this", 1000.0)
ROUTERS, CODES = st.integers(0, 2), st.sampled_from([b"one", b"two"])


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with server(tmp_path / "redis") as running:
        yield running


class Routers:
    """Routers by number, each with its own `portal.db`. They have heard of one another."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self._redis, self._folder = redis, folder
        self.open: dict[int, SharedRecords] = {}
        self._killed: list[SharedRecords] = []

    def __getitem__(self, number: int) -> SharedRecords:
        """The router after a look, or two if its connection had ended; starts it if needed."""
        if number not in self.open:
            path = self._folder / f"router{number}" / "portal.db"
            self.open[number] = SharedRecords(str(self._redis.url), path)
            for _ in range(3):
                for router in self.open.values():
                    router.book.look()
        for _ in range(2):
            self.open[number].book.look()
            if self.open[number].book.fault is None:
                break
        return self.open[number]

    def stop(self, number: int) -> None:
        self.open.pop(number).close()

    def kill(self, number: int) -> None:
        """Ends the router without informing the others."""
        self._killed.append(self.open.pop(number))

    def close(self) -> None:
        for number in tuple(self.open):
            self.stop(number)
        for records in self._killed:
            records.close()


@pytest.fixture
def routers(redis: RedisServer, tmp_path: Path) -> Iterator[Routers]:
    routers = Routers(redis, tmp_path)
    yield routers
    routers.close()


def vouchers(records: Records, *codes: bytes, devices: int = 1, lifetime: float = 60) -> list[int]:
    return records.add_vouchers(
        codes, lifetime=lifetime, devices=devices, valid=None, note="", at=NOW
    )


def test_a_voucher_that_is_made_at_one_router_is_used_listed_and_revoked_at_another(
    routers: Routers,
) -> None:
    one, other = routers[0], routers[1]
    assert vouchers(one, b"a", b"b") == [FIRST_NUMBER, FIRST_NUMBER + 1]
    assert vouchers(other, b"c") == [FIRST_NUMBER + 2]
    assert other.use_voucher(b"a", ADA, NOW) == (FIRST_NUMBER, 60)
    assert [(each.number, each.used) for each in routers[0].vouchers()] == [
        *((FIRST_NUMBER, 1), (FIRST_NUMBER + 1, 0), (FIRST_NUMBER + 2, 0))
    ]
    assert one.use_voucher(b"a", EVE, NOW) is None
    number, left = one.use_voucher(b"a", ADA, NOW) or (0, 0)
    assert (number, 50 < left <= 60) == (FIRST_NUMBER, True), "a roaming client has the rest"
    assert one.revoke_voucher(FIRST_NUMBER, NOW.wall) == [ADA]
    assert other.is_revoked(FIRST_NUMBER)
    assert other.use_voucher(b"a", ADA, NOW) is None
    assert one.use_voucher(b"unknown", ADA, NOW) is None


def test_a_voucher_for_two_devices_is_for_two_also_when_many_try_at_every_router_at_once(
    routers: Routers,
) -> None:
    both = [routers[0], routers[1]]
    vouchers(both[0], b"h", devices=2)
    routers[1]
    clients = [ClientId(f"192.0.2.{n}") for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        used = list(
            pool.map(lambda n: both[n % 2].use_voucher(b"h", clients[n], NOW), range(len(clients)))
        )
    assert len([one for one in used if one]) == 2
    assert [routers[n].vouchers()[-1].used for n in (0, 1)] == [2, 2]


def test_a_state_is_used_once_at_whichever_router(routers: Routers) -> None:
    one, other = routers[0], routers[1]
    assert one.spend(b"state", ADA, "this", 9.0) is None
    assert other.spend(b"state", EVE, "that", 9.0) == ADA
    one.unspend(b"state")
    assert other.spend(b"state", EVE, "that", 9.0) is None
    assert routers[0].spend(b"state", ADA, "this", 9.0) == EVE


def test_a_used_state_is_forgotten_when_it_is_not_valid_any_more(
    routers: Routers, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, one = f"{RECORD}state:{b'state'.hex()}", routers[0]
    assert one.spend(b"state", ADA, "this", 9.0) is None
    assert 900_000 < int(redis.ask("PTTL", key)[1:]) <= 960_000
    monkeypatch.setattr(shared_records, "KEPT", -1)
    assert one.spend(b"late", ADA, "this", 9.0) is None
    assert redis.ask("EXISTS", f"{RECORD}state:{b'late'.hex()}") == b":0"
    assert [routers[0].spent_by(state) for state in (b"state", b"late")] == [ADA, None]


def test_a_use_whose_grant_failed_is_given_back_at_every_router(routers: Routers) -> None:
    one, other = routers[0], routers[1]
    [number] = vouchers(one, b"h")
    assert one.use_voucher(b"h", ADA, NOW)
    assert other.use_voucher(b"h", EVE, NOW) is None
    one.give_back(number, ADA, NOW)
    assert other.use_voucher(b"h", EVE, NOW)
    one.give_back(number, EVE, Moment(1.9e9, "this", 5.0))
    assert one.use_voucher(b"h", ADA, NOW) is None, "a use that began earlier stays"


def test_without_redis_what_limits_is_refused_and_a_revocation_travels_later(
    routers: Routers, redis: RedisServer
) -> None:
    one, other = routers[0], routers[1]
    [number] = vouchers(one, b"h")
    redis.kill()
    for ask in (
        lambda: one.use_voucher(b"h", ADA, NOW),
        lambda: one.spend(b"state", ADA, "this", 9.0),
        lambda: vouchers(one, b"i"),
        lambda: one.is_revoked(number),
    ):
        with pytest.raises(AwayError, match="cannot be reached"):
            ask()
    assert one.revoke_voucher(number, NOW.wall) == []
    redis.start()
    for n in (1, 0):
        routers[n]
    assert routers[1].is_revoked(number)
    assert other.use_voucher(b"h", ADA, NOW) is None


def test_what_redis_has_lost_is_put_back_before_anything_is_used(
    routers: Routers, redis: RedisServer
) -> None:
    one, other = routers[0], routers[1]
    vouchers(one, b"h")
    routers[1]
    other.use_voucher(b"h", ADA, NOW)  # the other router alone knows of it when Redis fails
    redis.kill()
    redis.start()
    routers[0]
    with pytest.raises(AwayError, match="has not put back what it knows"):
        one.use_voucher(b"h", EVE, NOW)
    assert "wait for it" in (one.book.fault or "")
    routers[1]
    assert routers[0].book.fault is None
    assert one.use_voucher(b"h", EVE, NOW) is None
    assert one.use_voucher(b"h", ADA, NOW)


def test_an_emptied_redis_is_noticed_at_the_next_use(routers: Routers, redis: RedisServer) -> None:
    one, other = routers[0], routers[1]
    vouchers(one, b"h")
    other.use_voucher(b"h", ADA, NOW)
    redis.ask("FLUSHALL")
    for each in (one, other):
        with pytest.raises(AwayError, match="are being put back"):
            each.use_voucher(b"h", EVE, NOW)
    for number in (0, 1, 0):
        routers[number]
    assert one.use_voucher(b"h", EVE, NOW) is None


def test_a_redis_that_came_back_older_gives_no_voucher_more_devices(
    routers: Routers, redis: RedisServer
) -> None:
    one, other = routers[0], routers[1]
    vouchers(one, b"h")
    redis.ask("SAVE")
    other.use_voucher(b"h", ADA, NOW)
    redis.kill()
    redis.start()
    routers[0]
    with pytest.raises(AwayError, match="has not put back"):
        one.use_voucher(b"h", EVE, NOW)
    routers[1]
    assert routers[0].use_voucher(b"h", EVE, NOW) is None


def test_a_replica_that_took_over_is_another_redis_also_without_a_new_connection(
    routers: Routers, redis: RedisServer
) -> None:
    one = routers[0]
    vouchers(one, b"h")
    redis.ask("REPLICAOF", "127.0.0.1", "1")
    redis.ask("REPLICAOF", "NO", "ONE")
    with pytest.raises(AwayError):
        one.use_voucher(b"h", ADA, NOW)
    assert routers[0].use_voucher(b"h", ADA, NOW)


def test_a_router_that_is_gone_is_waited_for_only_after_a_loss_and_not_for_ever(
    routers: Routers, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = routers[0], routers[1]
    vouchers(one, b"h", devices=2)
    other.use_voucher(b"h", ADA, NOW)
    routers.kill(1)
    assert routers[0].use_voucher(b"h", EVE, NOW), "without a loss nobody is waited for"
    redis.ask("FLUSHALL")
    routers[0]
    with pytest.raises(AwayError):
        one.use_voucher(b"h", EVE, NOW)
    monkeypatch.setattr(record_book, "LOST", -1.0)
    assert routers[0].use_voucher(b"h", MAX, NOW) is None, "what was read before is put back"


@pytest.mark.parametrize("how", ["stopped", "quiet"])
def test_a_router_that_was_stopped_or_quiet_for_a_while_is_not_waited_for(
    routers: Routers, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    one, other = routers[0], routers[1]
    vouchers(other, b"h")
    if how == "stopped":
        routers.stop(1)
    else:
        routers.kill(1)
        monkeypatch.setattr(record_book, "QUIET", -1.0)
        routers[0]
        monkeypatch.undo()
    routers[0]
    redis.ask("FLUSHALL")
    assert routers[0].use_voucher(b"h", ADA, NOW) == (FIRST_NUMBER, 60)
    assert one.book.fault is None


def test_what_a_router_knew_of_others_before_it_was_away_delays_nobody_without_a_loss(
    routers: Routers,
) -> None:
    vouchers(routers[0], b"h")
    routers[1], routers[2]
    routers.stop(1)
    routers.stop(2)
    routers[0]
    assert routers[1].book.fault is None, "it had heard of the one that has left meanwhile"
    assert routers[0].use_voucher(b"h", ADA, NOW)


def test_after_a_gap_in_the_changes_everything_is_read_again(
    routers: Routers, redis: RedisServer
) -> None:
    one = routers[0]
    routers[1]
    vouchers(one, b"a", b"b")
    redis.ask("XTRIM", CHANGES, "MAXLEN", "1")
    assert len(routers[1].vouchers()) == 2
    redis.ask("DEL", CHANGES)
    vouchers(one, b"c")
    assert len(routers[1].vouchers()) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"v":1}', '{"v":2}', "\x00", "[" * 100_000),
        '{"v":1,"number":1,"lifetime":-1}',
        '{"v":1,"number":true}',
    ],
)
def test_what_does_not_fit_is_refused_and_reported_and_harms_no_other_record(
    routers: Routers, redis: RedisServer, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    one = routers[0]
    vouchers(one, b"good", b"bad")
    redis.ask("SET", f"{RECORD}voucher:{b'bad'.hex()}", text or " ")
    routers[1]
    assert "refused the record 'voucher:626164'" in caplog.text
    with pytest.raises(AwayError, match="does not fit"):
        routers[1].use_voucher(b"bad", ADA, NOW)
    assert routers[1].use_voucher(b"good", ADA, NOW)


@pytest.mark.parametrize("text", ["{", b"\xff", '{"v":2}'])
def test_a_damaged_record_in_the_file_is_reported_once_and_redis_has_it(
    routers: Routers,
    redis: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str | bytes,
) -> None:
    (number, good) = vouchers(routers[0], b"bad", b"good", devices=2)
    assert routers[1].use_voucher(b"bad", EVE, NOW)
    one = routers[0]
    with contextlib.closing(sqlite3.connect(tmp_path / "router0" / "portal.db")) as db:
        where = (text, f"voucher:{b'bad'.hex()}")
        db.execute("UPDATE shared SET record = CAST(? AS TEXT) WHERE key = ?", where)
        db.commit()
    assert [v.number for v in one.vouchers()] == [good]
    redis.freeze()
    with pytest.raises(StoreError, match="damaged"):
        one.revoke_voucher(number, NOW.wall)
    redis.thaw()
    one = routers[0]
    assert one.use_voucher(b"bad", ADA, NOW)
    assert one.use_voucher(b"bad", MAX, NOW) is None, "two have used it"
    assert [v.used for v in one.vouchers()] == [2, 0]
    assert caplog.text.count("is damaged") == 1


def test_a_router_without_the_password_says_so_and_never_shows_one(
    routers: Routers, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("CONFIG", "SET", "requirepass", "pa55word")
    one = routers[0]
    with pytest.raises(AwayError, match="CAPPORT_REDIS_PASSWORD_FILE"):
        one.use_voucher(b"h", ADA, NOW)
    assert "pa55word" not in caplog.text


def test_a_frozen_redis_is_waited_for_once_and_then_refused_at_once(
    routers: Routers, redis: RedisServer
) -> None:
    one = routers[0]
    redis.freeze()
    try:
        for _ in range(2):
            with pytest.raises(AwayError, match="does not answer"):
                one.use_voucher(b"h", ADA, NOW)
        assert one.book.fault
    finally:
        redis.thaw()


def test_a_voucher_from_before_the_routers_shared_any_admits_as_before(
    redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "portal.db"
    alone = Records(path)
    vouchers(alone, b"h")
    alone.close()
    shared = SharedRecords(str(redis.url), path)
    assert shared.use_voucher(b"h", ADA, NOW) == (1, 60), "it needs no Redis: no other has it"
    assert shared.use_voucher(b"h", EVE, NOW) is None
    shared.book.look()
    assert vouchers(shared, b"i") == [FIRST_NUMBER]
    assert [each.number for each in shared.vouchers()] == [1, FIRST_NUMBER]
    assert shared.revoke_voucher(1, NOW.wall) == [ADA]
    assert shared.is_revoked(1)
    shared.close()


class Uses(RuleBasedStateMachine):
    """Three routers, two vouchers, and a Redis that loses what it knows: all of it, or the last."""

    redis: ClassVar[RedisServer]
    devices: ClassVar[dict[bytes, int]] = {b"one": 1, b"two": 2}
    clients: ClassVar = [ClientId(f"192.0.2.{n}") for n in range(4)]

    @initialize()
    def start(self) -> None:
        self.redis.ask("FLUSHALL")
        self.folder = Path(tempfile.mkdtemp())
        self.routers = Routers(self.redis, self.folder)
        self.number = {}
        for code, devices in self.devices.items():
            [self.number[code]] = vouchers(self.routers[0], code, devices=devices, lifetime=86400)
        for router in (1, 2):
            self.routers[router]
        self.admitted: dict[bytes, set[ClientId]] = {code: set() for code in self.devices}
        self.revoked: set[bytes] = set()

    @rule(router=ROUTERS, client=st.sampled_from(clients), code=CODES, fails=st.booleans())
    def use(self, router: int, client: ClientId, code: bytes, fails: bool) -> None:
        if (records := self.routers.open.get(router)) is None:
            return
        at = Moment(random.uniform(1e9, 2e9), "this", 1.0)
        try:
            used = records.use_voucher(code, client, at)
        except AwayError:
            return
        admitted = self.admitted[code]
        assert used is None or code not in self.revoked, "it was revoked"
        if used is not None and fails and client not in admitted:
            records.give_back(self.number[code], client, at)
        elif used is not None:
            admitted.add(client)
        elif client in admitted:
            assert code in self.revoked, "a client that has used it has the rest of its time"
        assert len(admitted) <= self.devices[code], f"{code!r} has admitted {admitted}"

    @rule(router=ROUTERS, code=CODES)
    def revoke(self, router: int, code: bytes) -> None:
        if (records := self.routers.open.get(router)) is not None:
            records.revoke_voucher(self.number[code], 1e9)
            if records.book.fault is None:
                self.revoked.add(code)

    @rule(router=ROUTERS)
    def look(self, router: int) -> None:
        if router in self.routers.open:
            self.routers[router]

    @rule(router=ROUTERS, killed=st.booleans())
    def end_or_start(self, router: int, killed: bool) -> None:
        if router in self.routers.open:
            (self.routers.kill if killed else self.routers.stop)(router)
        else:
            self.routers[router]

    @rule()
    def forget_everything(self) -> None:
        self.redis.ask("FLUSHALL")

    @rule()
    def save(self) -> None:
        self.redis.ask("SAVE")

    @rule()
    def restart_with_what_was_saved(self) -> None:
        self.redis.kill()
        self.redis.start()

    @rule()
    def become_another_primary(self) -> None:
        self.redis.ask("REPLICAOF", "127.0.0.1", "1")
        self.redis.ask("REPLICAOF", "NO", "ONE")

    def teardown(self) -> None:
        if hasattr(self, "routers"):
            for router in [0, 1, 2] * 3:
                self.routers[router]
            lists = [self.routers[router].vouchers() for router in (0, 1, 2)]
            assert lists[0] == lists[1] == lists[2]
            assert all(each.used <= each.devices for each in lists[0])
            assert [records.book.fault for records in self.routers.open.values()] == [None] * 3
            self.routers.close()
            (self.redis.folder / "dump.rdb").unlink(missing_ok=True)
            shutil.rmtree(self.folder)


def test_whatever_redis_loses_no_voucher_admits_more_devices_and_each_admits_its_own(
    redis: RedisServer,
) -> None:
    Uses.redis = redis
    run_state_machine_as_test(
        Uses,
        settings=settings(
            max_examples=int(os.environ.get("CAPPORT_SOAK") or 8),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[*HealthCheck],
        ),
    )
