"""Reads what a portal did to clients, from files of events or from a file of mitmproxy's flows."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from capport.commands import CommandError
from capport.report.recording import Recording, record_lines


def recorded_in_events(paths: Iterable[str]) -> Recording:
    """What happened, read from files of events; `-` is the standard input. Raises CommandError."""
    return record_lines(_lines(paths))


def recorded_in_flows(path: str) -> Recording:
    """What happened, read from a file of mitmproxy's flows. Raises CommandError, OSError."""
    from capport.proxy.flows.saved_flows import FlowFileError, recording_of

    try:
        return recording_of(Path(path))
    except FlowFileError as error:
        raise CommandError(str(error)) from None


def _lines(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            yield from sys.stdin
            continue
        try:
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                yield from file
        except FileNotFoundError:
            raise CommandError(
                f"{path}: there is no such file; name the one that portal_events is set to, or a"
                " flow file with --flows"
            ) from None
