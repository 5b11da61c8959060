"""What the gate costs known clients inside mitmproxy, and the memory that an upload takes.

The portal and a bare mitmdump run side by side, both as explicit proxies with the same options;
wrk has the second core. The bare one for 511s has an addon that sets `flow.response`, the bare one
for known clients has none.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Promise, alternate
from benchmarks.load import (
    BINARIES,
    HERE,
    SCRIPT,
    free_port,
    listens,
    needs,
    running,
    wrk,
)

PORTAL, BARE, RELAY = "the portal", "mitmdump with a bare addon", "mitmdump, no addon"
OPTIONS = ("--set", "connection_strategy=lazy", "--set", "block_global=false", "--quiet")


class Proxies:
    """Runs three mitmdumps and an origin during a `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> "Proxies":
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.policy = self.folder / "policy.yaml"
            self.policy.write_text("login_url: https://login.example.net/\n")
            self.store = str(self.folder / "sessions.db")
            ours = [f"portal_policy={self.policy}", f"portal_sessions={self.store}"]
            arguments = {
                PORTAL: [
                    "-s",
                    str(SCRIPT),
                    *(part for option in ours for part in ("--set", option)),
                ],
                BARE: ["-s", str(HERE / "bare.py")],
                RELAY: [],
            }
            self.ports = {name: free_port() for name in arguments}
            self.processes = {
                name: stack.enter_context(self._mitmdump(name, *arguments[name]))
                for name in arguments
            }
            port = self.origin = free_port()
            argv = [sys.executable, str(HERE / "origin.py"), str(port)]
            log = self.folder / "origin.log"
            stack.enter_context(running(argv, log, ready=lambda: listens(port)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def capport(self, *arguments: str) -> None:
        """Runs a command on the portal's store."""
        argv = [str(BINARIES / "capport"), *arguments, "--sessions", self.store]
        subprocess.run(argv, check=True, capture_output=True)

    def load(self, name: str, url: str, *, new: bool, seconds: float) -> float:
        """A known client's requests a second. Raises ValueError if one was refused."""
        port = self.ports[name]
        os.environ["BENCH_URL"] = url
        got = wrk(
            f"http://127.0.0.1:{port}/", seconds=seconds, new=new, script=HERE / "proxied.lua"
        )
        if got.refused:
            raise ValueError(f"{name}: of {got.requests} answers {got.refused} refuse")
        return got.rate

    def _mitmdump(
        self, name: str, *arguments: str
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        port = self.ports[name]
        folder = self.folder / f"conf-{port}"
        argv = [
            *(str(BINARIES / "mitmdump"), "--listen-host", "127.0.0.1", "--listen-port", str(port)),
            *("--set", f"confdir={folder}", *OPTIONS, *arguments),
        ]
        return running(argv, self.folder / f"{port}.log", ready=lambda: listens(port))


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the gate inside mitmproxy."""
    needs(wrk="wrk")
    rounds, seconds, size = (1, 1, 32 << 20) if quick else (7, 3, 1 << 30)
    uploading = 1 if quick else 3
    with Proxies() as proxies:
        yield from uploads(proxies, size, "unknown", (PORTAL, BARE), b"511", 1.0, uploading)
        proxies.capport("grant", "127.0.0.1")
        for new, how in ((True, "a connection for each"), (False, "on 8 kept connections")):
            url = f"http://127.0.0.1:{proxies.origin}/page"
            one = partial(proxies.load, url=url, new=new, seconds=seconds)
            rows = alternate(rounds, {name: partial(one, name) for name in (PORTAL, RELAY)})
            yield Figure(f"requests of a known client, {how}", "1/s", rows, RELAY)
        yield from uploads(proxies, size, "known", (PORTAL, RELAY), b"200", 64.0, uploading)


def uploads(
    proxies: Proxies,
    size: int,
    who: str,
    names: tuple[str, str],
    status: bytes,
    bound: float,
    rounds: int,
) -> Iterator[Figure]:
    """The memory that one upload of an unknown or a known client takes, at its height."""

    def of(name: str, size: int) -> float:
        process, port = proxies.processes[name], proxies.ports[name]
        return upload(process.pid, port, size, proxies.origin, status)

    for name in names:
        of(name, 1 << 20)  # what is loaded for the first upload alone
    rows = {name: [of(name, size) for _ in range(rounds)] for name in names}
    label = f"memory for an upload of {size >> 20} MiB by an {who} client".replace("an k", "a k")
    yield Figure(label, "MiB", rows, names[1], (Promise.AT_MOST, bound))


def upload(pid: int, proxy: int, size: int, origin: int, status: bytes) -> float:
    """MiB by which the process grows, at its height, while `size` bytes are sent through it.

    Raises ValueError if the answer has another status.
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the height is measured from here: proc(5)
    before = memory(pid, "VmRSS")
    place = f"127.0.0.1:{origin}"
    with socket.create_connection(("127.0.0.1", proxy), timeout=120) as up:
        head = f"POST http://{place}/ HTTP/1.1\r\nHost: {place}\r\nContent-Length: {size}\r\n\r\n"
        up.sendall(head.encode())
        chunk, sent = bytes(1 << 20), 0
        with suppress(ConnectionError):  # answered and closed before it was all sent
            while sent < size:
                up.sendall(chunk)
                sent += len(chunk)
        answer = b""
        with suppress(ConnectionError):
            answer = up.recv(4096)
    if answer and status not in answer[:20]:
        raise ValueError(f"the upload was answered with {answer[:40]!r}, not {status!r}")
    return max(0.0, memory(pid, "VmHWM") - before)


def memory(pid: int, field: str) -> float:
    """MiB in memory now (VmRSS), or at the height so far (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise LookupError(field)
