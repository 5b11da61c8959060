"""The file of the records is replaced while it is in use: the new file decides at once."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.web.date_reckoning import Moment
from capport.web.records import Records

CAPPORT = str(Path(sys.executable).with_name("capport"))
ADA, EVE = ClientId("192.0.2.7"), ClientId("192.0.2.8")
NOW = Moment(1000.0, "this", 1000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portal.db"


def filled(path: Path, voucher: bytes, user: str) -> bytes:
    """Records with a voucher and a user; their secret."""
    records = Records(path)
    records.add_vouchers([voucher], lifetime=60, devices=1, valid=None, note="", at=NOW)
    records.put_user(user, "hash", 5.0)
    records.close()
    return records.secret


def remove(path: Path) -> None:
    for file in path.parent.glob("portal.db*"):
        file.unlink()


def moved_over(path: Path, backup: Path) -> None:
    backup.replace(path)


def moved_after_the_other_was(path: Path, backup: Path) -> None:
    path.rename(path.with_name("old"))
    backup.rename(path)


def copied_to_where_it_was_deleted(path: Path, backup: Path) -> None:
    path.unlink()
    shutil.copy(backup, path)


def put_where_all_was_removed(path: Path, backup: Path) -> None:
    remove(path)
    backup.rename(path)


REPLACEMENTS = [
    moved_over,
    moved_after_the_other_was,
    copied_to_where_it_was_deleted,
    put_where_all_was_removed,
]


@pytest.mark.parametrize("put_there", REPLACEMENTS)
def test_the_new_file_holds_in_each_process_that_had_the_old_one_open(
    path: Path, put_there: Callable[[Path, Path], None]
) -> None:
    filled(path, b"old", "ada")
    records = Records(path)
    assert records.use_voucher(b"old", ADA, NOW) == (1, 60)
    records.spend(b"state", ADA, "this", 9000.0)
    secret = filled(path.with_name("backup.db"), b"new", "eve")
    put_there(path, path.with_name("backup.db"))
    assert records.users() == ["eve"]
    assert records.secret == secret
    assert records.use_voucher(b"old", ADA, NOW) is None
    assert records.spent_by(b"state") is None
    assert records.use_voucher(b"new", EVE, NOW) == (1, 60)
    records.close()
    again = Records(path)
    assert [(voucher.number, voucher.used) for voucher in again.vouchers()] == [(1, 1)]
    assert again.use_voucher(b"new", ADA, NOW) is None
    again.close()


def test_what_was_acknowledged_before_stays_in_the_file_that_was_moved_away(path: Path) -> None:
    records = Records(path)
    records.put_user("ada", "hash", 5.0)
    filled(path.with_name("backup.db"), b"new", "eve")
    moved_after_the_other_was(path, path.with_name("backup.db"))
    assert records.users() == ["eve"]
    moved_over(path, path.with_name("old"))
    assert records.users() == ["ada"]
    records.close()


def test_two_that_have_the_old_file_open_both_follow(path: Path) -> None:
    two = Records(path), Records(path)
    filled(path.with_name("backup.db"), b"new", "eve")
    moved_over(path, path.with_name("backup.db"))
    for number, records in enumerate(two):
        records.put_user(f"guest{number}", "hash", 5.0)
    assert two[0].users() == two[1].users() == ["eve", "guest0", "guest1"]
    for records in two:
        records.close()


def test_no_command_opens_a_file_beside_whose_log_another_one_is_in_use(path: Path) -> None:
    records = Records(path)
    records.put_user("ada", "hash", 5.0)
    made = path.with_name("backup.db")
    filled(made, b"new", "eve")
    before = made.read_bytes()
    moved_over(path, made)
    argv = [CAPPORT, "user", "list", "--sessions", str(path.with_name("sessions.db"))]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert (
        "used another file of that name, and the log of that one is still beside it" in ran.stderr
    )
    assert path.read_bytes() == before
    records.look()  # as the portal does each second
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (0, "eve\n")
    records.close()


def test_a_database_of_something_else_in_its_place_lets_nobody_in(path: Path) -> None:
    records = Records(path)
    records.put_user("ada", "hash", 5.0)
    path.rename(path.with_name("old"))
    path.write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"portal\.db: damaged"):
            records.password_of("ada")
    moved_over(path, path.with_name("old"))
    assert records.password_of("ada") == "hash"
    records.close()
