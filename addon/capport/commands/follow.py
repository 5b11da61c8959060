"""`capport events`: the events of a portal as lines for people, and `--follow`."""

import os
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from capport.commands import CommandError
from capport.core.client import ClientId, parts_of
from capport.report.recording import Recording, events_in, record_in, time_of
from capport.terminal import visible

PAUSE = 0.2  # seconds between two looks at the file
SHOWN_FIRST = 10  # events that `--follow` shows of those that are there

_IN_FRONT = ("time", "event", "client", "mac", "because")


def events(arguments: Namespace) -> None:
    """Prints the events in the file; with `--follow`, the last ones and then each new one."""
    path = Path(arguments.file)
    if not arguments.follow and not path.exists():
        raise CommandError(f"{path}: there is no such file; name the one that portal_events names")
    lines = following(path) if arguments.follow else whole_lines(path)
    unread = Recording()
    for event in events_in(lines, unread):
        if arguments.client is None or _is_of(event, arguments.client):
            print(line_of(event), flush=arguments.follow)
    if unread.unread:
        print(f"{unread.unread} lines could not be read", file=sys.stderr)


def line_of(event: Mapping[str, object]) -> str:
    """One event as a line: when, which client, what, and why."""
    at = time_of(event)
    when = time.strftime("%H:%M:%S", time.localtime(at)) if at is not None else "??:??:??"
    client = str(event.get("client") or event.get("mac") or "-")
    shown = record_in(event)
    kind = str(event.get("event"))
    if kind in {"refused", "passed", "tls"} and shown:
        said = str(shown)
        if agent := event.get("agent"):
            said += f", {agent}"
    else:
        rest = [f"{name} {value}" for name, value in event.items() if name not in _IN_FRONT]
        said = ", ".join([kind, *rest])
    because = f" ({event['because']})" if "because" in event else ""
    return visible(f"{when}  {client:<15}  {said}{because}")


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file, without an incomplete last one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line for line in file if line.endswith("\n"))


def following(path: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """The last lines of a file, then each new one, for ever.

    When another file is in its place (log rotation), that one is read from its start.
    """
    while (file := _opened(path)) is None:
        sleep(PAUSE)
    yield from deque(_ready(file), SHOWN_FIRST)
    while True:
        sleep(PAUSE)
        yield from _ready(file)
        ours = os.fstat(file.fileno())
        if _is_replaced(path, ours) and (fresh := _opened(path)):
            yield from _ready(file)  # what was written before it was moved
            file.close()
            file = fresh
        elif ours.st_size < file.tell():
            file.seek(0)  # it was emptied


def _ready(file: TextIO) -> Iterator[str]:
    """The lines that are complete; an incomplete one is read the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield line


def _opened(path: Path) -> TextIO | None:
    with suppress(FileNotFoundError):
        return path.open(encoding="utf-8", errors="replace")
    return None


def _is_replaced(path: Path, ours: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return not os.path.samestat(path.stat(), ours)
    return False


def _is_of(event: Mapping[str, object], client: ClientId) -> bool:
    named = {event.get("client"), event.get("mac")}
    return any(str(part) in named for part in parts_of(client) if part is not None)
