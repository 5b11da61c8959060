"""Revocations that the database did not accept, kept beside it until it does.

The file has one client id per line, synced before `add` returns. Each process that reads the store
counts these clients as unknown, whatever the database says. The next process that can write to the
database deletes their sessions there and empties the file. The file needs no times, because every
grant empties it first.

The same file wakes the other processes: a process that has committed a change sets the times of the
file, which inotify reports to the others. (The write-ahead log cannot serve for this: it is written
before the commit can be seen.)
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from capport.core.client import ClientId, parse_client_id
from capport.linux import safe_files
from capport.stores.sqlite import locks

BALLAST = 1 << 20
"""Bytes reserved on the disk, and freed when it is full so that a revocation can be written."""


class RevocationFile:
    """The journal of revocations at `path`, which has the same owner as the file at `like`."""

    def __init__(self, path: Path, like: Path) -> None:
        self.path = path
        self._like = like

    def read(self) -> frozenset[ClientId]:
        """The clients in the journal. A line that a power cut left incomplete does not count."""
        try:
            with safe_files.closing(safe_files.open_to_read(self.path)) as descriptor:
                return _clients_in(descriptor)
        except OSError:
            return frozenset()

    def add(self, client: ClientId) -> None:
        """Writes one line, and returns when it is on the disk. Raises OSError."""
        self.make()
        with locks.locked(self.path, self._like, os.O_WRONLY | os.O_APPEND) as descriptor:
            # A power cut may have left an incomplete line: the first newline ends it.
            line = f"\n{client}\n".encode()
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(descriptor)

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[frozenset[ClientId], Callable[[], None]]]:
        """Locks the journal; gives its clients and a function that empties it. Raises OSError."""
        with locks.locked(self.path, self._like) as descriptor:

            def empty() -> None:
                os.ftruncate(descriptor, 0)
                os.fsync(descriptor)

            yield _clients_in(descriptor), empty

    def make(self) -> None:
        """Makes the file durably, if it is missing. Raises OSError."""
        os.close(safe_files.open_or_make(self.path, self._like))

    def ring(self) -> None:
        """Wakes the other processes after a commit; they look once a second anyway."""
        with contextlib.suppress(OSError):
            opened = safe_files.open_to_change(self.path, os.O_RDONLY, self._like)
            with safe_files.closing(opened) as descriptor:
                os.utime(descriptor)


def _clients_in(descriptor: int) -> frozenset[ClientId]:
    """Raises OSError."""
    if not (size := os.fstat(descriptor).st_size):
        return frozenset()
    clients = set()
    for line in filter(None, os.pread(descriptor, size, 0).split(b"\n")[:-1]):
        with contextlib.suppress(ValueError):
            clients.add(parse_client_id(line.decode("ascii", "replace")))
    return frozenset(clients)


def set_ballast(path: Path, like: Path) -> None:
    """Fills the file at `path` with `BALLAST` bytes, or at least a quarter. Raises OSError."""
    with safe_files.closing(safe_files.open_or_make(path, like)) as descriptor:
        has = os.fstat(descriptor).st_size
        for size in (BALLAST, BALLAST // 2, BALLAST // 4):
            if has >= size:
                return
            try:
                os.posix_fallocate(descriptor, 0, size)
                return
            except OSError:
                os.ftruncate(descriptor, has)
                if size == BALLAST // 4:
                    raise


def free_ballast(path: Path, like: Path) -> None:
    """Empties the file at `path`, if there is one, so that its space can be used."""
    with contextlib.suppress(OSError):
        opened = safe_files.open_to_change(path, os.O_WRONLY, like)
        with safe_files.closing(opened) as descriptor:
            os.ftruncate(descriptor, 0)


def spare_folders() -> tuple[Path, ...]:
    """Folders where a revocation can be noted if the database's own folder cannot be written.

    Their contents are gone after a reboot (tmpfs), but every process of this machine reads them.
    """
    folders = [Path("/run/capport")]
    if (runtime := os.environ.get("XDG_RUNTIME_DIR", "")).startswith("/"):
        folders.append(Path(runtime) / "capport")
    return tuple(folders)
