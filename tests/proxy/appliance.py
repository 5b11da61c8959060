"""`capport run` in a process, and a client of it, without asyncio."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from confdir import confdir
from ports import free_port

CONSOLE_SCRIPT = str(Path(sys.executable).with_name("capport"))


SOON = 180.0  # seconds: a bound for a loaded machine, not an expectation


@contextlib.contextmanager
def appliance(
    folder: Path, *arguments: str, out: IO[str] | int = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`capport run` on a free port of 127.0.0.1, once it listens."""
    port = free_port()
    running = subprocess.Popen(
        [
            *(CONSOLE_SCRIPT, "run", "--listen-host", "127.0.0.1", "--listen-port", str(port)),
            *("--set", f"confdir={confdir()}", *arguments),
        ],
        stdout=out,
        stderr=out,
        text=True,
        cwd=folder,
    )
    try:
        limit = time.monotonic() + SOON
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield running, port
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def ask(port: int, url: str) -> int:
    """The status of a GET through the proxy; 0 for a connection that is closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as asking:
        host = url.split("/")[2]
        asking.sendall(f"GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = asking.recv(100)
        return int(answer.split()[1]) if answer else 0
