"""What makes load: wrk, and mitmdump to be put under it."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Missing

HERE = Path(__file__).resolve().parent
SCRIPT = HERE.parents[1] / "addon" / "captive_portal.py"
BINARIES = Path(sys.executable).parent


def needs(**packages: str) -> None:
    """Raises Missing, with the package, if one of these commands is not here."""
    lacking = [package for command, package in packages.items() if not shutil.which(command)]
    if lacking:
        raise Missing(
            f"missing here: sudo apt-get install --no-install-recommends {' '.join(lacking)}"
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk reported: requests a second, and how many answers were neither 2xx nor 3xx."""

    rate: float
    refused: int
    requests: int


def wrk(
    url: str,
    *,
    seconds: float,
    connections: int = 8,
    new: bool = False,
    script: Path | None = None,
    within: Callable[..., list[str]] = lambda *argv: [*argv],
) -> Load:
    """Asks for `url` on kept connections, or with `new` on one for each request.

    Raises ValueError if no request was answered.
    """
    argv = [
        *("wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{max(1, round(seconds))}s"),
        *(("--header", "Connection: close") if new else ()),
        *(("--script", str(script)) if script else ()),
        url,
    ]
    done = subprocess.run(
        within(*argv), capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    count = re.search(r"(\d+) requests in", done.stdout)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if not rate or not count or not int(count[1]):
        raise ValueError(f"{' '.join(argv)} measured nothing:\n{done.stdout}{done.stderr}")
    return Load(float(rate[1]), int(refused[1]) if refused else 0, int(count[1]))


@contextmanager
def running(
    argv: Sequence[str],
    log: Path,
    *,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, once it is `ready`. Raises ValueError, with its output, if it never is."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env, cwd=log.parent
        )
    try:
        limit = time.monotonic() + 40
        while not ready():
            if process.poll() is not None or time.monotonic() > limit:
                raise ValueError(f"{' '.join(argv)} does not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether 127.0.0.1 takes a connection on `port`."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
