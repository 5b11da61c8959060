"""Which process uses a database's log, and a lock that keeps other processes out of a file.

The module reads /proc/locks, because asking with fcntl(2) releases the locks: closing any
descriptor of a file drops every POSIX lock that the process has on it, SQLite's too.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from capport.linux import safe_files

LOCK_SECONDS = 0.5
_LOCKS = Path("/proc/locks")


def user_of_another(path: Path) -> int | None:
    """A process that uses the log beside `path` for another file than the one at `path` now.

    SQLite finds a log by its name. A process that has a database open holds a lock on the database
    and one on the index of its log (os_unix.c: SHARED_FIRST, UNIX_SHM_DMS), and takes the one on
    the database first. None if there is no such process, or if it cannot be seen: it runs in
    another PID namespace, or the file system has other device numbers than stat(2) (btrfs).
    """
    try:
        of_the_log, of_the_file = holders(Path(f"{path}-shm")), holders(path)
    except OSError:  # there is no log, or no file
        return None
    return min(of_the_log - of_the_file, default=None)


def holders(path: Path) -> set[int]:
    """The processes that hold a lock on the file at `path`. Raises OSError."""
    status = path.stat()
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # `1: POSIX  ADVISORY  READ 2528 fe:00:2195594 128 128`; for a process that waits, `->` comes
    # after the number.
    lines = (line.split() for line in _LOCKS.read_text().splitlines())
    return {int(line[4]) for line in lines if line[1] == "POSIX" and line[5] == inode}


@contextlib.contextmanager
def locked(path: Path, like: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Locks the file at `path`, and gives a descriptor of it. Raises OSError."""
    with safe_files.closing(safe_files.open_to_change(path, flags, like)) as descriptor:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        yield descriptor  # closing the descriptor unlocks the file
