"""The login server's records, if several routers share vouchers and used states.

Redis decides whether a voucher or a state can be used, and every router has a copy in its
`portal.db`. While Redis is away, none can be used. Everything else belongs to this router alone, as
do the vouchers that it made before it shared any.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from capport.core.client import ClientId
from capport.stores import AwayError, Book, StoreError
from capport.stores.opening import open_book
from capport.stores.redis_url import is_redis
from capport.web.date_reckoning import Moment
from capport.web.records import Records, Voucher, records_beside
from capport.web.shared_copy import SharedCopy
from capport.web.shared_record import RecordLimits, SharedRecord, dump, parse
from capport.web.states import LIFETIME

FIRST_NUMBER = 100_001
"""The first voucher's number: larger than those that a router gave out by itself."""
_NUMBERS = "numbers"  # the key of the last number that was given out
KEPT = round((LIFETIME + 60.0) * 1000)
"""Milliseconds for which a used state is remembered."""


def open_records(store: str, *, like: Path | None = None) -> Records:
    """The records beside a session store, shared if the sessions are. Raises StoreError."""
    path = records_beside(store)
    if path is not None and is_redis(store):
        return SharedRecords(store, path, like=like)
    return Records(path, like=like)


class SharedRecords(Records):
    """The records in the file at `path`, and those that the routers share in the Redis at `url`."""

    book: Book

    def __init__(self, url: str, path: Path, *, like: Path | None = None) -> None:
        super().__init__(path, like=like)
        self._copy = SharedCopy(self.database, lambda: self.secret)
        try:
            self.book = open_book(url, self._copy)
        except StoreError:
            super().close()
            raise

    def close(self) -> None:
        """Closes the connection, then the file."""
        self.book.close()
        super().close()

    # -- states --------------------------------------------------------------------------------

    def spend(self, state: bytes, client: ClientId, boot: str, expires: float) -> ClientId | None:
        """Notes that `client` used a state. Returns None the first time, then who used it first."""
        key, by = _state_key(state), self.spent_by(state)

        def use(found: dict[str, str], now: int) -> dict[str, str]:
            nonlocal by
            record = _record(found, key) or SharedRecord(RecordLimits(until=now + KEPT))
            by = next(iter(record.clients), None)
            return {} if by else {key: dump(record.used(client, now, 0))}

        try:
            self.book.change([key], use)
        except AwayError:
            if by is None:  # that it was used stays true without Redis
                raise
        return by

    def unspend(self, state: bytes) -> None:
        """Makes a state usable again, after the grant for which it was spent has failed."""
        if (client := self.spent_by(state)) is not None:
            self._change_anyway(_state_key(state), lambda record: record.given_back(client))

    def spent_by(self, state: bytes) -> ClientId | None:
        """The client that used a state, as far as this router knows."""
        record = self._copy.get(_state_key(state))
        return next(iter(record.clients), None) if record else None

    # -- vouchers ------------------------------------------------------------------------------

    def add_vouchers(
        self,
        hashes: Sequence[bytes],
        *,
        lifetime: float,
        devices: int,
        valid: float | None,
        note: str,
        at: Moment,
    ) -> list[int]:
        """Stores new vouchers, all or none; returns their numbers, in the order of `hashes`."""
        keys, numbers = [_voucher_key(code) for code in hashes], range(0)

        def add(found: dict[str, str], now: int) -> dict[str, str]:
            nonlocal numbers
            last = _record(found, _NUMBERS)
            first = last.limits.number + 1 if last else FIRST_NUMBER
            numbers = range(first, first + len(keys))
            expires = 0 if valid is None else now + _ms(valid)
            limits = RecordLimits(0, max(1, _ms(lifetime)), devices, expires, now, 0, note)
            made = {
                key: dump(SharedRecord(limits._replace(number=number)))
                for key, number in zip(keys, numbers, strict=True)
            }
            return made | {_NUMBERS: dump(SharedRecord(RecordLimits(first + len(keys) - 1)))}

        self.book.change([_NUMBERS, *keys], add)
        return [*numbers]

    def use_voucher(
        self, code: bytes, client: ClientId, at: Moment, *, beyond: float = 0.0
    ) -> tuple[int, float] | None:
        """Uses the voucher with this hash for `client`; returns its number and how long it admits.

        As in `Records`, but by the clock of Redis.
        """
        if self._rows("SELECT 1 FROM voucher WHERE hash = ?", (code,)):
            return super().use_voucher(code, client, at, beyond=beyond)
        key, answer = _voucher_key(code), None

        def use(found: dict[str, str], now: int) -> dict[str, str]:
            nonlocal answer
            record, answer = _record(found, key), None
            if record is None or (left := record.admits(client, now)) is None:
                return {}
            answer = record.limits.number, left / 1000
            is_kept = client in record.clients or left <= beyond * 1000
            return {} if is_kept else {key: dump(record.used(client, now, _ms(at.wall)))}

        self.book.change([key], use)
        return answer

    def give_back(self, number: int, client: ClientId, at: Moment) -> None:
        """Takes back the use of a voucher by `client` that began at `at`: the grant has failed."""
        if (key := self._copy.key_of(number)) is None:
            super().give_back(number, client, at)
        else:
            self._change_anyway(key, lambda record: record.given_back(client, _ms(at.wall)))

    def vouchers(self) -> list[Voucher]:
        """All vouchers, by number: first those of this router alone."""
        return super().vouchers() + [_voucher(record) for record in self._copy.vouchers()]

    def revoke_voucher(self, number: int, at: float) -> list[ClientId] | None:
        """Ends a voucher; returns the clients that used it. If Redis is away, it hears of it later.

        Returns None if there is no such voucher.
        """
        if (key := self._copy.key_of(number)) is None:
            return super().revoke_voucher(number, at)
        self._change_anyway(key, lambda record: replace(record, revoked=record.revoked or _ms(at)))
        record = self._copy.get(key)
        return record.clients if record else []

    def is_revoked(self, number: int) -> bool:
        """Whether a voucher was revoked, at whichever router."""
        if (key := self._copy.key_of(number)) is None:
            return super().is_revoked(number)
        is_revoked = True

        def look(found: dict[str, str], now: int) -> dict[str, str]:
            nonlocal is_revoked
            record = _record(found, key)
            is_revoked = record is None or record.revoked > 0
            return {}

        self.book.change([key], look)
        return is_revoked

    def _change_anyway(self, key: str, change: Callable[[SharedRecord], SharedRecord]) -> None:
        """Makes a change that admits no client, even if other routers hear of it only later."""
        try:
            self.book.change(
                [key],
                lambda found, now: {name: dump(change(parse(found[name]))) for name in found},
                completely=False,
            )
        except AwayError:
            self._copy.change(key, change)


def _record(found: dict[str, str], key: str) -> SharedRecord | None:
    return parse(found[key]) if key in found else None


def _voucher(record: SharedRecord) -> Voucher:
    limits = record.limits
    return Voucher(
        limits.number,
        limits.lifetime / 1000,
        limits.devices,
        limits.expires / 1000 if limits.expires else None,
        limits.created / 1000,
        record.revoked / 1000 if record.revoked else None,
        limits.note,
        len(record.clients),
    )


def _voucher_key(code: bytes) -> str:
    return f"voucher:{code.hex()}"


def _state_key(state: bytes) -> str:
    return f"state:{state.hex()}"


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
