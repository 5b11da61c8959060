"""The store's file is replaced or removed while it is in use: the new one decides, if any."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.sqlite import locks
from capport.stores.sqlite import store as sqlite
from capport.stores.sqlite.session_schema import SESSIONS
from capport.stores.sqlite.store import SqliteStore
from commandline import capport
from proxy.appliance import appliance, ask
from stores import writers
from stores.contract import ADDRESS, MAC, OTHER, session, until
from stores.one_file import OneFile
from stores.writers import Writer
from suspension import suspend

GOES, STAYS, COMES = "192.0.2.1", "192.0.2.2", "192.0.2.3"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[Writer]:
    """A process that has the store at `path` open, as the proxy has."""
    process = Writer(path)
    try:
        yield process
    finally:
        process.end()


def knows(process: Writer, client: str) -> bool:
    return process.ask(writers.FIND, client).startswith("did")


def does(process: Writer, what: str, client: str) -> None:
    assert process.ask(what, client) == f"did {what} {client}"


def command(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return capport(*arguments, "--sessions", str(path))


def backup(path: Path, *clients: str) -> Path:
    """Another store with these clients, in one file."""
    made = path.with_name("backup") / "sessions.db"
    shutil.rmtree(made.parent, ignore_errors=True)
    made.parent.mkdir()
    store = SqliteStore(made, spares=())
    for client in clients:
        store.put(writers.granted(client))
    store.close()
    return made


def clients(path: Path) -> set[str]:
    """The clients that have a session in the file now, which must be sound."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = SqliteStore(path, spares=())
    found = {str(s.client) for s in store.sessions()}
    store.close()
    return found


def remove(path: Path) -> None:
    for file in path.parent.glob("sessions.db*"):
        file.unlink()


def made_anew(path: Path) -> None:
    remove(path)
    for client in (STAYS, COMES):
        assert command("grant", client, path=path).returncode == 0


def moved_over(path: Path) -> None:
    backup(path, STAYS, COMES).replace(path)


def moved_after_the_other_was(path: Path) -> None:
    made = backup(path, STAYS, COMES)
    path.rename(path.with_name("old"))
    made.rename(path)


def copied_to_where_it_was_deleted(path: Path) -> None:
    made = backup(path, STAYS, COMES)
    path.unlink()
    with path.open("wb") as file:
        for byte in range(0, made.stat().st_size, 4096):  # as cp does, but slowly
            file.write(made.read_bytes()[byte : byte + 4096])
            file.flush()
            time.sleep(0.02)


REPLACEMENTS = [made_anew, moved_over, moved_after_the_other_was, copied_to_where_it_was_deleted]


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_the_new_file_holds_in_each_process_that_had_the_old_one_open(
    path: Path, replace: Callable[[Path], None]
) -> None:
    with in_use(path) as proxy:
        for client in (GOES, STAYS):
            does(proxy, writers.GRANT, client)
        replace(path)
        until(lambda: not knows(proxy, GOES), "the end of the session that is not in it")
        until(lambda: knows(proxy, COMES), "the session that is in it")
        assert knows(proxy, STAYS)
        assert command("revoke", COMES, path=path).stdout == f"{COMES} is revoked\n"
        until(lambda: not knows(proxy, COMES), "a revocation in the new file")
        does(proxy, writers.GRANT, "192.0.2.4")
        assert command("grant", "192.0.2.5", path=path).returncode == 0
        until(lambda: knows(proxy, "192.0.2.5"), "a grant in the new file")
    assert clients(path) == {STAYS, "192.0.2.4", "192.0.2.5"}


def test_what_was_acknowledged_before_stays_in_the_file_that_was_moved_away(path: Path) -> None:
    with in_use(path) as proxy:
        does(proxy, writers.GRANT, GOES)
        path.rename(path.with_name("old"))
        backup(path, STAYS).rename(path)
        until(lambda: knows(proxy, STAYS), "the session in the new one")
        path.rename(path.with_name("new"))
        path.with_name("old").rename(path)
        until(lambda: knows(proxy, GOES), "the session in the old one")
        assert not knows(proxy, STAYS)
    assert clients(path) == {GOES}


@pytest.mark.parametrize("turn", range(6))
def test_nothing_acknowledged_after_a_replacement_is_lost(path: Path, turn: int) -> None:
    acknowledged: dict[int, list[tuple[float, str]]] = {1: [], 2: []}
    stop = threading.Event()

    def grant(process: Writer, number: int) -> None:
        for step in range(10_000):
            client, asked = f"10.0.{number}.{step % 250}", time.monotonic()
            if process.ask(writers.GRANT, client).startswith("did"):
                acknowledged[number].append((asked, client))
            if stop.wait(0.002):
                return

    with in_use(path) as one, in_use(path) as two:
        threads = [threading.Thread(target=grant, args=pair) for pair in ((one, 1), (two, 2))]
        for thread in threads:
            thread.start()
        try:
            time.sleep(random.Random(turn).random() * 0.1)
            made = backup(path, STAYS)
            if turn % 2:
                remove(path)
            made.replace(path)
            replaced = time.monotonic()
            for by in acknowledged.values():
                until(lambda by=by: sum(at > replaced for at, _ in by) > 5, "new grants")  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    there = clients(path)
    after = {client for by in acknowledged.values() for at, client in by if at > replaced}
    assert after | {STAYS} <= there


def test_closing_an_old_file_leaves_the_log_of_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "turn", lambda store: None)  # it does not notice
    old = SqliteStore(path, spares=())
    old.put(writers.granted(GOES))
    remove(path)
    with in_use(path) as other:
        does(other, writers.GRANT, COMES)
        old.close()
    assert clients(path) == {COMES}


def test_nobody_opens_a_file_beside_whose_log_another_one_is_in_use(path: Path) -> None:
    with in_use(path) as proxy:
        for client in (GOES, STAYS):
            does(proxy, writers.GRANT, client)
        made = backup(path, STAYS, COMES)
        before = made.read_bytes()
        suspend(proxy.process.pid)
        try:
            made.replace(path)
            assert locks.user_of_another(path) == proxy.process.pid
            ran = command("grant", "192.0.2.4", path=path)
            assert (ran.returncode, ran.stdout) == (1, "")
            assert f"put there while process {proxy.process.pid} used another file" in ran.stderr
            assert path.read_bytes() == before
        finally:
            os.kill(proxy.process.pid, signal.SIGCONT)
        until(lambda: locks.user_of_another(path) is None, "the end of the log in use")
        assert command("grant", "192.0.2.4", path=path).returncode == 0
        until(lambda: knows(proxy, "192.0.2.4"), "a grant in the new file")
    assert clients(path) == {STAYS, COMES, "192.0.2.4"}


def not_ours(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (url)")


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {SESSIONS.application_id}")
        db.execute("PRAGMA user_version = 99")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.exists, "No such file or directory; put it back, or restart capport"),
    "empty": (Path.touch, "empty; is a backup being copied there?"),
    "text": (lambda path: path.write_bytes(b"sessions\n" * 1000), "damaged"),
    "half": (lambda path: path.write_bytes(backup(path, GOES).read_bytes()[:8192]), "damaged"),
    "not ours": (not_ours, "a SQLite database, but not of sessions"),
    "newer": (newer, "written by a newer capport"),
    "a folder": (Path.mkdir, "cannot be opened"),
}


@pytest.mark.parametrize("made", UNUSABLE)
def test_a_file_that_cannot_be_used_admits_no_new_client_and_is_reported_once(
    path: Path, made: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "TURN_SECONDS", 0.02)
    make, says = UNUSABLE[made]
    file = OneFile(path.parent)
    store = file.open()
    for client in (MAC, ADDRESS):
        store.put(session(client))
    notified: list[ClientId] = []
    store.watch(notified.append)
    path.unlink()
    make(path)
    until(lambda: says in (store.fault or ""), "a fault")
    with pytest.raises(StoreError, match=str(path)):
        store.put(session(OTHER))
    time.sleep(0.3)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert sum(says in error for error in errors) == 1, errors
    assert store.find((OTHER,), 1000.0) is None
    assert store.find((ADDRESS,), 1000.0)
    with contextlib.suppress(StoreError):
        store.revoke(MAC)
    assert store.find((MAC,), 1000.0) is None
    # A file that can be used ends it; what was revoked meanwhile is revoked in that one too.
    good = backup(path, MAC, OTHER)
    if made == "a folder":
        path.rmdir()
    good.replace(path)
    until(lambda: store.find((OTHER,), 1000.0) is not None, "the session in the new one")
    until(lambda: store.fault is None, "the end of the fault")
    until(
        lambda: not {MAC, ADDRESS} & {s.client for s in store.sessions()},
        "the end of the others",
    )
    until(lambda: {MAC, ADDRESS, OTHER} <= set(notified), "the watcher")
    file.close()
    assert clients(path) == {OTHER}


def test_a_link_that_leads_elsewhere_since_lets_nobody_new_in(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "sessions.db"
    link.symlink_to(tmp_path / "one" / "sessions.db")
    store = SqliteStore(link, spares=())
    link.unlink()
    link.symlink_to(tmp_path / "two" / "sessions.db")
    with pytest.raises(StoreError, match=r"sessions\.db: now leads to another file"):
        store.put(session(MAC))
    store.close()


def test_a_revocation_reaches_the_proxy_though_the_file_is_gone(path: Path) -> None:
    with in_use(path) as proxy:
        does(proxy, writers.GRANT, GOES)
        path.rename(path.with_name("away"))
        ran = command("revoke", GOES, path=path)
        assert (ran.returncode, ran.stdout) == (
            0,
            f"{GOES} is revoked, whether or not it had a session\n",
        )
        assert not path.exists()
        until(lambda: not knows(proxy, GOES), "a revocation")
        path.with_name("away").rename(path)
        until(lambda: clients(path) == set(), "the revocation in the file")


def test_the_portal_turns_away_a_client_that_is_not_in_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("login_url: https://login.example.net/\n")
    path = tmp_path / "sessions.db"
    events = tmp_path / "events.jsonl"
    arguments = ("--policy", "policy.yaml", "--sessions", str(path), "--events", str(events))
    url = "http://127.0.0.1:9/"  # discard: nobody listens, so a known client gets 502

    def notified() -> list[tuple[str, str]]:
        lines = (json.loads(line) for line in events.read_text().splitlines())
        return [(line["event"], line.get("client", "")) for line in lines]

    with appliance(tmp_path, *arguments) as (running, port):
        assert command("grant", "127.0.0.1", path=path).returncode == 0
        until(lambda: ask(port, url) == 502, "a grant")
        remove(path)
        assert command("grant", COMES, path=path).returncode == 0
        until(lambda: ask(port, url) == 511, "the end of the session that is not in the new file")
        assert command("revoke", COMES, path=path).returncode == 0
        until(lambda: ("revoked", COMES) in notified(), "an event")
        running.terminate()
        out, _ = running.communicate(timeout=60)
    assert ("revoked", "127.0.0.1") in notified()
    assert out.count("another file was put in its place and is used from now on") == 1
