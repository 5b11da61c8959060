"""What happened, one JSON line each, in a file that no client can fill.

A line that repeats is counted, and written again once a minute with how often; a client that makes
up ever new lines gets one line for all of them. The file is written on a thread of its own, so a
slow or full disk holds nothing up.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

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
_TELLING = ("status", "host", "method", "sni", "destination", "action", "outcome", "alert", "what")


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
    """The events of one process. `path` None writes nothing, and still counts. Never raises."""

    path: Path | None = None
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lines: OrderedDict[tuple[Value, ...], _Line] = OrderedDict()
        self._shares: OrderedDict[str, _Share] = OrderedDict()
        self._backlog: deque[str] = deque()
        self._lost = 0
        self._file: IO[str] | None = None
        self._failing = False
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if self.path is not None:
            self._file = self._open()  # an OSError here is the operator's to mend
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def write(self, event: str, client: Client | ClientId | None = None, **fields: Value) -> None:
        """One event. `fields` are in the order they are written; None is left out."""
        self.counts[event] = self.counts.get(event, 0) + 1
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

    def close(self) -> None:
        """Writes what was counted and what waits, as far as the disk lets it within 2 s."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(2.0)

    def _is_new(self, told: dict[str, Value]) -> bool:
        now = self.monotonic()
        who = str(told.get("client", ""))
        key = (told["event"], who, *(told.get(name) for name in _TELLING))
        line = self._lines.get(key)
        if line is not None and now < line.until:
            line.repeats += 1
            return False
        share = self._shares.get(who)
        if share is None or now >= share.until:
            share = self._shares[who] = _Share(now + WINDOW)
        share.lines += 1
        if share.lines > LINES_A_CLIENT:
            key = (told["event"], who, "more")
            told = {name: told[name] for name in ("event", "client", "mac") if name in told}
            if key in self._lines:
                self._lines[key].repeats += 1
                return False
            told["because"] = "this client makes up ever new ones; the rest are counted here"
        self._flush(key)
        self._lines[key] = _Line(told, now + WINDOW)
        while len(self._lines) > TABLE:
            self._flush(next(iter(self._lines)))
        while len(self._shares) > TABLE:
            self._shares.popitem(last=False)
        return True

    def _flush(self, key: tuple[Value, ...]) -> None:
        line = self._lines.pop(key, None)
        if line is not None and line.repeats:
            self._put(line.fields | {"repeats": line.repeats})

    def _put(self, told: dict[str, Value]) -> None:
        if len(self._backlog) >= BACKLOG:
            self._lost += 1
            return
        at = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds")
        self._backlog.append(json.dumps({"time": at.replace("+00:00", "Z")} | told))

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._backlog and not self._closing:
                    self._wake.wait(1.0)
                now, closing = self.monotonic(), self._closing
                due = [key for key, line in self._lines.items() if closing or now >= line.until]
                for key in due:
                    self._flush(key)
                lines = list(self._backlog)
                self._backlog.clear()
            if lines and not self._written(lines):
                with self._wake:
                    self._lost += len(lines)
            if closing:
                return

    def _written(self, lines: list[str]) -> bool:
        try:
            if self._file is None or self._is_rotated():
                self._file = self._open()
            if self._lost:
                lost = {"event": "fault", "what": "events", "lost": self._lost}
                lines = [json.dumps(lost), *lines]
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()
        except OSError as error:
            if self._file is not None:
                self._drop_file()
            if not self._failing:
                logger.error(f"{self.path}: {error.strerror}; events are lost until it is mended")
            self._failing = True
            return False
        self._failing, self._lost = False, 0
        return True

    def _drop_file(self) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # what it could not write is counted as lost already
            self._file.close()
        self._file = None

    def _is_rotated(self) -> bool:
        """Whether somebody moved or removed the file under us, as logrotate does."""
        assert self.path is not None
        assert self._file is not None
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> IO[str]:
        assert self.path is not None
        return self.path.open("a", encoding="ascii")


def _cut(value: Value) -> Value:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[: LONGEST_TEXT - 1] + "…"
    return value
