"""What happened, one JSON line each, in a file that no client can fill.

A line that repeats is counted, and written again once a minute with how often; a client that makes
up ever new lines gets one line for all of them. The file is written on a thread of its own, so a
slow or full disk holds nothing up.
"""

import errno
import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from capport.core.bounded_map import BoundedMap
from capport.core.client import Client, ClientId, parts_of

logger = logging.getLogger(__name__)

WINDOW = 60.0  # seconds in which a repeated line is counted instead of written
LINES_A_CLIENT = 60  # different lines of one client within a window
LONGEST_TEXT = 500  # characters of a text that a client chose
TABLE = 20_000  # lines whose repeats are counted at a time
BACKLOG = 10_000  # lines that wait for a slow disk

type Value = str | int | float | bool | None

# What a client cannot cause at will is never held back.
_ALWAYS = frozenset({"granted", "revoked", "expired", "policy"})
# What tells two lines apart; the rest (a port, a sentence) is the first one's.
_TELLING = (
    *("status", "host", "method", "cookies", "authorizations"),
    *("sni", "destination", "action", "outcome", "alert", "what"),
)


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
    """The events of one process. `path` None writes nothing. Never raises."""

    path: Path | None = None
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.lines: OrderedDict[tuple[Value, ...], _Line] = OrderedDict()
        self.shares = BoundedMap[str, _Share](TABLE)
        self.backlog: deque[str] = deque()
        self.lost = 0
        self._file: int | None = None
        self._failing = False
        self._torn = False  # whether the last line in the file is half of one
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if self.path is not None:
            self._file = self._open()  # an OSError here is the operator's to mend
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def write(self, event: str, client: Client | ClientId | None = None, **fields: Value) -> None:
        """One event. `fields` are in the order they are written; None is left out."""
        if self.path is None:
            return
        told: dict[str, Value] = {"event": event}
        if isinstance(client, Client):
            told |= {"client": str(client.address), "mac": client.mac}
        elif client is not None:
            mac, address = parts_of(client)
            told |= {"client": str(address) if address else None, "mac": mac}
        told |= {name: _cut(value) for name, value in fields.items()}
        told = {name: value for name, value in told.items() if value is not None}
        with self._wake:
            if event in _ALWAYS or self._is_new(told):
                self._put(told)
            self._wake.notify()

    def close(self, seconds: float = 2.0) -> bool:
        """Writes what was counted and what waits; whether the disk let it in so many seconds."""
        with self._wake:
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

    def _is_new(self, told: dict[str, Value]) -> bool:
        now = self.monotonic()
        who = str(told.get("mac") or told.get("client", ""))  # IPv6 gives one device many addresses
        key = (told["event"], who, *(told.get(name) for name in _TELLING))
        line = self.lines.get(key)
        if line is not None and now < line.until:
            line.repeats += 1
            return False
        share = self.shares.get(who)
        if share is None or now >= share.until:
            share = self.shares[who] = _Share(now + WINDOW)
        share.lines += 1
        if share.lines > LINES_A_CLIENT:
            key = (told["event"], who, "more")
            told = {name: told[name] for name in ("event", "client", "mac") if name in told}
            if key in self.lines:
                self.lines[key].repeats += 1
                return False
            told["because"] = "this client makes up ever new ones; the rest are counted here"
        self._flush(key)
        self.lines[key] = _Line(told, now + WINDOW)
        while len(self.lines) > TABLE:
            self._flush(next(iter(self.lines)))
        return True

    def _flush(self, key: tuple[Value, ...]) -> None:
        line = self.lines.pop(key, None)
        if line is not None and line.repeats:
            self._put(line.fields | {"repeats": line.repeats})

    def _put(self, told: dict[str, Value]) -> None:
        if len(self.backlog) >= BACKLOG:
            self.lost += 1
            return
        self.backlog.append(self._line(told))

    def _line(self, told: dict[str, Value]) -> str:
        at = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": at.replace("+00:00", "Z")} | told) + "\n"

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self.backlog and not self._closing:
                    self._wake.wait(1.0)
                closing = self._closing
                self._flush_due(closing)
                lines, lost = list(self.backlog), self.lost
                self.backlog.clear()
                if lines:  # or there is none to tell of them with: they are told with the next
                    self.lost = 0
            if lines:
                told: dict[str, Value] = {"event": "fault", "what": "events", "lost": lost}
                left = self._left_of([self._line(told), *lines] if lost else lines)
                with self._wake:
                    # Where the line that tells of them went through, those before are told.
                    self.lost += left if left <= len(lines) else len(lines) + lost
            if closing:
                return

    def _flush_due(self, everything: bool) -> None:
        """Writes how often what was counted came, where its window is over: the oldest first."""
        now = self.monotonic()
        while self.lines and (everything or now >= next(iter(self.lines.values())).until):
            self._flush(next(iter(self.lines)))

    def _left_of(self, lines: list[str]) -> int:
        """How many of `lines` could not be written."""
        data = ("\n" if self._torn else "") + "".join(lines)
        written = 0
        try:
            self._reopen()
            assert self._file is not None
            # One write(2), appended whole: other processes may have the file open too.
            written = os.write(self._file, data.encode("ascii"))
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                logger.error(f"{self.path}: {error.strerror}; events are lost until it is mended")
            self._failing = True
            self._torn = data[written - 1] != "\n" if written else self._torn
            return data.count("\n", written)
        self._failing = self._torn = False
        return 0

    def _reopen(self) -> None:
        """Opens the file anew where somebody moved or removed it under us, as logrotate does."""
        assert self.path is not None
        if self._file is not None:
            try:
                there, ours = self.path.stat(), os.fstat(self._file)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            os.close(self._file)
            self._file = None
        self._file = self._open()

    def _open(self) -> int:
        assert self.path is not None
        # Not blocking: a pipe that nobody reads would hold up the start, or the last line.
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self.path, how, 0o640)  # where clients go is not for everyone to read


def _cut(value: Value) -> Value:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[: LONGEST_TEXT - 1] + "…"
    return value
