"""What each client may still send, kept for one process or for all workers of a machine.

Each budget is a bucket of `core/rates.py`: one instant. They are in a table of fixed size, which
processes can share, so strangers cannot fill the memory. The table has groups of eight places. The
key of a budget decides its group. A new budget takes the place of the one in its group that was
full first, or will be.

A process locks the group in which it changes a budget. If another process was stopped while it held
the lock, it goes on without the lock, and the budget may come out too large.
"""

import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from hashlib import blake2b
from mmap import mmap
from struct import Struct
from typing import Final

from capport.core import rates
from capport.core.policy import Rate
from capport.core.session import Instant

_SALT: Final = 16  # random bytes at the beginning: so no client can choose whose place it takes
_GROUPS: Final = 8192
_PLACES: Final = Struct("=" + 8 * "Qd")  # the places of a group
_PLACE: Final = Struct("=Qd")  # the hash of its key, and the instant

_TRIES: Final = 50  # attempts to lock a group: 50 us if the process that holds the lock is stopped

MOST: Final = 8 * _GROUPS
"""How many budgets there may be."""

SIZE: Final = _SALT + _GROUPS * _PLACES.size
"""Bytes of the whole table: 1 MiB."""


class Budgets:
    """The table. `shared` is a file of at least SIZE bytes that other processes map too."""

    def __init__(self, shared: int | None = None) -> None:
        self._shared = shared
        # The whole table, as all processes that share it have it.
        self.memory = mmap(-1 if shared is None else shared, SIZE)
        if not any(self.memory[:_SALT]):
            self.memory[:_SALT] = os.urandom(_SALT)
        self._salt = self.memory[:_SALT]

    def spend(self, key: str, rate: Rate, now: Instant) -> int | None:
        """Takes one request from the budget; returns how long to wait if it is one too many."""
        group, of = self._hashed(key)
        self._lock(group)
        try:
            at, full_at = self._find(group, of)
            full_at, wait = rates.spend(full_at, rate, now)
            if wait is None:
                _PLACE.pack_into(self.memory, at, of, full_at)
            return wait
        finally:
            self._unlock(group)

    def until(self, key: str) -> Instant:
        """The instant recorded for `key`."""
        return self._find(*self._hashed(key))[1]

    def set(self, key: str, until: Instant) -> None:
        """Records an instant for `key`."""
        group, of = self._hashed(key)
        self._lock(group)
        try:
            _PLACE.pack_into(self.memory, self._find(group, of)[0], of, until)
        finally:
            self._unlock(group)

    def clear(self) -> None:
        """Forgets every key."""
        self.memory[_SALT:] = bytes(SIZE - _SALT)

    def _hashed(self, key: str) -> tuple[int, int]:
        """Where the group of `key` begins, and the hash that is recorded for `key`."""
        digest = blake2b(key.encode(), digest_size=16, salt=self._salt).digest()
        group = int.from_bytes(digest[8:]) % _GROUPS
        return _SALT + group * _PLACES.size, int.from_bytes(digest[:8])

    def _find(self, group: int, of: int) -> tuple[int, Instant]:
        """The place of a key, and its instant; if it has none, the place to take, and FULL."""
        places = _PLACES.unpack_from(self.memory, group)
        hashes, instants = places[::2], places[1::2]
        number = hashes.index(of) if of in hashes else instants.index(min(instants))
        at = group + number * _PLACE.size
        return at, instants[number] if hashes[number] == of else rates.FULL

    def _lock(self, group: int) -> None:
        if self._shared is None:
            return
        for _ in range(_TRIES):
            try:
                lockf(self._shared, LOCK_EX | LOCK_NB, _PLACES.size, group)
                return
            except BlockingIOError:
                os.sched_yield()

    def _unlock(self, group: int) -> None:
        if self._shared is not None:
            lockf(self._shared, LOCK_UN, _PLACES.size, group)
