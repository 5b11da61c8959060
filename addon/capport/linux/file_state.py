"""What changes when a file does: for whoever looks at one now and then."""

from pathlib import Path


def state_of(file: Path | str) -> tuple[int, ...]:
    """What changes when a file does: its contents, its access rights, or the file itself.

    Of what a link leads to in the end, so that a link pointed elsewhere is another file.
    """
    try:
        found = Path(file).stat()
    except OSError as error:
        return (error.errno or -1,)
    except ValueError:  # a NUL in the name
        return (-1,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
