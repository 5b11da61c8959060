"""A real Redis on a free port of 127.0.0.1, and routers that share the sessions in it."""

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from capport.core.client import Address, Mac
from capport.core.place import Place, parse_host
from capport.stores.redis.fleet_time import FleetTime
from capport.stores.redis.redis_store import RedisStore
from capport.stores.redis_url import RedisUrl
from capport.stores.sqlite.store import SqliteStore
from conftest import SOON
from ports import free_port
from stores.contract import FakeTime
from suspension import suspend

AHEAD = 4e9
"""What Redis shows is later than this machine's time: records are kept, whatever a test's clock."""


class RedisServer:
    """A server that can be stopped, frozen and filled. `program`: or valkey-server.

    With `sentinel`, a file to configure one, it is a Sentinel.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        program: str = "redis-server",
        bind: str = "127.0.0.1",
        sentinel: Path | None = None,
    ) -> None:
        self.folder, self.bind, self.port = folder, bind, free_port()
        where = ("--bind", bind, "--port", str(self.port), "--dir", str(folder))
        self._command = [program, *where, "--save", "", *options]
        if sentinel is not None:
            self._command = ["redis-sentinel", str(sentinel), *where]
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> RedisUrl:
        return RedisUrl((Place(parse_host(self.bind), self.port),))

    def url_of_router(self, folder: Path) -> str:
        """The sessions of a router that has its own file in `folder`, which is made."""
        folder.mkdir()
        return f"{self.url}?file={folder}/sessions.db"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + SOON
        while True:
            with contextlib.suppress(OSError):
                if self.ask("PING") == b"+PONG":
                    return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ask(self, *command: str, seconds: float = 5.0) -> bytes:
        """The first line of the answer to one command, or its text."""
        with socket.create_connection((self.bind, self.port), seconds) as connection:
            parts = [part.encode() for part in command]
            wire = b"*%d\r\n" % len(parts)
            wire += b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
            connection.sendall(wire)
            reader = connection.makefile("rb")
            line = reader.readline().rstrip(b"\r\n")
            if line.startswith(b"$") and line != b"$-1":
                return reader.read(int(line[1:]))
            return line

    def answers(self, begins: bytes, *command: str) -> bool:
        """Whether the answer begins so. A Redis cuts its connections when its role changes."""
        with contextlib.suppress(OSError):
            return self.ask(*command).startswith(begins)
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        suspend(self._process.pid)

    def thaw_or_start(self) -> None:
        """Makes sure that it runs, whatever a test has done to it."""
        if self._process is None:
            self.start()
        self.thaw()

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class SlowLink:
    """A relay to a Redis that delays each message by `delay` seconds, in both directions."""

    def __init__(self, server: RedisServer) -> None:
        self.delay = 0.0
        self._to = (server.bind, server.port)
        self._listening = socket.create_server((server.bind, 0))
        self.url = RedisUrl((Place(parse_host(server.bind), self._listening.getsockname()[1]),))
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # it is closed
                return
            server = socket.create_connection(self._to)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError), source, to:
            while data := source.recv(65536):
                self._closed.wait(self.delay)
                to.sendall(data)


@dataclass
class BootTime(FakeTime):
    """A machine's clock, which starts again at each boot, while that of Redis goes on."""

    ahead: float = AHEAD

    def reboot(self, now: float = 5.0) -> None:
        self.ahead += self.now - now
        super().reboot(now)


class FixedTime(FleetTime):
    """Fleet time from a test's clock plus a constant, without asking Redis."""

    def __init__(self, time: FakeTime) -> None:
        ahead = time.ahead if isinstance(time, BootTime) else AHEAD
        super().__init__(time.clock, lambda: time.now + ahead)

    def measure(self, sent: float, answered: float, theirs: float) -> float:
        return 0.0


class Fleet:
    """Routers around one Redis, each with a folder of its own."""

    lasting = True

    def __init__(self, folder: Path, server: RedisServer, *, routers: int = 2) -> None:
        self.time: FakeTime = BootTime()
        self.folder, self.server, self.routers = folder, server, routers
        self.opened: dict[RedisStore, int] = {}

    def open(
        self,
        router: int | None = None,
        *,
        url: RedisUrl | None = None,
        fleet_time: FleetTime | None = None,
        about: Collection[Mac | Address] | None = None,
    ) -> RedisStore:
        """A store on that router; or on one that has no open store, if there is one."""
        free = [n for n in range(self.routers) if n not in self.running()]
        number = router if router is not None else free[0] if free else 0
        folder = self.folder / f"router{number}"
        folder.mkdir(parents=True, exist_ok=True)
        path, clock, boot_id = folder / "sessions.db", self.time.clock, self.time.boot_id
        own = SqliteStore(path, about=about, clock=clock, boot_id=boot_id, spares=[folder / "run"])
        store = RedisStore(
            url or self.server.url,
            path,
            own,
            clock=clock,
            fleet_time=fleet_time or FixedTime(self.time),
            about=about,
        )
        self.opened[store] = number
        return store

    def running(self) -> set[int]:
        """The routers that have an open store."""
        return {
            number
            for store, number in self.opened.items()
            if "is closed" not in (store.fault or "")
        }

    def close(self) -> None:
        for store in self.opened:
            store.close()


PROGRAMS = [name for name in ("redis-server", "valkey-server") if shutil.which(name)]


@contextlib.contextmanager
def server(folder: Path, *options: str, program: str = "redis-server") -> Iterator[RedisServer]:
    running = RedisServer(folder, *options, program=program)
    try:
        yield running
    finally:
        running.kill()
