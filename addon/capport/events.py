"""Writes events to a file, one JSON line each, so that no client can fill the file.

A repeated event is counted, and written again once a minute with the count. If a client causes more
different events than its share, they are counted together in one line. Each event of a watched
client is written, up to a larger share. A thread of its own writes the file, so that a slow or full
disk holds nothing up.
"""

import errno
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from capport.clock import rfc3339
from capport.core.bounded_map import BoundedMap
from capport.core.client import Client, ClientId, parts_of
from capport.log_limits import FAULTS, Seldom

logger = logging.getLogger(__name__)

WINDOW = 60.0  # seconds in which a repeated line is counted instead of written
LINES_A_CLIENT = 60  # different lines of one client within a window
LINES_WATCHED = 6000  # lines of a watched client within a window; those above it are merged
MOST_WATCHED = 8  # clients
LONGEST_TEXT = 500  # characters of one field, which a client may have chosen
TABLE = 20_000  # lines whose repeats are counted, at most
BACKLOG = 10_000  # lines that may wait for a slow disk
LARGEST = 64 << 20  # bytes of the file; then it becomes FILE.1, in place of an earlier one

type Value = str | int | float | bool | None

# These events are always written, because a client cannot cause them at will.
_ALWAYS = frozenset({"granted", "revoked", "expired", "policy", "dropped", "watched", "unwatched"})
# Two events that agree in these fields count as one line. The line has the other fields (a port, a
# sentence) of the first event.
OF_HTTP = ("status", "host", "method", "cookies", "authorizations")
OF_TLS = ("sni", "destination", "action", "outcome", "alert")
# The events that a worker may report. It writes none about sessions and policies.
_MERGED = frozenset({"refused", "passed", "tls", "fault", "dropped"})
_FIELDS = 40  # of a merged event, at most
_DISTINGUISHING = {"refused": OF_HTTP, "passed": OF_HTTP, "tls": OF_TLS}
_OF_OTHERS = (*OF_HTTP, *OF_TLS, "what")


class Watched:
    """The clients that somebody watches: each request and handshake of theirs is its own event."""

    def __init__(self, *, everybody: bool = False) -> None:
        self.everybody = everybody
        self._ids: set[str] = set()

    def add(self, client: ClientId) -> None:
        """Watches a client, by its address, its MAC, or both together.

        Raises ValueError if as many are watched as may be.
        """
        if client not in self._ids and len(self._ids) >= MOST_WATCHED:
            names = ", ".join(sorted(self._ids))
            raise ValueError(f"{MOST_WATCHED} clients are watched, and no more can be: {names}")
        self._ids.add(client)

    def discard(self, client: ClientId) -> None:
        """Stops watching a client."""
        self._ids.discard(client)

    def __contains__(self, client: Client) -> bool:
        return self.everybody or (bool(self._ids) and not self._ids.isdisjoint(client.ids))


@dataclass(slots=True)
class _Line:
    fields: dict[str, Value]
    until: float
    repeats: int = 0


@dataclass(slots=True)
class _Share:
    until: float
    lines: int = 0


@dataclass
class EventLog:
    """The events of one process, written to the file at `path`; `write` never raises.

    With `forward` in place of a path, each line goes to another process, whose log `merge`s it.
    `forward` may wait, and returns whether the line got there. With neither, nothing is written.
    """

    path: Path | None = None
    watched: Watched = field(default_factory=Watched)
    forward: Callable[[str], bool] | None = None
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.lines: OrderedDict[tuple[Value, ...], _Line] = OrderedDict()
        self.shares = BoundedMap[str, _Share](TABLE)
        self._watched_shares = BoundedMap[str, _Share](TABLE)
        self.backlog: deque[str] = deque()
        self.lost = 0  # lines that no event has reported yet
        self.lost_in_all = 0
        self._file: int | None = None
        self._failing = False
        self._stuck = False  # whether the file is large and cannot be moved
        self._torn = False  # whether the last line in the file is incomplete
        self._lock = threading.Lock()  # not an RLock, which takes twice as long
        self._wake = threading.Condition(self._lock)
        self._closing = False
        self._thread: threading.Thread | None = None
        if self.path is not None:
            self._file = self._open()  # OSError: the operator's path cannot be used
        self._is_on = self.path is not None or self.forward is not None
        if self._is_on:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def watches(self, client: Client) -> bool:
        """Whether an event of this client is to have details, because it is written by itself."""
        return self._is_on and client in self.watched

    def write(self, event: str, client: Client | ClientId | None = None, **fields: Value) -> None:
        """Records one event, its `fields` in this order. A field that is None is left out."""
        if not self._is_on:
            return
        watched = isinstance(client, Client) and client in self.watched
        of = map(fields.get, _DISTINGUISHING.get(event, _OF_OTHERS))
        if isinstance(client, Client) and not watched and self.repeats(event, client, *of):
            return
        record: dict[str, Value] = {"event": event}
        if isinstance(client, Client):
            record |= {"client": str(client.address), "mac": client.mac}
        elif client is not None:
            mac, address = parts_of(client)
            record |= {"client": str(address) if address else None, "mac": mac}
        record |= {name: _cut(value) for name, value in fields.items()}
        record = {name: value for name, value in record.items() if value is not None}
        with self._lock:
            if event in _ALWAYS or (watched and self._has_room(record)):
                self._put(record)
            else:
                self._put_once(record)

    def repeats(self, event: str, client: Client, *fields: Value) -> bool:
        """Counts an event that has a line already; returns False if it must be written.

        `client` is not watched. `fields` are those in which such events differ, in the order of
        `OF_HTTP` or `OF_TLS`. It is quick, because refusals come in floods.
        """
        with self._lock:
            line = self.lines.get((event, client.id, *fields))
            if line is None or self.monotonic() >= line.until:
                return False
            line.repeats += 1
            return True

    def merge(self, record: dict[str, Any]) -> None:
        """Records a line of another process's log. Raises ValueError if it is not such an event.

        The bounds and the counts of this log hold for all processes together.
        """
        at, record = _checked(record)
        self.lost_in_all += record.get("lost", 0)
        if not self._is_on:
            return
        with self._lock:
            if record["event"] in _ALWAYS:
                self._put(record, at)
            else:
                self._put_once(record, at)

    def close(self, seconds: float = 2.0) -> bool:
        """Writes all counts and waiting lines; returns whether that took less than `seconds`."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        if self._file is not None:
            os.close(self._file)
            self._file = None
        return True

    def _has_room(self, record: dict[str, Value]) -> bool:
        """Whether a watched client has a line left. Counts the line."""
        share = _share(self._watched_shares, _device(record), self.monotonic())
        return share.lines <= LINES_WATCHED

    def _put_once(self, record: dict[str, Value], at: str | None = None) -> None:
        """Queues a record, unless one like it has a line: then it is counted."""
        now, device = self.monotonic(), _device(record)
        count = int(record.get("repeats") or 1)
        event = str(record["event"])
        key = (event, device, *map(record.get, _DISTINGUISHING.get(event, _OF_OTHERS)))
        line = self.lines.get(key)
        if line is not None and now < line.until:
            line.repeats += count
            return
        if _share(self.shares, device, now).lines > LINES_A_CLIENT:
            key = (event, device, "more")
            record = {name: record[name] for name in ("event", "client", "mac") if name in record}
            if key in self.lines:
                self.lines[key].repeats += count
                return
            record["because"] = "this client's events are too many; the rest are counted here"
        self._flush(key)
        self.lines[key] = _Line(record, now + WINDOW)
        while len(self.lines) > TABLE:
            self._flush(next(iter(self.lines)))
        self._put(record, at)

    def _flush(self, key: tuple[Value, ...]) -> None:
        line = self.lines.pop(key, None)
        if line is not None and line.repeats:
            self._put(line.fields | {"repeats": line.repeats})

    def _put(self, record: dict[str, Value], at: str | None = None) -> None:
        if len(self.backlog) >= BACKLOG:
            self.lost += 1
            self.lost_in_all += 1
            return
        self.backlog.append(self.line_of(record, at))
        self._wake.notify()  # a repeat does not come here, so a flood does not wake the thread

    def line_of(self, record: dict[str, Value], at: str | None = None) -> str:
        """A record as a line of the file."""
        return json.dumps({"time": at or stamp(self.wall())} | record) + "\n"

    def _run(self) -> None:
        seldom = Seldom(FAULTS)
        while True:
            with self._lock:
                if not self.backlog and not self._closing:
                    self._wake.wait(1.0)
                closing = self._closing
                self._flush_due(closing)
                lines, lost = list(self.backlog), self.lost
                self.backlog.clear()
                if lines:  # otherwise the next write reports the lost lines
                    self.lost = 0
            if lines:
                record: dict[str, Value] = {"event": "fault", "what": "events", "lost": lost}
                try:
                    left = self._write_out([self.line_of(record), *lines] if lost else lines)
                except Exception as error:
                    # The edge: if the thread ended, no event would be written again.
                    if seldom.is_due(self.monotonic(), repr(error)):
                        logger.exception("Events are lost")
                    left = len(lines) + bool(lost)
                with self._lock:
                    # If the first line was written, it has reported those that were lost before.
                    self.lost += left if left <= len(lines) else len(lines) + lost
                    self.lost_in_all += min(left, len(lines))
            if closing:
                return

    def _flush_due(self, everything: bool) -> None:
        """Queues the count of each repeated line whose window is over, the oldest first."""
        now = self.monotonic()
        while self.lines and (everything or now >= next(iter(self.lines.values())).until):
            self._flush(next(iter(self.lines)))

    def _write_out(self, lines: list[str]) -> int:
        """Writes `lines` to the file, or forwards them; returns how many are lost."""
        if self.forward is not None:
            return len(lines) - sum(1 for _ in takewhile(self.forward, lines))
        data = ("\n" if self._torn else "") + "".join(lines)
        written = 0
        try:
            self._reopen()
            self._rotate()
            assert self._file is not None
            # One write(2), appended whole: other processes may have the file open too.
            written = os.write(self._file, data.encode("ascii"))
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                logger.error(f"{self.path}: {error.strerror}; events are lost until this is fixed")
            self._failing = True
            self._torn = data[written - 1] != "\n" if written else self._torn
            return data.count("\n", written)
        self._failing = self._torn = False
        return 0

    def _reopen(self) -> None:
        """Opens the file again if another program moved or removed it, as logrotate does."""
        if self._file is not None:
            if self._is_in_place(self._file):
                return
            os.close(self._file)
            self._file = None
        self._file = self._open()

    def _rotate(self) -> None:
        """Moves the file to FILE.1 if it is large. Several processes may write to it.

        A file that cannot be moved may become as large as both would be. Then this raises OSError.
        """
        assert self.path is not None
        assert self._file is not None
        state = os.fstat(self._file)
        if state.st_size < LARGEST or not stat.S_ISREG(state.st_mode):
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)  # else a second process would move the new file too
        try:
            if self._is_in_place(self._file):
                self.path.rename(f"{self.path}.1")
            self._stuck = False
        except OSError as error:
            if state.st_size >= 2 * LARGEST:
                raise
            if not self._stuck:
                logger.error(
                    f"{self.path} cannot be moved to {self.path}.1: {error.strerror}; once it is"
                    " twice as large, events are lost"
                )
            self._stuck = True
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._reopen()

    def _is_in_place(self, file: int) -> bool:
        """Whether an open file is the one that the path names now."""
        assert self.path is not None
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        assert self.path is not None
        # Not blocking, because a pipe that nobody reads would hold up the start or the last line.
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self.path, how, 0o640)  # not for everyone: it shows where clients go


def stamp(unix: float) -> str:
    """A time as events have it."""
    return rfc3339(unix, "milliseconds")


def _device(record: dict[str, Value]) -> str:
    # The MAC first, because one device has many IPv6 addresses.
    return str(record.get("mac") or record.get("client", ""))


def _share(shares: BoundedMap[str, _Share], device: str, now: float) -> _Share:
    """The device's share of the current window, with one line more counted in it."""
    share = shares.get(device)
    if share is None or now >= share.until:
        share = shares[device] = _Share(now + WINDOW)
    share.lines += 1
    return share


def _checked(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The time of another process's event, and the event without it. Raises ValueError."""
    record = dict(record)
    at, event = record.pop("time", None), record.get("event")
    if not isinstance(at, str) or not isinstance(event, str) or event not in _MERGED:
        raise ValueError("not an event that a worker may report")
    datetime.fromisoformat(at[:LONGEST_TEXT])
    counts = [record.get(name, 0) for name in ("lost", "repeats")]
    if not all(isinstance(count, int) and 0 <= count < 1 << 53 for count in counts):
        raise ValueError("lost or repeats is not a count")
    if len(record) > _FIELDS:
        raise ValueError(f"more than {_FIELDS} fields")
    for name, value in record.items():
        if not isinstance(value, str | int | float | None) or len(name) > LONGEST_TEXT:
            raise ValueError("a field is not a text, a number or null")
    return at[:LONGEST_TEXT], {name: _cut(value) for name, value in record.items()}


def _cut(value: Value) -> Value:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[: LONGEST_TEXT - 1] + "…"
    return value
