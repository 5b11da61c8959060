"""Revocations that the database would not take, kept beside it until it does.

One client id a line, synced before `add` returns. Whoever reads the store counts these clients as
unknown, whatever the database says; the next process that can write deletes their sessions there
and empties the file. So the file holds no times and needs none: every grant empties it first.

The same file is the bell: who has committed a change sets its times, and inotify wakes the others.
(The write-ahead log is no bell: it is written before the commit can be seen.)
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
"""Bytes set aside on the disk, and freed when it is full so that a revocation finds room."""


class Revoked:
    """The journal at `path`, which belongs to whom the file `like` belongs to."""

    def __init__(self, path: Path, like: Path) -> None:
        self.path = path
        self._like = like

    def read(self) -> frozenset[ClientId]:
        """The clients in it. A line that was being written when the power went is not counted."""
        try:
            with safe_files.closing(safe_files.open_to_read(self.path)) as descriptor:
                return _clients_in(descriptor)
        except OSError:
            return frozenset()

    def add(self, client: ClientId) -> None:
        """Writes one line, and returns when it is on the disk. Raises OSError."""
        self.make()
        with locks.locked(self.path, self._like, os.O_WRONLY | os.O_APPEND) as descriptor:
            # A line may have been torn by a power cut: the first newline ends whatever is there.
            line = f"\n{client}\n".encode()
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(descriptor)

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[frozenset[ClientId], Callable[[], None]]]:
        """The clients in it, and what empties it; nobody adds to it meanwhile. Raises OSError."""
        with locks.locked(self.path, self._like) as descriptor:

            def empty() -> None:
                os.ftruncate(descriptor, 0)
                os.fsync(descriptor)

            yield _clients_in(descriptor), empty

    def make(self) -> None:
        """Makes the file if it is missing, durably. Raises OSError."""
        locks.make(self.path, self._like)

    def ring(self) -> None:
        """Tells the others that something was committed; they look once a second anyway."""
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
    """Takes up `BALLAST` bytes at `path`, or at least a quarter of it. Raises OSError."""
    with safe_files.closing(safe_files.open_or_make(path, like)[0]) as descriptor:
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
    """Gives the room back, if there is any."""
    with contextlib.suppress(OSError):
        opened = safe_files.open_to_change(path, os.O_WRONLY, like)
        with safe_files.closing(opened) as descriptor:
            os.ftruncate(descriptor, 0)


def spare_folders() -> tuple[Path, ...]:
    """Where a revocation can still be noted when the database's own folder takes nothing.

    They are gone after a reboot (tmpfs), but every process of this machine finds them.
    """
    folders = [Path("/run/capport")]
    if (runtime := os.environ.get("XDG_RUNTIME_DIR", "")).startswith("/"):
        folders.append(Path(runtime) / "capport")
    return tuple(folders)
