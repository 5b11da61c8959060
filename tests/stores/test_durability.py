"""What was acknowledged is there: through kill -9, power cuts, full, failing and locked disks."""

import contextlib
import os
import pwd
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import requires
from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.opening import open_store
from capport.stores.sqlite.revocation_file import BALLAST, RevocationFile
from capport.stores.sqlite.store import SqliteStore
from stores import writers
from stores.contract import ADDRESS, MAC, OTHER, FakeTime, session, until
from stores.one_file import OneFile
from stores.writers import Writer

KILLS, WRITERS = 300, 3
CUTS = 8


@dataclass
class Ledger:
    """What one writer reported, and what it was doing when it was killed."""

    done: dict[str, str | None] = field(default_factory=dict)
    doing: tuple[str, str | None] | None = None
    acknowledged: int = 0

    def read(self, text: str) -> None:
        self.doing = None
        for line in text.splitlines():
            said, what, client, mark = line.split()
            state = (client, mark if what == writers.GRANT else None)
            if said == "does":
                self.doing = state
            else:
                self.done[client], self.doing = state[1], None
                self.acknowledged += 1

    def settle(self, there: dict[str, str]) -> None:
        """Asserts that everything acknowledged holds; what was not acknowledged may or may not."""
        for client, mark in self.done.items():
            may = {mark}
            if self.doing is not None and self.doing[0] == client:
                may.add(self.doing[1])
            assert there.get(client) in may, f"{client}: {there.get(client)}, not {may}"
        if self.doing is not None:
            self.done[self.doing[0]] = there.get(self.doing[0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path, dice = tmp_path / "sessions.db", random.Random(511)
    ledgers = [Ledger() for _ in range(WRITERS)]
    outs = [tmp_path / f"out{number}" for number in range(WRITERS)]
    deadline, killed = time.monotonic() + 30, 0
    with subprocess.Popen(
        [sys.executable, writers.__file__, "fork_writers", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forks:
        assert forks.stdin
        assert forks.stdout
        while killed < KILLS and (killed < 2 * WRITERS or time.monotonic() < deadline):
            turn, pids = killed // WRITERS, []
            for number, out in enumerate(outs):
                out.write_bytes(b"")
                forks.stdin.write(f"{number} {killed} {out}\n")
                forks.stdin.flush()
                pids.append(int(forks.stdout.readline()))
            if turn % 2:  # in the middle of their work, and else wherever they are
                until(lambda: all(out.read_bytes().count(b"did") > 2 for out in outs), "some work")
                time.sleep(dice.random() * 0.05)
            else:
                time.sleep(dice.random() * 0.15)
            for pid in pids:
                time.sleep(dice.random() * 0.005)
                os.kill(pid, signal.SIGKILL)  # ProcessLookupError, had it ended by itself
                killed += 1
            until(lambda pids=pids: not any(map(alive, pids)), "the end of the writers")  # type: ignore[misc]
            for ledger, out in zip(ledgers, outs, strict=True):
                ledger.read(out.read_text())
            store = SqliteStore(path, spares=())
            there = {str(s.client): s.by for s in store.sessions()}
            for ledger in ledgers:
                ledger.settle(there)
            store.close()
        forks.stdin.close()
    acknowledged = sum(ledger.acknowledged for ledger in ledgers)
    print(f"{killed} writers killed, {acknowledged} acknowledgements kept")
    assert acknowledged > killed  # at least three by every second writer


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@contextlib.contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextlib.contextmanager
def ext4(image: Path, at: Path) -> Iterator[Path]:
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted("-o", "loop", str(image), at=at) as folder:
        yield folder


def cut_power(tmp_path: Path, synchronous: str) -> tuple[int, int]:
    """Cuts the power at some acknowledgements; how many of them held, and how many there were.

    The image holds what the file system has handed to the disk: nothing of what the kernel still
    keeps in memory. So a copy of it is the disk as it is when the power goes.
    """
    right = 0
    with ext4(tmp_path / "disk", tmp_path / "mnt") as folder:
        store = SqliteStore(folder / "sessions.db", spares=())
        store.put(writers.granted("192.0.2.200"))
        store.close()
        os.sync()
        writer = Writer(folder / "sessions.db", synchronous)
        try:
            for number in range(CUTS):
                what, client = writers.GRANT, f"192.0.2.{number}"
                if number % 4 == 3:  # and a grant's revocation
                    what, client = writers.REVOKE, f"192.0.2.{number - 1}"
                assert writer.ask(what, client) == f"did {what} {client}"
                copy = tmp_path / f"copy{number}"
                shutil.copyfile(tmp_path / "disk", copy)
                with mounted("-o", "loop", str(copy), at=tmp_path / "after") as after:
                    store = SqliteStore(after / "sessions.db", spares=())
                    there = {str(s.client) for s in store.sessions()}
                    store.close()
                assert "192.0.2.200" in there
                right += (client in there) == (what == writers.GRANT)
                copy.unlink()
        finally:
            writer.end()
    return right, CUTS


@requires.root()
def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    right, cuts = cut_power(tmp_path, "FULL")
    assert right == cuts


@requires.root()
def test_a_power_cut_loses_no_revocation_that_the_database_did_not_take(tmp_path: Path) -> None:
    with ext4(tmp_path / "disk", tmp_path / "mnt") as folder:
        path = folder / "sessions.db"
        store = SqliteStore(path, spares=())
        for client in ("192.0.2.1", "192.0.2.2"):
            store.put(writers.granted(client))
        store.close()
        writer = Writer(path)
        locker = sqlite3.connect(path, isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        os.sync()
        try:
            assert writer.ask(writers.REVOKE, "192.0.2.1") == "did revoke 192.0.2.1"
            shutil.copyfile(tmp_path / "disk", tmp_path / "copy")
        finally:
            writer.end()
            locker.close()
        with mounted("-o", "loop", str(tmp_path / "copy"), at=tmp_path / "after") as after:
            store = SqliteStore(after / "sessions.db", spares=())
            assert [s.client for s in store.sessions()] == ["192.0.2.2"]
            store.close()


@requires.root()
def test_a_power_cut_would_lose_grants_with_less_than_full_synchronisation(tmp_path: Path) -> None:
    right, cuts = cut_power(tmp_path, "NORMAL")
    assert right < cuts, "the test above could not fail"


@requires.root()
def test_a_full_disk_grants_nothing_and_revokes_everything(tmp_path: Path) -> None:
    clients = [ClientId(f"192.0.2.{number}") for number in range(100)]
    with mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", at=tmp_path / "mnt") as folder:
        file = OneFile(folder)
        store, other = file.open(), file.open()
        for client in clients:
            store.put(session(client))
        fill(folder / "filling")
        refused = "the disk is full; free some space on it"
        with pytest.raises(StoreError, match=refused):
            put_many(store)  # until the log has no room left
        at = len(list(store.sessions()))
        fill(folder / "rest")
        assert store.find((clients[0],), 1000.0)
        for client in clients[:-1]:
            assert store.revoke(client)
            fill(folder / "rest")  # the filler also takes what the store frees
        assert store.find((clients[0],), 1000.0) is None
        until(lambda: other.find((clients[-2],), 1000.0) is None, "a revocation")
        assert len(list(store.sessions())) == at - 99
        file.close()
        again = file.open()  # a restart, with the disk still full
        assert not {s.client for s in again.sessions()} & set(clients[:-1])
        assert again.find((clients[-1],), 1000.0)
        (folder / "filling").unlink()
        (folder / "rest").unlink()
        again.put(session(MAC))
        file.close()


def put_many(store: SqliteStore) -> None:
    for number in range(10_000):
        store.put(session(ClientId(f"198.51.100.{number % 250}"), name="x" * 2000))


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 4096, 512):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass


@requires.root()
def test_the_ballast_is_there_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capport.stores.sqlite.store.TURN_SECONDS", 0.02)
    ballast = tmp_path / "sessions.db-ballast"
    file = OneFile(tmp_path)
    store = file.open()
    assert ballast.stat().st_blocks * 512 >= BALLAST
    os.truncate(ballast, 0)
    file.time.now += 61
    until(lambda: ballast.stat().st_blocks * 512 >= BALLAST, "the ballast")
    store.close()


@requires.root()
def test_a_disk_that_turns_read_only_grants_nothing_and_revokes_until_the_reboot(
    tmp_path: Path,
) -> None:
    with ext4(tmp_path / "disk", tmp_path / "mnt") as folder:
        file = OneFile(folder)
        run = tmp_path / "run"

        def opened() -> SqliteStore:
            time = file.time
            return SqliteStore(file.path, clock=time.clock, boot_id=time.boot_id, spares=[run])

        store, other = opened(), opened()
        for client in (MAC, ADDRESS):
            store.put(session(client))
        # As ext4 does by itself when its disk fails (errors=remount-ro).
        subprocess.run(["mount", "-o", "remount,abort", str(folder)], check=False)
        with pytest.raises(StoreError, match=str(file.path)):
            store.put(session(OTHER))
        assert store.find((OTHER,), 1000.0) is None
        assert store.find((ADDRESS,), 1000.0)
        with pytest.raises(StoreError, match="is revoked, but only until the next reboot"):
            store.revoke(MAC)
        assert store.find((MAC,), 1000.0) is None
        until(lambda: other.find((MAC,), 1000.0) is None, "a revocation")
        assert other.find((ADDRESS,), 1000.0)
        assert [path.read_text().split() for path in run.iterdir()] == [[MAC]]
        store.close()
        other.close()


@requires.root()
def test_a_file_that_is_read_only_at_the_start_is_read_and_not_written(tmp_path: Path) -> None:
    file = OneFile(tmp_path / "rw")
    file.path.parent.mkdir()
    file.open().put(session(MAC))
    keeps_log = file.open()
    with mounted("--bind", str(file.path.parent), at=tmp_path / "ro") as folder:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        time = file.time
        time.reboot(5.0)
        store = SqliteStore(
            folder / "sessions.db", clock=time.clock, boot_id=time.boot_id, spares=[]
        )
        found = store.find((MAC,), 5.0)
        assert found is not None
        assert found.expires == 3605.0
        assert store.fault is not None
        with pytest.raises(StoreError, match="cannot be written"):
            store.put(session(OTHER))
        with pytest.raises(StoreError, match="in this process only"):
            store.revoke(MAC)
        assert store.find((MAC,), 5.0) is None
        store.close()
    keeps_log.close()
    file.close()


@pytest.mark.usefixtures("in_haste")
def test_a_locked_file_grants_nothing_in_time_and_revokes_at_once(tmp_path: Path) -> None:
    file = OneFile(tmp_path)
    store, other = file.open(), file.open()
    for client in (MAC, ADDRESS):
        store.put(session(client))
    locker = sqlite3.connect(file.path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="another process keeps it locked; find it with fuser"):
        store.put(session(OTHER))
    assert store.revoke(MAC) is True
    until(lambda: other.find((MAC,), 1000.0) is None, "a revocation")
    copy = OneFile(tmp_path / "copy")  # the power goes while it is still locked
    copy.path.parent.mkdir()
    for suffix in ("", "-wal", "-revoked"):
        shutil.copy(f"{file.path}{suffix}", f"{copy.path}{suffix}")
    assert [s.client for s in copy.open().sessions()] == [ADDRESS]
    copy.close()
    locker.execute("ROLLBACK")
    until(lambda: (tmp_path / "sessions.db-revoked").stat().st_size == 0, "the journal")
    assert locker.execute("SELECT client FROM sessions").fetchall() == [(ADDRESS,)]
    locker.close()
    store.put(session(MAC))  # and may be granted again
    until(lambda: other.find((MAC,), 1000.0) is not None, "a grant")
    file.close()
    assert {s.client for s in file.open().sessions()} == {MAC, ADDRESS}
    file.close()


@pytest.mark.usefixtures("in_haste")
def test_a_grant_after_a_noted_revocation_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "turn", lambda store: None)  # it must not depend on it
    file = OneFile(tmp_path)
    store = file.open()
    for turn in range(5):
        store.put(session(name=str(turn)))
        locker = sqlite3.connect(file.path, isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        store.revoke(MAC)
        locker.close()
    store.put(session(name="last"))
    assert store.find((MAC,), 1000.0)
    file.close()
    assert [s.name for s in file.open().sessions()] == ["last"]
    file.close()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:5000],
    "no database": lambda data: b"\0" * 100 + data[100:],
    "a page of noise": lambda data: data[:4096] + random.Random(1).randbytes(4096 * 4),
    "text": lambda data: b"sessions\n" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_and_says_what_to_do(tmp_path: Path, damage: str) -> None:
    file = OneFile(tmp_path)
    store = file.open()
    for number in range(100):
        store.put(session(ClientId(f"192.0.2.{number}")))
    file.close()
    good = file.path.read_bytes()
    file.path.write_bytes(DAMAGE[damage](good))
    with pytest.raises(StoreError, match=r"sessions\.db: damaged .* put a backup in its place"):
        file.open()
    # Started closed: no client is known, nothing is granted, and a revocation is kept.
    closed = file.open(start_closed=True)
    assert closed.fault is not None
    assert "damaged" in closed.fault
    assert list(closed.sessions()) == []
    with pytest.raises(StoreError, match="damaged"):
        closed.put(session(MAC))
    closed.revoke(ClientId("192.0.2.1"))
    file.path.with_name("backup").write_bytes(good)
    file.path.with_name("backup").replace(file.path)
    until(lambda: len(list(closed.sessions())) == 99, "the backup")
    assert closed.find((ClientId("192.0.2.1"),), 1000.0) is None
    closed.put(session(MAC))
    assert closed.fault is None
    file.close()
    assert len(list(file.open().sessions())) == 100
    file.close()


def test_an_id_that_no_client_can_have_is_damage_whenever_it_is_read(tmp_path: Path) -> None:
    file = OneFile(tmp_path)
    store = file.open()
    store.put(session(OTHER))
    store.put(session(MAC))
    with contextlib.closing(sqlite3.connect(file.path)) as db:
        db.execute("UPDATE sessions SET client = ? WHERE client = ?", ("x" * 256, MAC))
        db.execute("INSERT INTO changes (client) VALUES (?)", ("x" * 256,))
        db.commit()
    with pytest.raises(StoreError, match=r"damaged \(an id of 256 characters\)"):
        store.put(session(ADDRESS))
    store.revoke(OTHER)
    assert store.find((OTHER,), 1000.0) is None
    file.close()
    with pytest.raises(StoreError, match=r"damaged \(an id of 256 characters\)"):
        file.open()
    assert list(file.open(start_closed=True).sessions()) == []
    file.close()


def test_with_a_file_damaged_in_use_known_clients_stay_known_and_can_be_revoked(
    tmp_path: Path,
) -> None:
    file = OneFile(tmp_path)
    store, other = file.open(), file.open()
    for number in range(200):
        store.put(session(ClientId(f"192.0.2.{number}"), name="x" * 500))
    with file.path.open("r+b") as damaged:
        damaged.write(random.Random(1).randbytes(file.path.stat().st_size))
    Path(f"{file.path}-wal").write_bytes(b"")
    one, two = ClientId("192.0.2.1"), ClientId("192.0.2.2")
    store.revoke(one)
    assert store.find((one,), 1000.0) is None
    assert store.find((two,), 1000.0)
    until(lambda: other.find((one,), 1000.0) is None, "a revocation")
    with contextlib.suppress(StoreError):
        file.close()
    with pytest.raises(StoreError):
        file.open()


@requires.tool("strace")
@pytest.mark.parametrize("when", range(1, 5))
def test_a_grant_whose_sync_fails_is_not_acknowledged(tmp_path: Path, when: int) -> None:
    path = tmp_path / "sessions.db"
    SqliteStore(path, spares=()).close()
    strace = ("strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-e")
    fault = f"inject=fdatasync,fsync:error=EIO:when={when}+"
    writer = Writer(path, before=(*strace, fault, "-o", "/dev/null"))
    try:
        answers = [writer.ask(writers.GRANT, f"192.0.2.{number}") for number in range(4)]
        said = [answer.split()[0] for answer in answers]
        assert said == ["did"] * said.count("did") + ["failed"] * said.count("failed")
        assert said.count("failed") >= 1
        assert "the disk failed" in answers[-1]
    finally:
        writer.end()
    store = SqliteStore(path, spares=())
    there = {str(s.client) for s in store.sessions()}
    store.close()
    assert {f"192.0.2.{number}" for number in range(said.count("did"))} <= there


@requires.tool("faketime")
def test_the_wall_clock_neither_ends_a_session_nor_prolongs_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path, spares=())
    store.put(writers.granted("192.0.2.7"))
    store.close()
    module = [sys.executable, writers.__file__, "tell", str(path)]
    days, left = [], []
    for jump in ("+0", "+1 day", "-1 day", "@1970-01-01 00:00:10"):
        out = subprocess.run(
            ["faketime", "-f", jump.replace(" day", "d"), *module],
            env={**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        wall, found = out.split()
        days.append(int(wall) // 86400)
        left.append(float(found.removeprefix("192.0.2.7=")))
    assert days[1] - days[0] in (1, 2)  # or faketime did nothing
    assert days[2] - days[0] in (-1, 0)
    assert days[3] == 0
    assert all(3000 < seconds <= 3600 for seconds in left)
    assert left == sorted(left, reverse=True)


def test_default_addon_start_with_a_broken_store_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    path.write_text("not a database, but long enough to be asked\n" * 100)
    with pytest.raises(StoreError, match="damaged"):
        open_store(str(path))
    store = open_store(str(path), start_closed=True)
    assert store.find((MAC,), FakeTime().now) is None
    store.close()


@requires.root()
def test_what_root_makes_first_in_the_portals_folder_is_the_portals() -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to others
        folder = Path(made)
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        shared_by_root_and(nobody, folder)


def shared_by_root_and(nobody: pwd.struct_passwd, folder: Path) -> None:
    path = folder / "sessions.db"
    writer = Writer(path)
    try:
        assert writer.ask(writers.GRANT, "192.0.2.7") == "did grant 192.0.2.7"
        assert {file.name for file in folder.iterdir()} == {
            f"sessions.db{name}" for name in ("", "-wal", "-shm", "-revoked", "-ballast")
        }
        for file in folder.iterdir():
            status = file.stat()
            assert (status.st_uid, status.st_gid) == (nobody.pw_uid, nobody.pw_gid), file
            assert status.st_mode & 0o777 == 0o600
    finally:
        writer.end()
    module = [sys.executable, writers.__file__, "grant_as", str(path), "nobody", "192.0.2.8"]
    subprocess.run(module, check=True)
    store = SqliteStore(path, spares=())
    assert {s.client for s in store.sessions()} == {"192.0.2.7", "192.0.2.8"}
    store.close()


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of the user nobody, with a store in it that this user has made."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to others
        folder = Path(made)
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        for client in ("192.0.2.7", "192.0.2.8"):
            path = str(folder / "sessions.db")
            module = [sys.executable, writers.__file__, "grant_as", path, "nobody", client]
            subprocess.run(module, check=True)
        yield folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of root's."""
    file = tmp_path / "precious"
    file.write_text("root's\n")
    os.utime(file, (511, 511))
    return file


def untouched(file: Path) -> bool:
    status = file.stat()
    owner = status.st_uid, status.st_gid
    return (file.read_text(), owner, status.st_mtime) == ("root's\n", (0, 0), 511)


def symlinked(at: Path, file: Path) -> None:
    at.unlink(missing_ok=True)
    at.symlink_to(file)


def hard_linked(at: Path, file: Path) -> None:
    # A kernel with fs.protected_hardlinks=0 lets any user do this.
    at.unlink(missing_ok=True)
    try:
        at.hardlink_to(file)
    except OSError:
        pytest.skip("the two folders are not on one file system")


def piped(at: Path, file: Path) -> None:
    at.unlink(missing_ok=True)
    os.mkfifo(at)


TRAPS = pytest.mark.parametrize("trap", [symlinked, hard_linked, piped])


@requires.root()
def test_what_root_makes_in_somebody_elses_folder_is_theirs_though_the_file_is_gone(
    theirs: Path,
) -> None:
    for file in theirs.iterdir():
        file.unlink()
    RevocationFile(theirs / "sessions.db-revoked", theirs / "sessions.db").add(ADDRESS)
    assert (theirs / "sessions.db-revoked").stat().st_uid == theirs.stat().st_uid


@requires.root()
@TRAPS
def test_root_changes_nothing_that_was_put_in_place_of_journal_and_ballast(
    theirs: Path, precious: Path, trap: Callable[[Path, Path], None]
) -> None:
    for name in ("-revoked", "-ballast"):
        trap(theirs / f"sessions.db{name}", precious)
    store = SqliteStore(theirs / "sessions.db", spares=())
    store.put(session(MAC))
    assert store.revoke(MAC)
    store.database.free_room()
    store.close()
    assert untouched(precious)


@requires.root()
@TRAPS
def test_root_frees_no_room_through_a_link_where_the_log_cannot_be_opened(
    theirs: Path, precious: Path, trap: Callable[[Path, Path], None]
) -> None:
    trap(theirs / "sessions.db-ballast", precious)
    (theirs / "sessions.db-wal").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(theirs / "sessions.db", spares=())
    assert untouched(precious)


@requires.root()
@TRAPS
@pytest.mark.usefixtures("in_haste")
def test_root_notes_no_revocation_in_a_file_of_its_own_and_says_so(
    theirs: Path, precious: Path, trap: Callable[[Path, Path], None]
) -> None:
    path = theirs / "sessions.db"
    trap(Path(f"{path}-revoked"), precious)
    store = SqliteStore(path, spares=())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")  # as its owner can at any time
        with pytest.raises(StoreError, match="in this process only"):
            store.revoke(ClientId("192.0.2.7"))
        db.execute("ROLLBACK")
    store.put(session(MAC))
    store.close()
    assert untouched(precious)


@requires.root()
def test_a_journal_with_a_second_name_still_counts_and_grants_wait_for_its_end(
    tmp_path: Path,
) -> None:
    path, kept = tmp_path / "sessions.db", tmp_path / "kept"
    store = SqliteStore(path, spares=())
    store.put(session(ADDRESS))
    store.close()
    RevocationFile(Path(f"{path}-revoked"), path).add(ADDRESS)
    kept.hardlink_to(f"{path}-revoked")  # as `cp -al` makes a backup
    store = SqliteStore(path, spares=())
    assert store.find((ADDRESS,), 1000.0) is None
    with pytest.raises(StoreError, match=r"sessions\.db-revoked: cannot be emptied .*hard link"):
        store.put(session(MAC))
    kept.unlink()
    store.put(session(MAC))
    store.close()


@requires.root()
@pytest.mark.parametrize("there", [True, False])
def test_root_follows_no_link_to_a_database_that_somebody_else_made(
    theirs: Path, tmp_path: Path, *, there: bool
) -> None:
    target, link = tmp_path / "precious", theirs / "sessions.db"
    if there:
        target.touch()  # SQLite takes an empty file for a database
    symlinked(link, target)
    os.lchown(link, theirs.stat().st_uid, -1)
    (tmp_path / "mine.db").symlink_to(link)  # root's, but it leads to theirs
    for path in (link, tmp_path / "mine.db"):
        with pytest.raises(StoreError, match="root follows none; name the file itself"):
            open_store(str(path))
    assert target.exists() == there
    assert not there or target.stat().st_size == 0
    assert not list(tmp_path.glob("precious-*"))


@requires.root()
def test_root_follows_roots_own_link_to_a_database(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(theirs)
    store = open_store(str(tmp_path / "folder" / ".." / theirs.name / "sessions.db"))
    assert {s.client for s in store.sessions()} == {"192.0.2.7", "192.0.2.8"}
    store.close()


@requires.root()
def test_root_gives_nothing_away_through_a_link(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    secret = tmp_path / "secret"
    secret.touch()
    for name in ("-revoked", "-ballast"):
        (tmp_path / f"sessions.db{name}").symlink_to(secret)
    store = SqliteStore(tmp_path / "sessions.db", spares=())
    store.put(session(MAC))
    store.close()
    assert (secret.stat().st_uid, secret.stat().st_size) == (0, 0)
