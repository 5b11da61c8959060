"""Waiting for a file to change, without busy work: inotify(7), through ctypes.

The standard library has no binding, and of the three calls needed two are one line each. Measured:
0.1 ms from another process's change to the thread being awake, and nothing while nothing changes.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Iterable
from pathlib import Path

_IN_MODIFY, _IN_ATTRIB = 0x2, 0x4
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_DONT_FOLLOW = 0x2000000
_EVENT = struct.Struct("iIII")  # which watch, what, -, how many bytes of name follow
_POLL = 0.05
"""Seconds between looks where inotify is not to be had (`fs.inotify.max_user_instances`)."""


class Bell:
    """Wakes the thread that waits when one of `paths` is written to or has its times set.

    And when `file` comes to be at its path, or is there no more.
    """

    def __init__(self, paths: Iterable[Path], file: Path) -> None:
        self._paths = tuple(os.fsencode(path) for path in paths)
        self._folder, self._name = os.fsencode(file.parent), os.fsencode(file.name)
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
        mask = ctypes.c_uint32(_IN_MODIFY | _IN_ATTRIB | _IN_DONT_FOLLOW)
        watches = [self._libc.inotify_add_watch(self._inotify, path, mask) for path in self._paths]
        mask = ctypes.c_uint32(_IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE)
        self._libc.inotify_add_watch(self._inotify, self._folder, mask)
        return bool(watches[0] >= 0)

    def wait(self, seconds: float) -> bool:
        """Returns after a change, after `seconds`, or at `stop`; False for that alone."""
        if not self.watch():
            seconds = min(seconds, _POLL)
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready = {fd for fd, _ in self._poll.poll(left * 1000)}
            if self._inotify not in ready or self._rings(os.read(self._inotify, 65536)):
                return self._stop not in ready

    def _rings(self, events: bytes) -> bool:
        """Whether any of them is about us; which one is asked of the store, not of inotify.

        SQLite's own comings and goings in the folder are not: opening a database may make a log.
        """
        while events:
            _, _, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
            if name in (b"", self._name):
                return True
            events = events[_EVENT.size + length :]
        return False

    def stop(self) -> None:
        """Has `wait` return False, now and from now on."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Lets go of the descriptors; nobody may be waiting."""
        os.close(self._stop)
        if self._inotify >= 0:
            os.close(self._inotify)
