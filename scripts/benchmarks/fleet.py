"""How soon ten routers that share a Redis act on one another's changes, with 100 000 sessions.

Two of them are whole routers in the lab, with mitmproxy and the kernel's rules: what counts there
is a client's packets and requests. The others are stores, each in a process of its own. On few
cores they all wait for one another, too.
"""

import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import redis

from benchmarks.figures import Figure, Missing, Promise, percentile
from benchmarks.gate import client, microseconds
from benchmarks.router import Stream
from benchmarks.store import resident
from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.redis.fleet_record import FleetRecord, Grant, dump
from capport.stores.redis.fleet_view import look
from capport.stores.redis.redis_link import EPOCH, KEY
from capport.stores.redis.redis_store import RedisStore
from capport.stores.redis_url import RedisUrl, parse_redis_url
from capport.stores.sqlite.store import SqliteStore
from lab.fleet import SERVER, Fleet
from lab.namespaces import Namespace, wait_for
from lab.network import ORIGIN4, Client, Lab, missing
from lab.network import POLICY as FLEET_POLICY

ROUTERS = 10
WITHIN = 100.0  # ms
CHANGED = "198.51.100."
OTHERS = 1 << 20  # the number of the first client that has a session from the start
POLICY = FLEET_POLICY.replace("sessions:\n", "sessions:\n  most: 200000\n") + (
    "http:\n  known: inspect\n"  # else the kernel forwards known clients past mitmproxy
)


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the fleet."""
    if (reason := missing("redis-server")) is not None:
        raise Missing(f"{reason}; sudo scripts/bench fleet")
    sessions, changes, routers = (2_000, 20, 4) if quick else (100_000, 300, ROUTERS)
    url = parse_redis_url(SERVER)
    label = f"{routers} routers, {sessions} sessions"
    with tempfile.TemporaryDirectory() as name, ExitStack() as closed:
        folder = Path(name)
        fleet = closed.enter_context(Fleet(2, clients=2, policy=POLICY))
        inside = fleet.redis
        inside.call(fill, url, sessions)
        others = [
            closed.enter_context(router(inside, url, folder, n)) for n in range(1, routers - 2)
        ]
        for other in others:
            assert other.stdout
            other.stdout.readline()  # it has read everything
        before, began = resident(), time.monotonic()
        store = closed.enter_context(closing(inside.call(opened, url, folder / "0")))
        took, grown = time.monotonic() - began, resident() - before
        yield Figure("reading all sessions at the start", "s", {label: [took]})
        yield Figure("memory of a router", "MiB", {label: [grown]})
        now = clock.now()
        ids = [client(OTHERS + number).ids for number in range(1000)]
        yield Figure(
            "look-up of another router's session",
            "us",
            {label: [microseconds(lambda n: store.find(ids[n], now), 1000) for _ in range(5)]},
        )
        wait_for(lambda: all(one.known >= sessions for one in inside.call(look, url).routers), 300)
        yield from changed(store, others, changes, label)
        yield from between_whole_routers(fleet, max(5, changes // 3), label)
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
        who, now, began = ClientId(f"{CHANGED}{number % 250}"), clock.now(), time.monotonic()
        if what == "grant":
            store.put(Session(who, now, now + 3600))
        else:
            store.revoke(who)
        calls[what].append((time.monotonic() - began) * 1e3)
        for other in others:
            assert other.stdout
            seen[what].append((float(other.stdout.readline()) - began) * 1e3)
    for what, times in seen.items():
        yield Figure(f"{what}, until it is acknowledged", "ms", {label: calls[what]})
        late = {"99 of 100": [percentile(times, 99)], "each": times}
        promise = (Promise.AT_MOST, WITHIN)
        yield Figure(f"{what}, until another router acts on it", "ms", late, promise=promise)


# --- two whole routers ---------------------------------------------------------------------------


def between_whole_routers(fleet: Fleet, changes: int, label: str) -> Iterator[Figure]:
    """Grants and revokes at the first one, until clients of the second one notice."""
    first = fleet.routers[0]
    by_kernel, by_proxy = first.clients
    for one in first.clients:
        one.roam(2)
    took: dict[str, list[float]] = {}
    with closing(Stream(by_kernel)) as packets, closing(Requests(by_proxy)) as requests:
        for _, what in itertools.product(range(changes), ("grant", "revocation")):
            began = carry_out(first, what, by_kernel)
            until = packets.first_after(began) if what == "grant" else packets.last_of_all()
            took.setdefault(f"{what} at a whole router, until another's kernel acts", []).append(
                max(0.0, until - began) * 1e3
            )
            began = carry_out(first, what, by_proxy)
            until = requests.first_after(began, 200 if what == "grant" else 511)
            took.setdefault(f"{what} at a whole router, until another's mitmproxy acts", []).append(
                (until - began) * 1e3
            )
    for name, times in took.items():
        late = {"99 of 100": [percentile(times, 99)], f"each, {label}": times}
        yield Figure(name, "ms", late, promise=(Promise.AT_MOST, WITHIN))


def carry_out(router: Lab, what: str, client: Client) -> float:
    """Grants or revokes by the router's API; when that began."""
    api = HTTPConnection("capport", timeout=10)
    api.sock = socket.socket(socket.AF_UNIX)
    api.sock.connect(str(router.folder / "api.sock"))
    began = time.monotonic()
    with closing(api):
        if what == "grant":
            body = json.dumps({"mac": client.mac})
            api.request("POST", "/api/v1/sessions", body, {"Content-Type": "application/json"})
        else:
            api.request("DELETE", f"/api/v1/sessions/{client.mac}")
        answer = api.getresponse()
        if answer.status not in (201, 204):
            raise ValueError(f"{what} by the API: {answer.status}, {answer.read()!r}")
    return began


class Requests:
    """A client's requests to the origin, one after the other on a kept connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answers: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def first_after(self, moment: float, status: int) -> float:
        """When the first request was sent that was answered so, of those after `moment`."""
        found: list[float] = []

        def is_there() -> bool:
            found.extend(at for at, got in tuple(self._answers) if at > moment and got == status)
            return bool(found)

        wait_for(is_there, 5, f"no request is answered with {status}")
        return found[0]

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):  # a connection ends when its client becomes known, or unknown
                self._on_one_connection()

    def _on_one_connection(self) -> None:
        connect = socket.create_connection
        with self._client.namespace.call(connect, (ORIGIN4, 80), 5) as connection:
            while not self._closed.wait(0.002):
                sent = time.monotonic()
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n")
                answer = connection.recv(65536)
                if not answer:
                    return
                self._answers.append((sent, int(answer[9:12])))


# --- stores --------------------------------------------------------------------------------------


def fill(url: RedisUrl, count: int) -> None:
    """Puts sessions of a router that is gone into Redis; routers compare everything."""
    now = time.time()
    place = url.places[0]
    with redis.Redis(str(place.host), place.port) as server:
        grant = Grant(1, "f" * 16, now, now + 8 * 3600, None, now, now, "ann", "voucher", "")
        for some in itertools.batched(range(count), 1000):
            ids = [ClientId(client(OTHERS + number).mac or "") for number in some]
            server.mset({KEY + who: dump(who, FleetRecord({}, grant)) for who in ids})
        server.delete(EPOCH)


def opened(url: RedisUrl, folder: Path) -> RedisStore:
    folder.mkdir()
    path = folder / "sessions.db"
    store = RedisStore(url, path, SqliteStore(path, spares=()))
    while store.fault is not None:
        time.sleep(0.05)
    return store


def router(where: Namespace, url: RedisUrl, folder: Path, number: int) -> subprocess.Popen[str]:
    own = str(folder / str(number))
    argv = where.argv(sys.executable, "-m", "benchmarks.fleet", str(url), own)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def watch(url: RedisUrl, folder: Path) -> None:
    """In a process of its own: says when each change was known here."""

    def acts(who: ClientId) -> None:
        if who.startswith(CHANGED):  # a late lease is the news of all others
            print(time.monotonic(), flush=True)

    with closing(opened(url, folder)) as store:
        store.watch(acts)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    watch(parse_redis_url(sys.argv[1]), Path(sys.argv[2]))
