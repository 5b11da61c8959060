"""How soon ten routers that share a Redis act on one another's changes, with 100 000 sessions.

Each router is a process of its own; on few cores they wait for one another, too.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import redis

from benchmarks.figures import Figure, Missing, Promise, percentile
from benchmarks.gate import client, microseconds
from benchmarks.store import resident
from capport import clock
from capport.core.client import ClientId
from capport.core.redis_url import RedisUrl
from capport.core.session import Session
from capport.stores.redis.fleet_record import Grant, Record, dump
from capport.stores.redis.redis_link import KEY
from capport.stores.redis.redis_store import RedisStore
from capport.stores.sqlite.store import SqliteStore
from stores.redis_server import RedisServer

ROUTERS = 10
WITHIN = 100.0  # ms


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the fleet."""
    if shutil.which("redis-server") is None:
        raise Missing("no redis-server: sudo apt-get install --no-install-recommends redis-server")
    sessions, changes, routers = (2_000, 20, 3) if quick else (100_000, 300, ROUTERS)
    with tempfile.TemporaryDirectory() as name, ExitStack() as closed:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        closed.callback(server.kill)
        fill(server.url, sessions)
        others = [closed.enter_context(router(server.url, folder, n)) for n in range(1, routers)]
        for other in others:
            assert other.stdout
            other.stdout.readline()  # it has read everything
        before, began = resident(), time.monotonic()
        store = closed.enter_context(closing(opened(server.url, folder / "0")))
        took, grown = time.monotonic() - began, resident() - before
        label = f"{routers} routers, {sessions} sessions"
        yield Figure("reading all sessions at the start", "s", {label: [took]})
        yield Figure("memory of a router", "MiB", {label: [grown]})
        now = clock.now()
        ids = [client(number).ids for number in range(1000)]
        yield Figure(
            "look-up of another router's session",
            "us",
            {label: [microseconds(lambda n: store.find(ids[n], now), 1000) for _ in range(5)]},
        )
        yield from changed(store, others, changes, label)
        for other in others:
            assert other.stdin
            other.stdin.close()


def changed(
    store: RedisStore, others: list[subprocess.Popen[str]], changes: int, label: str
) -> Iterator[Figure]:
    """Grants and revokes; each other router says when it acts on it."""
    calls: dict[str, list[float]] = {"grant": [], "revocation": []}
    seen: dict[str, list[float]] = {"grant": [], "revocation": []}
    for number, what in itertools.product(range(changes), calls):
        who, now, began = ClientId(f"198.51.100.{number % 250}"), clock.now(), time.monotonic()
        if what == "grant":
            store.put(Session(who, now, now + 3600))
        else:
            store.drop(who)
        calls[what].append((time.monotonic() - began) * 1e3)
        for other in others:
            assert other.stdout
            seen[what].append((float(other.stdout.readline()) - began) * 1e3)
    for what, times in seen.items():
        yield Figure(f"{what}, until it is acknowledged", "ms", {label: calls[what]})
        late = {"99 of 100": [percentile(times, 99)], "each": times}
        promise = (Promise.AT_MOST, WITHIN)
        yield Figure(f"{what}, until another router acts on it", "ms", late, promise=promise)


def fill(url: RedisUrl, count: int) -> None:
    """Puts sessions of a router that is gone into Redis."""
    now = time.time()
    place = url.places[0]
    with redis.Redis(str(place.host), place.port) as server:
        grant = Grant(1, "f" * 16, now, now + 8 * 3600, None, now, now, "ann", "voucher", "")
        for some in itertools.batched(range(count), 1000):
            ids = [client(number).ids[0] for number in some]
            server.mset({KEY + who: dump(who, Record({}, grant)) for who in ids})


def opened(url: RedisUrl, folder: Path) -> RedisStore:
    folder.mkdir()
    path = folder / "sessions.db"
    store = RedisStore(url, path, SqliteStore(path, spares=()))
    while store.fault is not None:
        time.sleep(0.05)
    return store


def router(url: RedisUrl, folder: Path, number: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "benchmarks.fleet", str(url), str(folder / str(number))]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def watch(url: RedisUrl, folder: Path) -> None:
    """In a process of its own: says when each change was known here."""
    with closing(opened(url, folder)) as store:
        store.watch(lambda _: print(time.monotonic(), flush=True))
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    from capport.core.redis_url import parse_redis_url

    watch(parse_redis_url(sys.argv[1]), Path(sys.argv[2]))
