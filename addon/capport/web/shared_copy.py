"""This router's copy, in `portal.db`, of the records that the routers of a fleet share."""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import Any

from capport.stores import Refused
from capport.stores.sqlite.database import Database, MemoryDatabase
from capport.web.shared_record import SharedRecord, dump, join, parse

_SEEN_LATELY = 60_000
"""Milliseconds by which the roster on the disk may be late, so that it is not written each time."""

_GENERATION = ""  # the generation's place among the routers


class SharedCopy:
    """Implements `Copy`. The router's id comes from the file's secret: another file, another id."""

    def __init__(self, database: Database | MemoryDatabase, secret: Callable[[], bytes]) -> None:
        self._database, self._secret = database, secret

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

    def joined(self, theirs: Mapping[str, str | None]) -> tuple[dict[str, str], Refused]:
        """The records under these keys, joined with those of the others; and what does not fit."""
        found, refused = _parsed({key: text for key, text in theirs.items() if text is not None})
        with self._database.current() as db:
            for key in theirs.keys() - refused.keys():
                if (mine := _read(db, key)) is not None:
                    found[key] = join(mine, found[key]) if key in found else mine
        return {key: dump(record) for key, record in found.items()}, refused

    def keep(self, theirs: Mapping[str, str]) -> Refused:
        """Joins records that the others have into the copy. Returns what does not fit."""
        found, refused = _parsed(theirs)
        if found:
            with self._database.transaction() as db:
                for key, record in found.items():
                    mine = _read(db, key)
                    both = join(mine, record) if mine else record
                    if both != mine or both != record or _is_unsent(db, key):
                        _write(db, key, both, unsent=both != record)
        return refused

    def change(self, key: str, change: Callable[[SharedRecord], SharedRecord]) -> None:
        """Changes a record that is there, in the copy alone: other routers hear of it later."""
        with self._database.transaction() as db:
            if (mine := _read(db, key)) is not None:
                _write(db, key, change(mine), unsent=True)

    def get(self, key: str) -> SharedRecord | None:
        """The record under `key`."""
        with self._database.current() as db:
            return _read(db, key)

    def vouchers(self) -> list[SharedRecord]:
        """Every record of a voucher, by number."""
        rows = self._rows("SELECT record FROM shared WHERE number > 0 ORDER BY number")
        return [parse(record) for (record,) in rows]

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


def _parsed(texts: Mapping[str, str]) -> tuple[dict[str, SharedRecord], Refused]:
    found, refused = dict[str, SharedRecord](), dict[str, ValueError]()
    for key, text in texts.items():
        try:
            found[key] = parse(text)
        except ValueError as error:
            refused[key] = error
    return found, refused


def _read(db: sqlite3.Connection, key: str) -> SharedRecord | None:
    row = db.execute("SELECT record FROM shared WHERE key = ?", (key,)).fetchone()
    return row and parse(row[0])


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
