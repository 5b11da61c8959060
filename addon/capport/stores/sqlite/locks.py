"""Which process uses a database's log: from /proc/locks, for to ask by fcntl(2) is to let go.

(Closing any descriptor of a file drops every POSIX lock that the process has on it, SQLite's too.)
"""

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")


def user_of_another(path: Path) -> int | None:
    """The process that uses the log beside `path`, but for another file than is there now.

    SQLite finds a log by its name. Whoever has a database open keeps a lock on it and one on the
    index of its log (os_unix.c: SHARED_FIRST, UNIX_SHM_DMS), and takes that on the database first.
    None where nobody does, or where it cannot be seen: in another PID namespace, or on a file
    system whose device numbers are not stat(2)'s (btrfs).
    """
    try:
        of_the_log, of_the_file = _holders(Path(f"{path}-shm")), _holders(path)
    except OSError:  # there is no log, or no file
        return None
    return min(of_the_log - of_the_file, default=None)


def _holders(path: Path) -> set[int]:
    """Who has a lock on the file at `path`. Raises OSError."""
    status = path.stat()
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # `1: POSIX  ADVISORY  READ 2528 fe:00:2195594 128 128`; who waits has an arrow in between.
    lines = (line.split() for line in _LOCKS.read_text().splitlines())
    return {int(line[4]) for line in lines if line[1] == "POSIX" and line[5] == inode}
