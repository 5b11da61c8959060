"""Opens files in a folder that another user may own, without being led elsewhere or made to wait.

`open_regular` opens files that people write, and follows links. The rest of this module is about
databases and the files beside them.

Root revokes sessions and makes vouchers in the folder of an unprivileged service. The owner of that
folder can put anything at any name in it, at any moment: a link to a file of root's, a hard link to
one, a pipe. So no file is opened through a link, each file is checked by its descriptor before a
byte of it changes, and only a file that this process has just made is given to another owner.

(A database itself is checked by its name, because SQLite opens it by that, and closing another
descriptor of it would release SQLite's locks.)
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: otherwise opening a pipe waits for its other end.
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MOST_LINKS = 40  # the kernel's limit (path_resolution(7))


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read, and nothing that could wait or never end. Raises OSError."""
    try:
        _refuse_irregular(path, path.stat())  # opening a device may have effects
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, f"is not a file name: {error}") from error
    opened = _open(path, os.O_RDONLY, lambda status: _refuse_irregular(path, status))
    return os.fdopen(opened, "rb")


def open_to_read(path: Path) -> int:
    """A descriptor for reading the regular file at `path`; any user may own it. Raises OSError.

    The file names clients whose sessions were revoked. If it were not read, they would be open
    again.
    """
    return _open(path, os.O_RDONLY | os.O_NOFOLLOW, lambda status: _check_regular(status, path))


def open_to_change(path: Path, flags: int, like: Path) -> int:
    """A descriptor for changing the regular file at `path`. Raises OSError.

    The file must have no other name (hard link), and belong to this process's user, to the owner of
    the database at `like` or to the owner of its folder.
    """
    return _open(path, flags | os.O_NOFOLLOW, lambda status: _check(status, path, like))


def open_or_make(path: Path, like: Path) -> int:
    """As `open_to_change`, to read and write. Raises OSError.

    A missing file is made durably, and only the owner of `like` may read it.
    """
    try:
        return open_to_change(path, os.O_RDWR, like)
    except FileNotFoundError:
        made = _make(path, like)
    # Without one, another process was first, or a broken link is there.
    return open_to_change(path, os.O_RDWR, like) if made is None else made


def make_database(path: Path) -> bool:
    """Makes an empty file for SQLite, durably, unless something is there. Returns whether it did.

    No other user can read it at any moment. If root makes it, it belongs to the owner of the
    folder, as if that owner had made it. (SQLite gives the log and its index to the owner of the
    file.)
    Raises OSError.
    """
    made = _make(path, path.parent)
    if made is not None:
        os.close(made)
    return made is not None


def check_database(path: Path, like: Path) -> None:
    """Raises OSError unless `open_to_change` would accept what is at `path`."""
    _check(path.lstat(), path, like)


def follow(path: Path) -> Path:
    """`path` with its links resolved. As root, raises PermissionError for another user's link.

    A link that root made is the operator's choice. A link that the folder's owner made could make
    root create and write a database anywhere. For other users the kernel's permissions suffice.
    """
    if os.geteuid() == 0:
        left = [*reversed(path.absolute().parts)]
        at, links = Path(left.pop()), 0
        while left:
            part = left.pop()
            at = at.parent if part == ".." else at / part
            try:
                target, owner = at.readlink(), at.lstat().st_uid
            except OSError:  # it is not a link, or does not exist
                continue
            links += 1
            if owner != 0 or links > _MOST_LINKS:
                why = f"a link that user {owner} made" if owner else "too many links"
                raise PermissionError(
                    f"{path}: {at} is {why}; root follows none; name the file itself"
                )
            left += reversed(target.parts)
            at = at.parent  # an absolute target replaces it when joined
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
    """Opens what is at `path`, and closes it again if `check` raises. Raises OSError."""
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
    """A descriptor of a new file; None if something is at `path`. Raises OSError."""
    try:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _FLAGS, 0o600)
    except FileExistsError:
        return None
    try:
        if os.geteuid() == 0 and (owner := _owner(like) or _owner(like.parent)):
            os.fchown(made, *owner)
        sync_folder(path.parent)
    except BaseException:
        os.close(made)
        raise
    return made


def _check(status: os.stat_result, path: Path, like: Path) -> None:
    _check_regular(status, path)
    if status.st_nlink != 1:
        raise OSError(errno.EMLINK, "has another name (a hard link)", str(path))
    if status.st_uid not in _owners(like):
        what = f"belongs to user {status.st_uid}, not to the database's owner"
        raise OSError(errno.EPERM, what, str(path))


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _owners(like: Path) -> set[int]:
    """The users that may own a file beside the database: its owner, its folder's, and our own."""
    theirs = {owner[0] for place in (like, like.parent) if (owner := _owner(place))}
    return theirs | {os.geteuid()}


def _owner(path: Path) -> tuple[int, int] | None:
    """The user and group of what is at `path`, even of a link itself; None if nothing is."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_uid, status.st_gid
