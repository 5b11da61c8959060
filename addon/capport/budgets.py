"""What each client may still send, kept for one process or for all workers of a machine.

Each budget is a bucket of `core/rates.py`: one instant. They lie in a table of fixed size, which
processes can share, so strangers cannot fill the memory. A budget that is full again gives up its
place to the next client; if the table has no such place, the one that is full the soonest does.

A process locks the places that it changes, so that no two change one budget at once. It does not
wait for a process that was stopped meanwhile: then that budget may come out too large.
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

_SALT: Final = 16  # bytes at the beginning: so no client can choose whose place it takes
_GROUPS: Final = 8192  # a key belongs to one of them
_PLACES: Final = Struct("=" + 8 * "Qd")  # of one group, each with its key's hash, and the instant
_PLACE: Final = Struct("=Qd")

_TRIES: Final = 50  # to lock places: 50 us if another process holds the lock and is stopped

MOST: Final = 8 * _GROUPS
"""How many budgets there may be."""

SIZE: Final = _SALT + _GROUPS * _PLACES.size
"""Bytes of the whole table: 1 MiB."""


class Budgets:
    """The table. `shared` is a file of at least SIZE bytes that other processes map too."""

    def __init__(self, shared: int | None = None) -> None:
        self._shared = shared
        self._memory = mmap(-1 if shared is None else shared, SIZE)
        if not any(self._memory[:_SALT]):
            self._memory[:_SALT] = os.urandom(_SALT)
        self._salt = self._memory[:_SALT]

    def spend(self, key: str, rate: Rate, now: Instant) -> int | None:
        """Takes one request from the budget; returns how long to wait if it is one too many."""
        group, of = self._hashed(key)
        self._lock(group)
        try:
            at, full_at = self._find(group, of)
            full_at, wait = rates.spend(full_at, rate, now)
            if wait is None:
                _PLACE.pack_into(self._memory, at, of, full_at)
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
            _PLACE.pack_into(self._memory, self._find(group, of)[0], of, until)
        finally:
            self._unlock(group)

    def clear(self) -> None:
        """Forgets every key."""
        self._memory[_SALT:] = bytes(SIZE - _SALT)

    def _hashed(self, key: str) -> tuple[int, int]:
        """Where the group of `key` begins, and the hash that is recorded for `key`."""
        digest = blake2b(key.encode(), digest_size=16, salt=self._salt).digest()
        group = int.from_bytes(digest[8:]) % _GROUPS
        return _SALT + group * _PLACES.size, int.from_bytes(digest[:8])

    def _find(self, group: int, of: int) -> tuple[int, Instant]:
        """The place of a key, and its instant; if it has none, the place to take."""
        places = _PLACES.unpack_from(self._memory, group)
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
