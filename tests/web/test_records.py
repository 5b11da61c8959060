"""What the login server stores outlives it, and no other user can read it."""

import contextlib
import hashlib
import os
import pwd
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import requires
from capport.commands.login_records import moment
from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.sqlite import database, schema
from capport.stores.sqlite.locks import holders
from capport.web.date_reckoning import Moment, reckon
from capport.web.records import SCHEMA, ClockError, Records
from web.accepted_terms import acceptances, text_of_terms


def on(running: float, wall: float | None = None, boot: str = "this") -> Moment:
    """A moment of a boot that began at 0, by a wall clock that is right unless it is given."""
    return Moment(running if wall is None else wall, boot, running)


ADA, EVE = ClientId("192.0.2.7"), ClientId("02:00:00:00:00:07")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simultaneous writers wait as long as a commit takes on a busy machine."""
    monkeypatch.setattr(database, "PUT_SECONDS", 60.0)


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "portal.db"
    records = Records(path)
    records.accept(ADA, "v1", "en", "Be kind.", 5.0)
    records.put_user("ada", "hash", 5.0)
    (number,) = records.add_vouchers([b"h"], lifetime=60, devices=1, valid=None, note="n", at=on(5))
    records.spend(b"state", ADA, "boot", 9.0)
    records.close()
    again = Records(path)
    assert again.secret == records.secret
    assert len(again.secret) == 32
    assert [a.client for a in acceptances(again)] == [ADA]
    assert text_of_terms(again, "v1", "en") == "Be kind."
    assert again.users() == ["ada"]
    assert again.use_voucher(b"h", ADA, on(6)) == (number, 60)
    assert again.spent_by(b"state") == ADA
    again.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    os.umask(0o022)
    path = tmp_path / "state" / "portal.db"
    Records(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@requires.root()
def test_what_root_makes_first_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    """`sudo capport voucher new`, before the service has ever run."""
    folder = tmp_path / "state"
    folder.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    records = Records(folder / "portal.db")
    records.put_user("ada", "hash", 5.0)
    owners = {path.name: path.stat().st_uid for path in folder.iterdir()}
    records.close()
    assert owners == dict.fromkeys(("portal.db", "portal.db-wal", "portal.db-shm"), nobody.pw_uid)


def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    """As SQLite reports it: WAL with synchronous=FULL (2)."""
    path = tmp_path / "portal.db"
    Records(path).close()
    with contextlib.closing(schema.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert db.execute("PRAGMA synchronous").fetchall() == [(2,)]


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
    two[0].add_vouchers([b"h"], lifetime=60, devices=1, valid=None, note="", at=on(0))
    with ThreadPoolExecutor(8) as pool:
        tries = [
            pool.submit(partial(two[n % 2].use_voucher, b"h", ClientId(f"192.0.2.{n}"), on(1)))
            for n in range(24)
        ]
        assert sum(each.result() is not None for each in tries) == 1
    assert two[1].vouchers()[0].used == 1
    for records in two:
        records.close()


def test_a_voucher_has_no_more_time_than_it_had() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=100.0, note="", at=on(0))
    assert records.use_voucher(b"h", ADA, on(10)) == (1, 60)
    assert records.use_voucher(b"h", ADA, on(30)) == (1, 40)
    set_back, ahead = on(35, wall=-1e9), on(40, wall=5.0)
    assert records.use_voucher(b"h", ADA, set_back) == (1, 35)
    assert records.use_voucher(b"h", ADA, ahead) == (1, 30)
    assert records.use_voucher(b"h", ADA, on(70)) is None
    assert records.use_voucher(b"h", EVE, on(99)) == (1, 60)


@pytest.mark.parametrize("set_to", [100.0, 99.0, 0.0, -1e9])
def test_a_voucher_that_has_expired_stays_so_whatever_the_clock_says(set_to: float) -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=100.0, note="", at=on(0))
    assert records.use_voucher(b"h", EVE, on(100)) is None
    assert records.use_voucher(b"h", EVE, on(101, wall=set_to)) is None
    assert records.use_voucher(b"h", EVE, on(5, wall=set_to, boot="next")) is None


def test_one_that_was_set_back_before_it_expires_expires_when_it_should_have() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=100.0, note="", at=on(0))
    assert records.use_voucher(b"h", ADA, on(99, wall=-500.0)) == (1, 60)
    assert records.use_voucher(b"h", EVE, on(100, wall=-499.0)) is None


def test_a_client_that_has_used_a_voucher_in_time_may_come_back_after_it_has_expired() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=600, devices=2, valid=100, note="", at=on(0))
    assert records.use_voucher(b"h", ADA, on(99)) == (1, 600)
    assert records.use_voucher(b"h", EVE, on(100)) is None
    assert records.use_voucher(b"h", ADA, on(199)) == (1, 500)


def test_a_voucher_that_would_not_extend_the_session_is_not_used() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=1, valid=None, note="", at=on(0))
    assert records.use_voucher(b"h", ADA, on(1), beyond=60) == (1, 60)
    assert records.use_voucher(b"h", EVE, on(2), beyond=59) == (1, 60)
    assert records.use_voucher(b"h", ADA, on(3)) is None


def test_after_a_boot_in_1970_one_that_expires_waits_for_the_clock_to_be_set() -> None:
    records = Records(None)
    at = on(1000, wall=1.8e9)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=100.0, note="", at=at)
    records.add_vouchers([b"i"], lifetime=60, devices=2, valid=None, note="", at=at)
    with pytest.raises(ClockError, match="the clock shows 1970-01-01"):
        records.use_voucher(b"h", ADA, on(9, wall=10.0, boot="next"))
    assert records.use_voucher(b"i", ADA, on(9, wall=10.0, boot="next")) == (2, 60)
    assert records.use_voucher(b"h", ADA, on(20, wall=1.8e9 + 50, boot="next")) == (1, 60)
    assert records.use_voucher(b"i", ADA, on(39, wall=1.8e9 + 69, boot="next")) == (2, 30)
    assert records.use_voucher(b"h", EVE, on(99, wall=1.8e9 + 129, boot="next")) is None


def test_on_the_operators_word_a_clock_that_was_ahead_is_right_again() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=1e6, note="", at=on(0, wall=4e9))
    with pytest.raises(ClockError):
        records.add_vouchers(
            [b"i"], lifetime=9, devices=1, valid=60.0, note="", at=on(1, wall=1e9, boot="next")
        )
    records.trust_clock(on(2, wall=1e9, boot="next"))
    records.add_vouchers(
        [b"i"], lifetime=9, devices=1, valid=60.0, note="", at=on(3, wall=1e9 + 1, boot="next")
    )
    assert records.use_voucher(b"i", ADA, on(4, wall=1e9 + 2, boot="next")) == (2, 9)


def test_how_late_it_is_is_noted_only_where_a_voucher_lives_by_it(tmp_path: Path) -> None:
    path = tmp_path / "portal.db"
    records = Records(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        records.keep_time(on(5))
        assert db.execute("SELECT * FROM day").fetchall() == []
        records.add_vouchers([b"h"], lifetime=60, devices=1, valid=None, note="", at=on(6))
        records.keep_time(on(7))
        assert db.execute("SELECT wall FROM day").fetchall() == [(7.0,)]
    records.close()


def test_a_file_of_the_first_version_keeps_its_vouchers_and_what_they_have_left(
    tmp_path: Path,
) -> None:
    path = tmp_path / "portal.db"
    with sqlite3.connect(path) as db:
        for statement in SCHEMA.migrations[0]:
            db.execute(statement)
        row = (b"h", 3600.0, 1, None, 1.0, None, "")
        db.execute(
            "INSERT INTO voucher (hash, lifetime, devices, expires, created, revoked, note)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        db.execute("INSERT INTO voucher_use VALUES (1, ?, ?)", (ADA, time.time() - 600))
        db.execute("PRAGMA user_version = 1")
    db.close()
    records = Records(path)
    used = records.use_voucher(b"h", ADA, on(5))
    assert used is not None
    assert used[1] == pytest.approx(3000, abs=60)
    assert records.use_voucher(b"h", EVE, on(5)) is None
    records.close()


SCHEMAS = Path(__file__).parent / "schemas"
BOOT = "0c1d1b6e-0000-4000-8000-000000000001"


def test_each_schema_there_ever_was_has_a_fixture() -> None:
    versions = range(1, len(SCHEMA.migrations) + 1)
    assert {path.stem for path in SCHEMAS.glob("*.sql")} == set(map(str, versions))


@pytest.mark.parametrize("fixture", sorted(SCHEMAS.glob("*.sql")), ids=lambda path: path.stem)
def test_a_file_of_an_earlier_version_keeps_all_that_is_in_it(
    tmp_path: Path, fixture: Path
) -> None:
    path = tmp_path / "portal.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(fixture.read_text())
    records = Records(path)
    used, expires, revoked, token = (
        hashlib.sha256(name).digest() for name in (b"used", b"expires", b"revoked", b"token")
    )
    now = Moment(1.8e9 + 300, BOOT, 1300.0)
    assert records.secret == bytes(range(32))
    assert [(a.client, a.language, a.first, a.last) for a in acceptances(records)] == [
        (ADA, "en", 1.8e9, 1.8e9 + 9),
        (EVE, "de", 1.8e9 + 1, 1.8e9 + 1),
    ]
    assert text_of_terms(records, "v1", "de") == "Sei nett."
    assert [(v.number, v.note, v.used, v.revoked) for v in records.vouchers()] == [
        (1, "Zoë", 1, None),
        (2, "", 0, None),
        (3, "", 1, 1.8e9 + 150),
    ]
    # It was used at 1100, and the first schema did not say at which second of the clock of boots.
    left = 3600 if fixture.stem == "1" else 3600 - 200
    assert records.use_voucher(used, ADA, now) == (1, left)
    assert records.use_voucher(used, EVE, now) is None
    assert records.use_voucher(expires, EVE, now) == (2, 600)
    assert records.use_voucher(expires, ADA, replace(now, wall=1.8e9 + 86400)) is None
    assert records.use_voucher(revoked, EVE, now) is None
    assert (records.users(), records.tokens()) == (["ada"], ["hotel desk"])
    assert (records.password_of("ada") or "").startswith("$argon2id$")
    assert records.token_name(token) == "hotel desk"
    assert records.spend(b"\x01" * 16, EVE, BOOT, 2000.0) == ADA
    records.close()


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "portal.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="but not of the login server's records"):
        Records(path)
    assert path.read_bytes() == before


USE = """
import sys
from pathlib import Path

from capport.commands.login_records import moment
from capport.core.client import ClientId
from capport.web.records import SCHEMA, ClockError, Records

records = Records(Path(sys.argv[1]))
try:
    print(records.use_voucher(b"h", ClientId(sys.argv[2]), moment()))
except ClockError as error:
    print(error)
"""


@requires.tool("faketime")
def test_no_wall_clock_has_a_voucher_last_longer(tmp_path: Path) -> None:
    """Several processes, each with another date."""
    path = tmp_path / "portal.db"
    records = Records(path)
    records.add_vouchers([b"h"], lifetime=60, devices=9, valid=86400.0, note="", at=moment())
    records.close()
    said = []
    for number, jump in enumerate(("+0", "+2d", "-1d", "+0", "@1970-01-01 00:00:10")):
        out = subprocess.run(
            ["faketime", "-f", jump, sys.executable, "-c", USE, str(path), f"192.0.2.{number}"],
            env={**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        said.append(out.strip())
    assert said == ["(1, 60.0)", "None", "None", "None", "None"]


def test_a_client_that_accepts_again_and_again_takes_no_more_room() -> None:
    records = Records(None)
    for at in range(5, 50):
        records.accept(ADA, "v1", "en", "Be kind.", float(at))
    (accepted,) = acceptances(records)
    assert (accepted.first, accepted.last) == (5.0, 49.0)


def test_the_newest_acceptances_are_kept_and_no_more_than_a_stated_number() -> None:
    records = Records(None)
    for number in range(10):
        records.accept(ClientId(f"192.0.2.{number}"), "v1", "en", "Be kind.", float(number))
    records.accept(ClientId("192.0.2.0"), "v1", "en", "Be kind.", 20.0)  # it came again
    records.clear_accepted(most=4)
    kept = [accepted.client for accepted in acceptances(records)]
    assert kept == [ClientId(f"192.0.2.{number}") for number in (0, 7, 8, 9)]
    assert text_of_terms(records, "v1", "en") == "Be kind."


def test_an_acceptance_that_no_session_came_of_can_be_taken_back() -> None:
    records = Records(None)
    records.accept(ADA, "v1", "en", "Be kind.", 5.0)
    records.accept(ADA, "v1", "en", "Be kind.", 6.0)
    records.accept(EVE, "v1", "en", "Be kind.", 6.0)
    for client in (ADA, EVE):
        records.withdraw(client, "v1", "en", 6.0)
    assert [accepted.client for accepted in acceptances(records)] == [ADA]


def test_a_revoked_voucher_lists_the_clients_that_it_admitted() -> None:
    records = Records(None)
    records.add_vouchers([b"h"], lifetime=60, devices=2, valid=None, note="", at=on(0))
    records.use_voucher(b"h", ADA, on(1))
    assert records.revoke_voucher(1, 2.0) == [ADA]
    assert records.use_voucher(b"h", ADA, on(3)) is None
    assert records.revoke_voucher(1, 4.0) == [ADA]
    assert records.vouchers()[0].revoked == 2.0
    assert records.revoke_voucher(2, 4.0) is None


def test_vouchers_are_added_all_or_none() -> None:
    records = Records(None)
    with pytest.raises(StoreError):
        records.add_vouchers([b"a", b"a"], lifetime=1, devices=1, valid=None, note="", at=on(0))
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
    with pytest.raises(StoreError, match=r"portal\.db"):
        Records(path)


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "portal.db"
    Records(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer capport"):
        Records(path)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.touch()  # SQLite takes an empty file for a database
    (tmp_path / "portal.db").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="not a regular file"):
        Records(tmp_path / "portal.db")
    assert elsewhere.exists() == there
    assert not there or not elsewhere.stat().st_size


def test_a_file_with_a_second_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "portal.db").hardlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="hard link"):
        Records(tmp_path / "portal.db")
    assert not (tmp_path / "precious").stat().st_size


@requires.root()
def test_a_strangers_file_is_left_alone_unless_the_sessions_are_theirs_too(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for name in ("portal.db", "sessions.db"):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(StoreError, match=f"belongs to user {nobody.pw_uid}, not"):
        Records(tmp_path / "portal.db")
    assert not (tmp_path / "portal.db").stat().st_size
    Records(tmp_path / "portal.db", like=tmp_path / "sessions.db").close()


@requires.root()
def test_root_goes_through_no_link_of_somebody_elses_to_the_records(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    Records(tmp_path / "link" / "portal.db").close()
    os.lchown(tmp_path / "link", nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(StoreError, match="root follows none"):
        Records(tmp_path / "link" / "portal.db")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux's /proc/locks")
def test_opening_the_file_again_keeps_sqlites_locks_on_it(tmp_path: Path) -> None:
    """Closing any descriptor of a file releases every lock that the process has on it."""
    path = tmp_path / "portal.db"
    with contextlib.closing(Records(path)):
        assert os.getpid() in holders(path)
        with contextlib.closing(Records(path)):
            assert os.getpid() in holders(path)


type Step = tuple[float, float, bool, bool]
STEPS = st.tuples(st.floats(0, 1e6), st.floats(-1e10, 1e10), st.booleans(), st.booleans())


@given(st.lists(STEPS, max_size=12))
def test_no_run_of_the_clocks_brings_back_time(steps: list[Step]) -> None:
    """Whatever the wall clock says, how often it boots, and how long it is off."""
    known, boots, running, true = None, 0, 0.0, 1e9
    for passes, error, reboots, is_set in steps:
        if reboots:
            boots, running, true = boots + 1, 0.0, true + passes  # it was off
        running, true = running + passes, true + passes
        wall = true if is_set else true + error
        now = reckon(known, Moment(wall, str(boots), running))
        assert now.wall >= wall
        if known is not None:
            assert now.wall >= known.wall
            assert 0 <= now.elapsed - known.elapsed <= passes + 1e-6
            if known.sure and not reboots:  # in one boot it is never behind the time that passed
                assert now.sure
                assert now.wall >= known.wall + passes - 1e-6
        known = now


# Four processes that open one new file in each round; prints their errors.
AT_ONCE = """\
import os, sys, time
from pathlib import Path
from capport.stores import StoreError
from capport.stores.sqlite import database
from capport.web import records

database.PUT_SECONDS = 60.0
for number in range(20):
    at, children = time.monotonic() + 0.02, []
    for _ in range(4):
        if not (pid := os.fork()):
            try:
                time.sleep(max(0.0, at - time.monotonic()))
                records.Records(Path(sys.argv[1], f"{number}.db"))
            except StoreError as error:
                print(error, flush=True)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
"""


def test_several_processes_may_make_the_file_at_once(tmp_path: Path) -> None:
    """Two proxies with one store that start together; a command beside a portal's first start."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert len(list(tmp_path.glob("*.db"))) == 20


def test_what_is_there_can_be_read_while_another_process_writes(tmp_path: Path) -> None:
    """Opening writes nothing, so a full disk does not prevent it."""
    path = tmp_path / "portal.db"
    Records(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with contextlib.closing(Records(path)) as records:
            assert records.users() == []
