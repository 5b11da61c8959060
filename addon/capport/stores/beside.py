"""Opening what lies beside a database, in a folder whose owner may not be who opens it.

Root revokes in the folder of an unprivileged service. Whoever owns that can put anything at any
name in it, at any moment: a link to a file of root's, a second name of one, a pipe. So nothing is
opened through a link, what was opened is looked at by its descriptor before a byte of it changes,
and nothing is given away but what was made here just now.
"""

import errno
import os
import stat
from pathlib import Path

from capport.stores import StoreError

# O_NONBLOCK: a pipe would keep whoever opens it waiting.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MOST_LINKS = 40  # as the kernel has it (path_resolution(7))


def open_to_read(path: Path) -> int:
    """A descriptor of the regular file at `path`. Raises OSError.

    Whoever owns it: what is noted in it is revoked, and to leave it unread would be to forget that.
    """
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        _check_regular(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_to_change(path: Path, flags: int, like: Path) -> int:
    """A descriptor of the regular file at `path`, which has that name alone. Raises OSError.

    It must be ours, or belong to whom the database at `like` or its folder does.
    """
    descriptor = os.open(path, flags | _FLAGS)
    try:
        status = _check_regular(descriptor, path)
        if status.st_nlink != 1:
            raise OSError(errno.EMLINK, "has another name (a hard link)", str(path))
        if status.st_uid not in _owners(like):
            what = f"belongs to user {status.st_uid}, not to the database's"
            raise OSError(errno.EPERM, what, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_or_make(path: Path, like: Path) -> tuple[int, bool]:
    """The same for reading and writing, made if missing for the owner of `like` alone.

    And whether it was made. Raises OSError.
    """
    try:
        return open_to_change(path, os.O_RDWR, like), False
    except FileNotFoundError:
        pass
    try:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    except FileExistsError:  # another process was first, or it is a link to nowhere
        return open_to_change(path, os.O_RDWR, like), False
    try:
        if os.geteuid() == 0 and (owner := _owner(like) or _owner(like.parent)):
            os.fchown(made, *owner)
    except BaseException:
        os.close(made)
        raise
    return made, True


def follow(path: Path) -> Path:
    """`path` without links. Raises StoreError: as root, for a link that is not root's.

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
                raise StoreError(f"{path}: {at} is {why}; root follows none; name the file itself")
            left += reversed(target.parts)
            at = at.parent  # which joining an absolute target leaves by itself
    return path.resolve()


def _check_regular(descriptor: int, path: Path) -> os.stat_result:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status


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
