"""Gives a value that changes when a file changes; callers compare it from time to time."""

from pathlib import Path


def state_of(file: Path | str) -> tuple[int, ...]:
    """A value that changes when the file's contents or access rights change, or it is replaced.

    Links are followed, so the value also changes when a link is made to point to another file.
    """
    try:
        found = Path(file).stat()
    except OSError as error:
        return (error.errno or -1,)
    except ValueError:  # a NUL in the name
        return (-1,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
