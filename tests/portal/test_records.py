"""What the login server keeps outlives it, and is nobody else's to read."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from capport.core.client import ClientId
from capport.portal.records import Records, RecordsError

ADA, EVE = ClientId("192.0.2.7"), ClientId("02:00:00:00:00:07")


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "portal.db"
    records = Records(path)
    records.accept(ADA, "v1", "en", "Be kind.", 5.0)
    records.put_user("ada", "hash", 5.0)
    (number,) = records.add_vouchers([b"h"], lifetime=60, devices=1, expires=None, note="n", at=5.0)
    records.spend(b"state", ADA, "boot", 9.0)
    records.close()
    again = Records(path)
    assert again.secret == records.secret
    assert len(again.secret) == 32
    assert [a.client for a in again.acceptances()] == [ADA]
    assert again.terms("v1", "en") == "Be kind."
    assert again.users() == ["ada"]
    assert again.use_voucher(b"h", ADA, 6.0) == (number, 60)
    assert again.spent_by(b"state") == ADA
    again.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    os.umask(0o022)
    path = tmp_path / "state" / "portal.db"
    Records(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    """By SQLite's own word: WAL with synchronous=FULL (2)."""
    records = Records(tmp_path / "portal.db")
    assert records._rows("PRAGMA journal_mode") == [("wal",)]
    assert records._rows("PRAGMA synchronous") == [(2,)]
    records.close()


def test_a_state_is_spent_once_among_processes_and_threads(tmp_path: Path) -> None:
    two = [Records(tmp_path / "portal.db") for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        tries = [
            pool.submit(two[n % 2].spend, b"state", ClientId(f"192.0.2.{n}"), "boot", 9.0)
            for n in range(24)
        ]
        got = [each.result() for each in tries]
    assert got.count(None) == 1
    assert len(set(got)) == 2
    for records in two:
        records.close()


def test_a_voucher_for_one_is_for_one_also_when_many_try_at_once(tmp_path: Path) -> None:
    two = [Records(tmp_path / "portal.db") for _ in range(2)]
    two[0].add_vouchers([b"h"], lifetime=60, devices=1, expires=None, note="", at=0.0)
    with ThreadPoolExecutor(8) as pool:
        tries = [
            pool.submit(partial(two[n % 2].use_voucher, b"h", ClientId(f"192.0.2.{n}"), 1.0))
            for n in range(24)
        ]
        assert sum(each.result() is not None for each in tries) == 1
    assert two[1].vouchers()[0].used == 1
    for records in two:
        records.close()


def test_a_voucher_has_no_more_time_than_it_had() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, expires=100.0, note="", at=0.0)
    assert records.use_voucher(b"h", ADA, 10.0) == (1, 60)
    assert records.use_voucher(b"h", ADA, 30.0) == (1, 40)
    assert records.use_voucher(b"h", ADA, 5.0) == (1, 60)  # a clock that was set back gives nothing
    assert records.use_voucher(b"h", ADA, 70.0) is None
    assert records.use_voucher(b"h", EVE, 100.0) is None  # expired
    assert records.use_voucher(b"h", EVE, 99.0) == (1, 60)


def test_a_client_that_accepts_again_and_again_takes_no_more_room() -> None:
    records = Records(None)
    for at in range(5, 50):
        records.accept(ADA, "v1", "en", "Be kind.", float(at))
    (accepted,) = records.acceptances()
    assert (accepted.first, accepted.last) == (5.0, 49.0)


def test_a_revoked_voucher_says_whom_it_let_on() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, expires=None, note="", at=0.0)
    records.use_voucher(b"h", ADA, 1.0)
    assert records.revoke_voucher(1, 2.0) == [ADA]
    assert records.use_voucher(b"h", ADA, 3.0) is None
    assert records.revoke_voucher(1, 4.0) == [ADA]
    assert records.vouchers()[0].revoked == 2.0
    assert records.revoke_voucher(2, 4.0) is None


def test_vouchers_are_added_all_or_none() -> None:
    records = Records(None)
    with pytest.raises(RecordsError):
        records.add_vouchers([b"a", b"a"], lifetime=1, devices=1, expires=None, note="", at=0.0)
    assert records.vouchers() == []


def test_spent_states_are_forgotten_when_they_are_over() -> None:
    records = Records(None)
    for state, boot, expires in ((b"a", "now", 9.0), (b"b", "now", 11.0), (b"c", "before", 99.0)):
        records.spend(state, ADA, boot, expires)
    records.clear_spent("now", 10.0)
    assert [records.spent_by(s) for s in (b"a", b"b", b"c")] == [None, ADA, None]


@pytest.mark.parametrize(
    "content", [b"not a database, by far" * 100, b"SQLite format 3\0" + b"x" * 99]
)
def test_a_file_that_is_no_database_is_an_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "portal.db"
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"portal\.db"):
        Records(path)


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "portal.db"
    Records(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RecordsError, match="later capport"):
        Records(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "portal.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordsError):
        Records(tmp_path / "portal.db")
    assert not (tmp_path / "elsewhere").exists()
