"""What the durability tests run in other processes: writers that say what was acknowledged."""

import os
import pwd
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores import StoreError
from capport.stores.sqlite import locks, schema
from capport.stores.sqlite import store as sqlite
from capport.stores.sqlite.store import SqliteStore

GRANT, REVOKE, FIND = "grant", "revoke", "find"


def say(out: int, *words: str) -> None:
    os.write(out, " ".join(words).encode() + b"\n")


def granted(client: str, by: str = "") -> Session:
    now = clock.now()
    return Session(ClientId(client), now, now + 3600, by=by)


def write_until_killed(path: str, number: int, turn: int, out: int) -> None:
    """Grants and revokes clients of its own; says what it is about to do, then that it is done."""
    dice = random.Random(number * 1000 + turn)
    store = SqliteStore(Path(path), spares=())
    for step in range(1_000_000):
        client = f"10.{number}.0.{dice.randrange(8)}"
        what = dice.choice((GRANT, GRANT, REVOKE))
        mark = f"{turn}.{step}"
        say(out, "does", what, client, mark)
        if what == GRANT:
            store.put(granted(client, by=mark))
        else:
            store.revoke(ClientId(client))
        say(out, "did", what, client, mark)


def fork_writers(path: str) -> None:
    """A writer that goes on until it is killed, for each line on stdin; says its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        number, turn, out = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                file = os.open(out, os.O_WRONLY | os.O_APPEND)
                write_until_killed(path, int(number), int(turn), file)
            except BaseException:
                traceback.print_exc()  # the output then says why it was not there to be killed
            finally:
                os._exit(1)
        say(1, str(pid))


def grant_and_stay(path: str, synchronous: str) -> None:
    """Grants, revokes or finds one client for each line on stdin, and says so on stdout."""
    schema.SYNCHRONOUS = synchronous
    store = SqliteStore(Path(path), spares=())
    say(1, "ready")
    for line in sys.stdin:
        what, client = line.split()
        try:
            if what == GRANT:
                store.put(granted(client))
            elif what == REVOKE:
                store.revoke(ClientId(client))
            elif store.find([ClientId(client)], clock.now()) is None:
                raise StoreError("unknown")
            say(1, "did", what, client)
        except StoreError as error:
            say(1, "failed", what, client, str(error))


def grant_as(path: str, name: str, client: str) -> None:
    """Grants one client as the user `name`, without any privilege of root."""
    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    store = SqliteStore(Path(path), spares=())
    store.put(granted(client))
    store.close()


def tell(path: str) -> None:
    """Says for how many seconds each session is open, and which day the wall clock thinks it is."""
    store = SqliteStore(Path(path), spares=())
    now = clock.now()
    say(1, str(int(time.time())), *(f"{s.client}={s.ends - now}" for s in store.sessions()))
    store.close()


class Writer:
    """A `grant_and_stay` in a process of its own."""

    def __init__(self, path: Path, synchronous: str = "FULL", before: tuple[str, ...] = ()) -> None:
        module = [sys.executable, __file__, "grant_and_stay", str(path), synchronous]
        self.process = subprocess.Popen(
            [*before, *module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == "ready\n"

    def ask(self, what: str, client: str) -> str:
        self.stdin.write(f"{what} {client}\n")
        self.stdin.flush()
        return self.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


if __name__ == "__main__":
    # A grant waits for another one as long as the machine stalls: no test here is about that.
    vars(sqlite).update(PUT_SECONDS=60.0)
    locks.LOCK_SECONDS = 60.0
    commands: dict[str, Callable[..., None]] = {
        "fork_writers": fork_writers,
        "grant_and_stay": grant_and_stay,
        "grant_as": grant_as,
        "tell": tell,
    }
    commands[sys.argv[1]](*sys.argv[2:])
