"""This router's copy, in `portal.db`, of the records that the routers of a fleet share."""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import Any

from capport.stores import StoreError, Unreadable
from capport.stores.sqlite.database import Database, MemoryDatabase
from capport.web.shared_record import SharedRecord, dump, join, parse

logger = logging.getLogger(__name__)

_SEEN_LATELY = 60_000
"""Milliseconds by which the roster on the disk may be late, so that it is not written each time."""

# As bytes, so that a record that is no UTF-8 hides no other.
_OF_KEY = "SELECT key, CAST(record AS BLOB) FROM shared WHERE key = ?"
_VOUCHERS = "SELECT key, CAST(record AS BLOB) FROM shared WHERE number > 0 ORDER BY number"

_GENERATION = ""  # the generation's place among the routers


class SharedCopy:
    """Implements `Copy`. The router's id comes from the file's secret: another file, another id.

    A record that cannot be read is reported once, and is as one that is not there: what Redis has
    takes its place.
    """

    def __init__(self, database: Database | MemoryDatabase, secret: Callable[[], bytes]) -> None:
        self._database, self._secret = database, secret
        self._damaged: set[str] = set()

    @property
    def router(self) -> str:
        """The id of this router."""
        return hashlib.sha256(b"router\0" + self._secret()).hexdigest()[:16]

    def keys(self) -> list[str]:
        """Every key that has a record."""
        return [key for (key,) in self._rows("SELECT key FROM shared")]

    def unsent(self) -> list[str]:
        """The keys whose records say more than the other routers are known to have."""
        return [key for (key,) in self._rows("SELECT key FROM shared WHERE unsent = 1")]

    def lack(self, keys: Collection[str]) -> None:
        """Notes that the others have nothing under `keys`."""
        if keys:
            with self._database.transaction() as db:
                rows = [(key,) for key in keys]
                db.executemany("UPDATE shared SET unsent = 1 WHERE key = ?", rows)

    def joined(self, theirs: Mapping[str, str | None]) -> tuple[dict[str, str], Unreadable]:
        """The records under these keys, joined with those of the others; and what does not fit."""
        found, refused = _parsed({key: text for key, text in theirs.items() if text is not None})
        with self._database.current() as db:
            for key in theirs.keys() - refused.keys():
                if (mine := self._read(db, key)) is not None:
                    found[key] = join(mine, found[key]) if key in found else mine
        return {key: dump(record) for key, record in found.items()}, refused

    def keep(self, theirs: Mapping[str, str]) -> Unreadable:
        """Joins records that the others have into the copy. Returns what does not fit."""
        found, refused = _parsed(theirs)
        if found:
            with self._database.transaction() as db:
                for key, record in found.items():
                    mine = self._read(db, key)
                    both = join(mine, record) if mine else record
                    if both != mine or both != record or _is_unsent(db, key):
                        _write(db, key, both, unsent=both != record)
        return refused

    def change(self, key: str, change: Callable[[SharedRecord], SharedRecord]) -> None:
        """Changes a record that is there, in the copy alone: other routers hear of it later.

        Raises StoreError if it cannot be read.
        """
        with self._database.transaction() as db:
            if (mine := self._read(db, key)) is not None:
                _write(db, key, change(mine), unsent=True)
            elif key in self._damaged:
                raise StoreError(f"{self._database.path}: the record {key} is damaged")

    def get(self, key: str) -> SharedRecord | None:
        """The record under `key`."""
        with self._database.current() as db:
            return self._read(db, key)

    def vouchers(self) -> list[SharedRecord]:
        """Every record of a voucher, by number."""
        rows = self._rows(_VOUCHERS)
        return [record for row in rows if (record := self._parsed(*row)) is not None]

    def key_of(self, number: int) -> str | None:
        """The key of the voucher with this number."""
        rows = self._rows("SELECT key FROM shared WHERE number > 0 AND number = ?", (number,))
        return rows[0][0] if rows else None

    def until(self, record: str) -> int:
        """Until when the others need a record; 0: always."""
        return parse(record).limits.until

    def roster(self) -> tuple[str, dict[str, str]]:
        """The generation of the shared data, and each router's last sign of life in it."""
        signs = dict(self._rows("SELECT router, sign FROM roster"))
        return signs.pop(_GENERATION, ""), signs

    def looked(self, now: int, generation: str, roster: Mapping[str, str]) -> None:
        """Keeps the roster, and forgets what has ended. Call it when all was read, at `now`."""
        ended = self._rows("SELECT key FROM shared WHERE until > 0 AND until <= ?", (now,))
        of, before = self.roster()
        is_late = (of, before.keys()) != (generation, roster.keys()) or any(
            _seen(sign) > _seen(before[router]) + _SEEN_LATELY for router, sign in roster.items()
        )
        if ended or is_late:
            with self._database.transaction() as db:
                db.executemany("DELETE FROM shared WHERE key = ?", ended)
                db.execute("DELETE FROM roster")
                rows = [(_GENERATION, generation), *roster.items()]
                db.executemany("INSERT INTO roster VALUES (?, ?)", rows)

    def _rows(self, question: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._database.current() as db:
            return db.execute(question, values).fetchall()

    def _read(self, db: sqlite3.Connection, key: str) -> SharedRecord | None:
        row = db.execute(_OF_KEY, (key,)).fetchone()
        return row and self._parsed(*row)

    def _parsed(self, key: str, record: bytes) -> SharedRecord | None:
        try:
            return parse(record.decode())
        except ValueError as error:
            if key not in self._damaged:
                self._damaged.add(key)
                logger.error(
                    f"{self._database.path}: the record {key} is damaged ({error}); what Redis has"
                    " takes its place"
                )
            return None


def _parsed(texts: Mapping[str, str]) -> tuple[dict[str, SharedRecord], Unreadable]:
    found, refused = dict[str, SharedRecord](), dict[str, ValueError]()
    for key, text in texts.items():
        try:
            found[key] = parse(text)
        except ValueError as error:
            refused[key] = error
    return found, refused


def _is_unsent(db: sqlite3.Connection, key: str) -> bool:
    return bool(db.execute("SELECT unsent FROM shared WHERE key = ?", (key,)).fetchone()[0])


def _write(db: sqlite3.Connection, key: str, record: SharedRecord, *, unsent: bool) -> None:
    limits = record.limits
    number = limits.number if limits.lifetime else 0  # the last number given out is no voucher
    db.execute(
        "INSERT OR REPLACE INTO shared VALUES (?, ?, ?, ?, ?)",
        (key, dump(record), number, limits.until, unsent),
    )


def _seen(sign: str) -> int:
    digits = sign.partition(" ")[0]
    return int(digits) if digits.isdecimal() else 0
