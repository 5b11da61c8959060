"""The SQLite store: the contract, its file, its schema, and time across reboots."""

import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capport.core.client import Address, ClientId, Mac, parse_address, parse_mac
from capport.core.session import Session
from capport.stores import StoreError
from capport.stores.memory import MemoryStore
from capport.stores.opening import default_store, open_store, store_path
from capport.stores.replica import FLUSH_SECONDS
from capport.stores.sqlite import housekeeping, schema
from capport.stores.sqlite import store as sqlite
from capport.stores.sqlite.housekeeping import GRACE_SECONDS
from capport.stores.sqlite.session_schema import SESSIONS
from capport.stores.sqlite.store import SqliteStore
from conftest import SOON
from stores.contract import (
    ADDRESS,
    MAC,
    OTHER,
    Shared,
    StoreContract,
    StoreMachine,
    session,
    until,
)
from stores.one_file import OneFile

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OneFile]:
    file = OneFile(tmp_path)
    yield file
    file.close()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def shared(self, file: OneFile) -> Shared:
        return file


class SqliteMachine(StoreMachine):
    def make(self) -> Shared:
        self.folder = tempfile.mkdtemp()
        return OneFile(Path(self.folder))

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder, ignore_errors=True)


SqliteMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSqliteMachine = SqliteMachine.TestCase


# --- where it is ---


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ("/var/state", "/var/state/capport/sessions.db"),
        ("", "/home/ann/.local/state/capport/sessions.db"),
        ("relative", "/home/ann/.local/state/capport/sessions.db"),
    ],
)
def test_the_default_is_a_file_in_the_state_directory(
    monkeypatch: pytest.MonkeyPatch, state: str, path: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("XDG_STATE_HOME", state)
    assert default_store() == path


def test_a_user_without_a_home_can_name_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(_: int) -> object:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(StoreError, match="XDG_STATE_HOME"):
        default_store()
    open_store(str(tmp_path / "s.db")).close()
    assert (tmp_path / "s.db").exists()


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9 100%?#.db")
    store = open_store(str(file))
    store.put(Session(ClientId("192.0.2.7"), 0.0, 1e9))
    store.close()
    assert file.exists()
    assert not (tmp_path / "caf").exists()


def test_the_default_folder_is_made_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    open_store(default_store()).close()
    folder = tmp_path / "state" / "capport"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_file_of_the_store_is_readable_to_others(file: OneFile) -> None:
    before = os.umask(0)
    try:
        file.open().put(session())
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.path.parent.iterdir()}
    names = ("", "-wal", "-shm", "-revoked", "-ballast")
    assert modes == {f"sessions.db{name}": 0o600 for name in names}


def test_a_url_names_a_store(tmp_path: Path) -> None:
    memory = open_store(":memory:")
    assert isinstance(memory, MemoryStore)
    odd = tmp_path / "a b#c?d%20é"
    odd.mkdir()
    for url in (str(odd / "s.db"), f"sqlite://{odd}/s.db", f"sqlite:///{odd}/s.db"):
        assert store_path(url) == odd / "s.db"
        store = open_store(url)
        assert isinstance(store, SqliteStore)
        store.close()
    assert sorted(path.name for path in odd.iterdir()) == ["s.db", "s.db-ballast", "s.db-revoked"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://ann:secret@192.0.2.1:6379/0", "do not belong in the URL"),
        ("redis://192.0.2.1:6379/zero", "is not redis://HOST:PORT/DB"),
        ("rediss://:6379/0", "neither a host name nor an address"),
        ("postgres://db", "not a kind of store"),
        ("sqlite://sessions.db", "a relative path"),
        ("", "names no file"),
        ("/", "names no file"),
        ("/proc/none/sessions.db", "No such file or directory; make its folder first"),
    ],
)
def test_a_url_that_names_none_says_what_would_do(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        open_store(url)


# --- its schema ---


def test_each_schema_there_ever_was_has_a_fixture() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.sql")} == {
        str(version + 1) for version in range(len(SESSIONS.migrations))
    }


@pytest.mark.parametrize("fixture", sorted(SCHEMAS.glob("*.sql")), ids=lambda path: path.stem)
def test_a_file_of_an_earlier_version_keeps_its_sessions(file: OneFile, fixture: Path) -> None:
    db = sqlite3.connect(file.path)
    db.executescript(fixture.read_text())
    db.close()
    file.time.now = 70.0  # in another boot, 100 s after it was last written
    printer, ann = sorted(file.open().sessions(), key=lambda s: s.client)
    # At its last write the fixture's clock stood at 5000: what was left then is left now.
    assert ann == Session(
        ADDRESS, 70.0 - 1000, 70.0 + 2600, 1800.0, 70.0 - 500, 1.7e9, "ann", "voucher", "Zoë"
    )
    assert printer == Session(
        MAC, 70.0 - 4000, 70.0 + 86400, None, 70.0 - 4000, 1.69e9, "cli", "grant", ""
    )


def test_each_migration_is_done_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.touch()
    more = (*SESSIONS.migrations, ("ALTER TABLE sessions ADD COLUMN note TEXT",), ("SELECT 1",))
    broken = (*more, ("CREATE TABLE half (a)", "no SQL"))
    db = schema.connect(path)
    schema.prepare(db, path, SESSIONS)
    schema.prepare(db, path, replace(SESSIONS, migrations=more))
    schema.prepare(db, path, replace(SESSIONS, migrations=more))
    with pytest.raises(sqlite3.OperationalError):
        schema.prepare(db, path, replace(SESSIONS, migrations=broken))
    assert db.execute("PRAGMA user_version").fetchone() == (len(more),)
    assert not db.execute("SELECT * FROM sqlite_schema WHERE name = 'half'").fetchall()
    db.execute("SELECT note FROM sessions")
    db.close()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("CREATE TABLE bookmarks (url)", "a SQLite database, but not of sessions"),
        ("PRAGMA user_version = 7", "a SQLite database, but not of sessions"),
        (
            f"PRAGMA application_id = {SESSIONS.application_id}; PRAGMA user_version = 99",
            r"written by a newer capport \(schema 99, this one knows",
        ),
    ],
)
def test_a_file_that_is_not_for_us_is_refused_and_left_alone(
    file: OneFile, made: str, says: str
) -> None:
    db = sqlite3.connect(file.path)
    db.executescript(made)
    db.close()
    before = file.path.read_bytes()
    with pytest.raises(StoreError, match=says):
        file.open()
    assert file.path.read_bytes() == before


# --- time ---


def test_a_session_goes_on_after_a_reboot_with_what_it_had_left(file: OneFile) -> None:
    store = file.open()
    store.put(session(idle=600.0))  # an hour, from 1000
    file.time.now = 1400.0
    store.close()
    for _ in range(3):  # each boot takes 100 s of it, and the time between them nothing
        file.time.reboot(50.0)
        store = file.open()
        file.time.now = 150.0
        store.touch(MAC, 150.0)
        store.close()
    file.time.reboot(7.0)
    found = file.open().find((MAC,), 7.0)
    assert found is not None
    assert found.expires - 7.0 == 3600 - 400 - 3 * 100
    assert found.ends - 7.0 == 600


@settings(deadline=None, max_examples=25)
@given(
    lived=st.integers(0, 5000),
    written=st.integers(0, 5000),
    boot=st.integers(1, 10**6),
    lifetime=st.integers(1, 4000),
)
def test_a_power_cut_gives_at_most_the_unwritten_time_again_and_never_more_than_granted(
    lived: int, written: int, boot: int, lifetime: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = OneFile(Path(folder))
        store = file.open()
        store.put(session(expires=1000.0 + lifetime))
        file.time.now += written
        store.put(session(ADDRESS))  # writes the clock down
        cut = OneFile(Path(folder) / "cut")
        cut.path.parent.mkdir()
        with store.database.writing:  # which keeps the background from writing the clock down again
            file.time.now += lived
            for suffix in ("", "-wal"):  # what is on the disk at this moment
                shutil.copy(f"{file.path}{suffix}", f"{cut.path}{suffix}")
        file.close()
        cut.time.reboot(float(boot))
        found = cut.open().find((MAC,), float(boot))
        left = max(0, lifetime - written)
        assert (found.expires - boot if found else 0) == left
        cut.close()


def test_the_clock_is_written_down_each_minute(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    store = file.open()
    store.put(session())
    db = sqlite3.connect(file.path)
    before = db.execute("SELECT checkpoint FROM clock").fetchone()[0]
    for _ in range(3):
        file.time.now += 61

        def written() -> bool:
            checkpoint = db.execute("SELECT checkpoint FROM clock").fetchone()[0]
            return bool(checkpoint - before == file.time.now - 1000)

        until(written, "a checkpoint of the clock")
    db.close()


def test_background_work_that_fails_is_tried_again_and_the_log_says_so_once(
    file: OneFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.0)
    errors, went_on = [KeyError("an unforeseen fault")] * 3, threading.Event()

    def look() -> None:
        if errors:
            raise errors.pop()
        went_on.set()

    file.open().look_too(look)
    assert went_on.wait(SOON)
    assert caplog.text.count("The store's background work failed; it tries again") == 1


def test_a_clock_that_went_back_within_a_boot_gives_no_time(file: OneFile) -> None:
    # A virtual machine's snapshot was restored, but not its disk.
    file.open().put(session())
    file.time.now = 4000.0
    file.open().put(session(ADDRESS, now=4000.0))
    file.time.now = 1000.0
    store = file.open()
    store.put(session(OTHER))
    found = store.find((MAC,), 1000.0)
    assert found is not None
    assert found.expires == 1600.0


def test_touches_are_written_back_in_batches(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    one, two = file.open(), file.open()
    clients = [ClientId(f"198.51.100.{number}") for number in range(200)]
    for client in clients:
        one.put(session(client, idle=600.0))
    file.time.now = 1100.0
    for client in clients:
        one.touch(client, 1100.0)
    until(lambda: len(list(two.sessions())) == 200, "the grants")
    time.sleep(0.3)
    assert {s.last_seen for s in two.sessions()} == {1000.0}  # it is not time yet
    file.time.now += FLUSH_SECONDS
    until(lambda: {s.last_seen for s in two.sessions()} == {1100.0}, "the batch")
    db = sqlite3.connect(file.path)
    assert db.execute("SELECT count(*) FROM changes").fetchone() == (400,)
    db.close()


def test_touches_that_could_not_be_written_back_are_later(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "PUT_SECONDS", 0.05)
    store = file.open()
    store.put(session(idle=600.0))
    store.touch(MAC, 1010.0)
    locker = sqlite3.connect(file.path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    file.time.now += FLUSH_SECONDS + 10
    until(lambda: store.fault is not None, "a fault")
    locker.execute("ROLLBACK")
    file.time.now += FLUSH_SECONDS
    seen = "SELECT last_seen - granted FROM sessions"
    until(lambda: locker.execute(seen).fetchone() == (10.0,), "the batch")
    until(lambda: store.fault is None, "the end of the fault")
    locker.close()


def test_what_is_over_is_cleared_away_in_a_while(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "BATCH", 3)
    one, two = file.open(), file.open()
    for number in range(10):
        one.put(session(ClientId(f"192.0.2.{number}"), expires=1060.0))
    one.put(session(MAC))
    one.put(session(ADDRESS, idle=100.0))
    one.put(session(OTHER, idle=2000.0))
    until(lambda: len(list(two.sessions())) == 13 - 1)  # 192.0.2.7 is ADDRESS
    notified: list[ClientId] = []
    two.watch(notified.append)
    file.time.now = 1060.0 + GRACE_SECONDS - 1
    time.sleep(0.2)
    assert len(list(two.sessions())) == 12
    file.time.now = 1100.0 + GRACE_SECONDS + housekeeping.UPKEEP_SECONDS
    for store in (one, two):
        until(lambda s=store: {x.client for x in s.sessions()} == {MAC, OTHER}, "clearing")  # type: ignore[misc]
    assert notified == []  # they were over before, so nothing changed


def test_the_log_does_not_grow_for_ever(file: OneFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capport.stores.sqlite.database.COMMITS_PER_CHECKPOINT", 20)
    store = file.open()
    log = Path(f"{file.path}-wal")
    sizes = []
    for turn in range(3):
        for number in range(200):
            store.put(session(ClientId(f"10.0.{turn}.{number}"), name="x" * 200))
            sizes.append(log.stat().st_size)
    # It starts again after a checkpoint, unless a process reads in it just then: so now and then
    # one does not count, but never many in a row.
    assert sizes[-1] < sizes[19] * 10
    assert len(list(store.sessions())) == 600


# --- other processes ---


def test_a_process_that_lags_behind_the_journal_of_changes_reads_everything(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "KEPT_CHANGES", 2)
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    one, two = file.open(), file.open()
    one.put(session(MAC))
    until(lambda: two.find((MAC,), 1000.0) is not None)
    notified: list[ClientId] = []
    two.watch(notified.append)
    with two.database.reading:  # as if its thread had been stopped
        for number in range(10):
            one.put(session(ClientId(f"198.51.100.{number}")))
        one.revoke(MAC)
        file.time.now += housekeeping.UPKEEP_SECONDS + 1
        db = sqlite3.connect(file.path)
        until(lambda: db.execute("SELECT count(*) FROM changes").fetchone()[0] == 2, "a trim")
        db.close()
    until(lambda: two.find((MAC,), 1000.0) is None)
    assert len(list(two.sessions())) == 10
    until(lambda: len(notified) == 11 and MAC in notified, "the watcher")


def test_without_inotify_it_looks_often_enough(
    file: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "capport.stores.sqlite.file_notifier.FileNotifier.watch", lambda notifier: False
    )
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 3600.0)
    one, two = file.open(), file.open()
    one.put(session())
    until(lambda: two.find((MAC,), 1000.0) is not None)


def test_a_file_that_is_gone_grants_nothing_and_revokes_all_the_same(file: OneFile) -> None:
    store = file.open()
    store.put(session(MAC))
    store.put(session(ADDRESS))
    away = file.path.rename(file.path.with_name("away"))
    with pytest.raises(StoreError, match="No such file or directory; put it back"):
        store.put(session(OTHER))
    assert store.find((OTHER,), 1000.0) is None
    assert store.find((MAC,), 1000.0)
    assert store.revoke(MAC)
    assert store.find((MAC,), 1000.0) is None
    away.rename(file.path)
    again = replace(session(OTHER), name="again")
    store.put(again)
    assert {s.client for s in file.open().sessions()} == {ADDRESS, OTHER}


SECOND_MAC = parse_mac("02:00:00:00:00:08")
FILED = [
    *(MAC, ADDRESS, OTHER, SECOND_MAC, "192.0.2.70", "192.0.2.77", "2001:db8::70"),
    *(f"{MAC}@192.0.2.7", f"{MAC}@192.0.2.77", f"{MAC}@2001:db8::7"),
    *(f"{SECOND_MAC}@192.0.2.7", f"{SECOND_MAC}@192.0.2.70"),
]


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ((), set()),
        ((parse_mac(MAC),), {filed for filed in FILED if filed.startswith(MAC)}),
        ((parse_address(ADDRESS),), {filed for filed in FILED if filed.split("@")[-1] == ADDRESS}),
        ((parse_address("2001:db8::7"), SECOND_MAC), {OTHER, *FILED[9:], SECOND_MAC}),
    ],
)
def test_a_store_about_some_clients_knows_of_no_others_and_does_its_work(
    file: OneFile, about: tuple[Mac | Address, ...], found: set[str]
) -> None:
    whole = file.open()
    for client in FILED:
        whole.put(session(ClientId(client)))
    clock, boot_id = file.time.clock, file.time.boot_id
    store = SqliteStore(file.path, about=about, clock=clock, boot_id=boot_id, spares=())
    assert {s.client for s in store.sessions()} == found
    store.put(session(ClientId("198.51.100.7")))
    assert store.find((ClientId("198.51.100.7"),), 1000.0)
    for client in (MAC, OTHER):
        assert store.revoke(ClientId(client)) is True
    assert store.revoke(ClientId("198.51.100.8")) is False
    until(lambda: len(list(whole.sessions())) == len(FILED) + 1 - 2, "the changes")
    store.close()
    assert {s.client for s in whole.sessions()} == {*FILED, "198.51.100.7"} - {MAC, OTHER}


def test_what_another_process_makes_a_store_meanwhile_is_one(tmp_path: Path) -> None:
    """Two processes that start together: the queries that recognize a store see one state."""
    path = tmp_path / "sessions.db"
    path.touch()
    with closing(schema.connect(path)) as db, closing(schema.connect(path)) as other:
        other.execute("PRAGMA busy_timeout = 0")

        def meanwhile(statement: str) -> None:
            if statement.startswith("SELECT"):  # not the first question
                with suppress(sqlite3.OperationalError):  # it has to wait
                    schema.prepare(other, path, SESSIONS)

        db.set_trace_callback(meanwhile)
        schema.prepare(db, path, SESSIONS)
        db.set_trace_callback(None)
        schema.prepare(other, path, SESSIONS)
        assert db.execute("PRAGMA application_id").fetchone() == (SESSIONS.application_id,)
