"""Network namespaces for tests and the lab: makes, enters and removes them with their processes.

Each belongs to one process by its name, `cplab-PID-NAME`. What a killed process left behind is
cleared away by the next one that makes a namespace.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PREFIX = "cplab-"
STATE = Path("/run/capport-lab")
"""One lock file for each process that has namespaces: held for as long as it lives."""


class Namespace:
    """One network namespace, with `lo` up."""

    def __init__(self, name: str) -> None:
        _own()
        self.name = f"{PREFIX}{os.getpid()}-{name}"
        _command("ip", "netns", "add", self.name)
        self.ip("link set lo up")

    def ip(self, *lines: str) -> None:
        """Has `ip` carry out `lines`, all in one go."""
        _command("ip", "-n", self.name, "-batch", "-", input="\n".join(lines))

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs `argv` in here."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self, *argv: str, timeout: float = 100, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs `argv` in here to its end, and keeps what it said."""
        return subprocess.run(
            self.argv(*argv), capture_output=True, text=True, timeout=timeout, **options
        )

    def start(
        self,
        *argv: str,
        log: IO[Any] | int | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts `argv` in here, in a process group of its own."""
        return subprocess.Popen(
            self.argv(*argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )

    def call[**P, T](self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` on a thread in here. Sockets and threads it makes stay in here."""
        result: list[T] = []
        error: list[BaseException] = []

        def enter() -> None:
            try:
                with Path(f"/run/netns/{self.name}").open("rb") as namespace:
                    os.setns(namespace.fileno(), os.CLONE_NEWNET)
                result.append(function(*args, **kwargs))
            except BaseException as caught:
                error.append(caught)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if error:
            raise error[0]
        return result[0]

    def sysctl(self, **values: int) -> None:
        """Sets `net.*` values; `__` stands for a dot."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", *name.split("__")).write_text(str(value))

        self.call(write)

    def delete(self) -> None:
        """Ends what still runs in here, and the namespace."""
        _delete(self.name)


@contextmanager
def namespaces(*names: str) -> Iterator[list[Namespace]]:
    """Namespaces for the length of a block."""
    made: list[Namespace] = []
    try:
        for name in names:
            made.append(Namespace(name))
        yield made
    finally:
        for namespace in made:
            namespace.delete()


def veth(first: Namespace, name: str, second: Namespace, peer: str) -> None:
    """A cable from `name` in the one to `peer` in the other."""
    _command(
        *("ip", "link", "add", name, "netns", first.name, "type", "veth"),
        *("peer", "name", peer, "netns", second.name),
    )


def wait_for(what: Callable[[], object], seconds: float = 60, message: str = "") -> None:
    """Waits until `what()` is true. Raises TimeoutError, with `message`, if it never is."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(message or f"{what} was not true within {seconds} s")
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes], seconds: float = 3) -> None:
    """Ends a process started by `Namespace.start`: by TERM, and after `seconds` by KILL."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


_held: list[int] = []


def _own() -> None:
    """Takes this process's lock, and clears away what dead processes left."""
    if _held:
        return
    STATE.mkdir(exist_ok=True)
    ours = os.open(STATE / str(os.getpid()), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(ours, fcntl.LOCK_EX)
    _held.append(ours)
    _remove_left(str(os.getpid()))  # of a dead process that had our id
    for lock in STATE.iterdir():
        if lock.name.isdigit() and int(lock.name) != os.getpid():
            _clear(lock)


def _clear(lock: Path) -> None:
    try:
        held = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # it lives
    else:
        _remove_left(lock.name)
        lock.unlink(missing_ok=True)
    finally:
        os.close(held)


def _remove_left(pid: str) -> None:
    for path in Path("/run/netns").glob(f"{PREFIX}{pid}-*"):
        _delete(path.name)
    shutil.rmtree(STATE / f"{pid}.d", ignore_errors=True)


def state_folder() -> Path:
    """A folder of this process's for files, cleared away with its namespaces."""
    _own()
    folder = STATE / f"{os.getpid()}.d"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def let_go() -> None:
    """Leaves no trace of this process, once the last of its namespaces is deleted."""
    if _held and not any(Path("/run/netns").glob(f"{PREFIX}{os.getpid()}-*")):
        shutil.rmtree(STATE / f"{os.getpid()}.d", ignore_errors=True)
        (STATE / str(os.getpid())).unlink(missing_ok=True)
        os.close(_held.pop())


def _delete(name: str) -> None:
    """Ends every process in namespace `name`, waits for them, deletes it and its /etc/netns."""
    for number, seconds in ((signal.SIGTERM, 2), (signal.SIGKILL, 30)):
        limit = time.monotonic() + seconds
        while (pids := _pids(name)) and time.monotonic() < limit:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.02)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _pids(name: str) -> Sequence[int]:
    """The processes in namespace `name`, never this one."""
    found = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    )
    return [pid for pid in map(int, found.stdout.split()) if pid != os.getpid()]


def _command(*argv: str, **options: Any) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
