"""How fast the session store is, and how big, beside one with ten sessions.

A look-up is measured among clients that are active (the same 1000 again and again, as on a
network), and among all of them at random, where each look-up waits for memory that no cache holds.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Promise, alternate, percentile
from benchmarks.gate import client, microseconds
from capport import clock
from capport.core.client import Client, ClientId
from capport.core.session import Session
from capport.stores.sqlite import schema
from capport.stores.sqlite.session_schema import COLUMNS
from capport.stores.sqlite.store import SqliteStore

TEN = "with ten"


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the store."""
    count, rounds = (10_000, 2) if quick else (1_000_000, 3)
    label = f"with {count:_} sessions".replace("_", " ")
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few.db", Path(folder) / "many.db"
        fill(few, 10)
        fill(many, count)
        measures: dict[Path, list[list[float]]] = {few: [], many: []}
        alternate(rounds, {str(at): partial(measured, at, measures) for at in (many, few)})
        mine, tens = (list(zip(*measures[at], strict=True)) for at in (many, few))
        yield Figure("loading", "s", {label: mine[0]}, promise=(Promise.AT_MOST, 5.0))
        yield Figure("memory", "MiB", {label: mine[1]}, promise=(Promise.AT_MOST, 300.0))
        for place, who in enumerate(("active clients", "any of all", "unknown clients"), 1):
            for what, at in (("ids and find", 2 * place), ("find alone", 2 * place + 1)):
                promise = (Promise.AT_MOST, 1.3) if at == 2 else None
                rows = {label: mine[at], TEN: tens[at]}
                name = f"look-up, {who}: {what}"
                yield Figure(name, "us", rows, TEN, promise, of_peer=True)
        yield from changes(few, 30 if quick else 200)


def fill(path: Path, count: int) -> None:
    """Makes a store of `count` sessions, half of them with an idle timeout."""
    SqliteStore(path, spares=()).close()
    with closing(schema.connect(path)) as db:
        row = (-60.0, 8 * 3600.0)
        db.execute("BEGIN")
        db.executemany(
            f"INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (client(n).mac, *row, 1800.0 if n % 2 else None, 0.0, 1.7e9, "ann", "voucher", "")
                for n in range(count)
            ),
        )
        db.execute("COMMIT")


def measured(path: Path, into: dict[Path, list[list[float]]]) -> float:
    """Has a process of its own load the store and ask it; keeps what it said."""
    argv = [sys.executable, "-m", "benchmarks.store", "measure", str(path)]
    said = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    into[path].append([float(figure) for figure in said.split()])
    return into[path][-1][0]


def measure(path: Path) -> list[float]:
    """Seconds to load, MiB, and microseconds of each look-up."""
    before, started = resident(), time.perf_counter()
    with closing(SqliteStore(path, spares=())) as store:
        seconds, grown = time.perf_counter() - started, resident() - before
        count = sum(1 for _ in store.sessions())
        dice, now, calls = random.Random(511), clock.now(), 20_000
        active = [dice.randrange(count) for _ in range(1000)]
        found = [seconds, grown]
        for numbers in (
            [dice.choice(active) for _ in range(calls)],
            [dice.randrange(count) for _ in range(calls)],
            [dice.randrange(1 << 30, 1 << 31) for _ in range(calls)],
        ):
            found += lookups(store, [client(number) for number in numbers], now)
        return found


def lookups(store: SqliteStore, clients: Sequence[Client], now: float) -> list[float]:
    """The best of seven, with what the ids of a client cost, and without."""
    ids = [one.ids for one in clients]
    with_ids = [
        microseconds(lambda n: store.find(clients[n].ids, now), len(clients)) for _ in range(7)
    ]
    alone = [microseconds(lambda n: store.find(ids[n], now), len(clients)) for _ in range(7)]
    return [min(with_ids), min(alone)]


def changes(path: Path, count: int) -> Iterator[Figure]:
    """Grants and revocations, and how long until another process acts on them."""
    argv = [sys.executable, "-m", "benchmarks.store", "watch", str(path)]
    puts: list[float] = []
    revocations: list[float] = []
    seen: list[float] = []
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        closing(SqliteStore(path, spares=())) as store,
    ):
        assert other.stdin
        assert other.stdout
        other.stdout.readline()
        for number in range(count):
            who = ClientId(f"198.51.100.{number % 250 + 1}")
            for times, put in ((puts, True), (revocations, False)):
                before, now = time.monotonic(), clock.now()
                if put:
                    store.put(Session(who, now, now + 3600))
                else:
                    store.revoke(who)
                times.append((time.monotonic() - before) * 1e3)
                seen.append((float(other.stdout.readline()) - before) * 1e3)
        used = time.process_time()
        time.sleep(1 if count < 100 else 5)
        idle = (time.process_time() - used) / (1 if count < 100 else 5) * 100
        other.stdin.close()
    synced = synchronised(path.parent, count)
    peer = "a 4 KiB write and fdatasync here"
    yield Figure("grant, durable and in force", "ms", {"put": puts, peer: synced}, peer)
    rows = {"revoke": revocations, peer: synced}
    yield Figure("revocation", "ms", rows, peer, (Promise.AT_MOST, 250.0), worst=True)
    late = {"99 of 100": [percentile(seen, 99)], "each": seen}
    yield Figure(
        "a change, until another process acts on it", "ms", late, promise=(Promise.AT_MOST, 100.0)
    )
    yield Figure("idle", "% of a core", {"": [idle]}, promise=(Promise.AT_MOST, 1.0))


def synchronised(folder: Path, count: int) -> list[float]:
    """Milliseconds of the least that a durable change takes on this disk."""
    took = []
    descriptor = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY)
    try:
        for number in range(count):
            before = time.monotonic()
            os.pwrite(descriptor, bytes(4096), number * 4096)
            os.fdatasync(descriptor)
            took.append((time.monotonic() - before) * 1e3)
    finally:
        os.close(descriptor)
    return took


def watch(path: Path) -> None:
    """In a process of its own: says when each change was known here."""
    with closing(SqliteStore(path, spares=())) as store:
        store.watch(lambda _: print(time.monotonic(), flush=True))
        print("ready", flush=True)
        sys.stdin.read()


def resident() -> float:
    """MiB of this process that are in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmRSS")


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(*measure(Path(sys.argv[2])))
    else:
        watch(Path(sys.argv[2]))
