"""Files in a folder whose owner may not be who opens them: nothing that waits, nothing elsewhere.

What people write for us to read is opened by `open_regular`, through any link. The rest of this
module is about databases and what lies beside them.

Root revokes, and makes vouchers, in the folder of an unprivileged service. Whoever owns that can
put anything at any name in it, at any moment: a link to a file of root's, a second name of one, a
pipe. So nothing is opened through a link, what was opened is looked at by its descriptor before a
byte of it changes, and nothing is given away but what was made here just now.

(A database itself is looked at by its name: SQLite opens it by that, and to close a descriptor of
it would let go of SQLite's locks.)
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: a pipe would keep whoever opens it waiting.
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MOST_LINKS = 40  # as the kernel has it (path_resolution(7))


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read, and nothing that would wait, or never end. Raises OSError."""
    try:
        _refuse_irregular(path, path.stat())  # opening a device may have effects
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, f"is no file name: {error}") from error
    opened = _open(path, os.O_RDONLY, lambda status: _refuse_irregular(path, status))
    return os.fdopen(opened, "rb")


def open_to_read(path: Path) -> int:
    """A descriptor of the regular file at `path`. Raises OSError.

    Whoever owns it: what is noted in it is revoked, and to leave it unread would be to forget that.
    """
    return _open(path, os.O_RDONLY | os.O_NOFOLLOW, lambda status: _check_regular(status, path))


def open_to_change(path: Path, flags: int, like: Path) -> int:
    """A descriptor of the regular file at `path`, which has that name alone. Raises OSError.

    It must be ours, or belong to whom the database at `like` or its folder does.
    """
    return _open(path, flags | os.O_NOFOLLOW, lambda status: _check(status, path, like))


def open_or_make(path: Path, like: Path) -> tuple[int, bool]:
    """The same for reading and writing, made if missing for the owner of `like` alone.

    And whether it was made. Raises OSError.
    """
    try:
        return open_to_change(path, os.O_RDWR, like), False
    except FileNotFoundError:
        pass
    if (made := _make(path, like)) is None:  # another process was first, or it leads nowhere
        return open_to_change(path, os.O_RDWR, like), False
    return made, True


def make_database(path: Path) -> bool:
    """Makes an empty file for SQLite to open, unless something is there; whether it did.

    At no moment may others read it, and what root makes belongs to whom the folder does, as it
    would had they been first. (SQLite gives the log and its index to whom the file belongs.) Raises
    OSError.
    """
    made = _make(path, path.parent)
    if made is not None:
        os.close(made)
    return made is not None


def check_database(path: Path, like: Path) -> None:
    """Raises OSError unless what is at `path` could be opened to change."""
    _check(path.lstat(), path, like)


def follow(path: Path) -> Path:
    """`path` without links. Raises PermissionError: as root, for a link that is not root's.

    The operator's links lead where the operator wants; one that the folder's owner made would have
    root make and write a database wherever that leads. Anybody else follows whatever they may.
    """
    if os.geteuid() == 0:
        left = [*reversed(path.absolute().parts)]
        at, links = Path(left.pop()), 0
        while left:
            part = left.pop()
            at = at.parent if part == ".." else at / part
            try:
                target, owner = at.readlink(), at.lstat().st_uid
            except OSError:  # no link, or nothing
                continue
            links += 1
            if owner != 0 or links > _MOST_LINKS:
                why = f"a link that user {owner} made" if owner else "too many links"
                raise PermissionError(
                    f"{path}: {at} is {why}; root follows none; name the file itself"
                )
            left += reversed(target.parts)
            at = at.parent  # which joining an absolute target leaves by itself
    return path.resolve()


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Closes `descriptor` at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: syncing a new file does not. Raises OSError."""
    with closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


def _open(path: Path, flags: int, check: Callable[[os.stat_result], None]) -> int:
    """A descriptor of what is at `path`, if `check` does not raise. Raises OSError."""
    descriptor = os.open(path, flags | _FLAGS)
    try:
        check(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"is {kind}: name a file", str(path))


def _make(path: Path, like: Path) -> int | None:
    """A descriptor of a new file; None where something is there. Raises OSError."""
    try:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _FLAGS, 0o600)
    except FileExistsError:
        return None
    try:
        if os.geteuid() == 0 and (owner := _owner(like) or _owner(like.parent)):
            os.fchown(made, *owner)
    except BaseException:
        os.close(made)
        raise
    return made


def _check(status: os.stat_result, path: Path, like: Path) -> None:
    _check_regular(status, path)
    if status.st_nlink != 1:
        raise OSError(errno.EMLINK, "has another name (a hard link)", str(path))
    if status.st_uid not in _owners(like):
        what = f"belongs to user {status.st_uid}, not to the database's"
        raise OSError(errno.EPERM, what, str(path))


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _owners(like: Path) -> set[int]:
    """Whose a file beside the database may be: the folder's owner could put any there anyway."""
    theirs = {owner[0] for place in (like, like.parent) if (owner := _owner(place))}
    return theirs | {os.geteuid()}


def _owner(path: Path) -> tuple[int, int] | None:
    """The user and group of what is at `path`, be it a link; None where nothing is."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_uid, status.st_gid
