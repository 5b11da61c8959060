"""Reads a clients file, which a policy includes: one client on each line, up to two million.

A line is a MAC address, an address or a network, then optionally a comma and a name. A line that
starts with `#` is a comment, and so is what follows a `#` after a client without a name.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from capport.core.policy import ClientRules
from capport.linux.safe_files import open_regular
from capport.policy import hints
from capport.policy.errors import WHOLE, Mark, Problem, reason, shown
from capport.policy.values import for_people, subject

MOST_BYTES = 256 << 20
MOST_LINES = 2_000_000
_LONGEST = 1024  # bytes in a line: a network, a comma and a name of 100 characters fit
_MOST_ERRORS = 20
# What looks like a client rather than a name. At least one of . : - must be in it, because twelve
# digits may well be a name, such as a serial number.
_CLIENT = re.compile(r"(?=.*[.:-])[0-9A-Fa-f.:/-]{3,}")


def read(path: Path, tables: Collection[ClientRules]) -> list[Problem]:
    """Adds each client in the file to each of `tables`, and returns the errors in the file.

    At most 20 errors are returned one by one; one more counts the rest.
    """
    reading = _Reading(str(path), tables)
    try:
        with open_regular(path) as file:
            reading.read_lines(file)
    except OSError as error:
        reading.error(WHOLE, reason(error))
    return reading.problems()


class _Reading:
    """The state of reading one clients file."""

    def __init__(self, name: str, tables: Collection[ClientRules]) -> None:
        self._name = name
        self._tables = tables
        self._errors: list[Problem] = []
        self._unlisted = 0
        self._begun = False  # whether a line was read that is not a comment

    def read_lines(self, file: BinaryIO) -> None:
        """Reads the whole file, with only one line in memory at a time."""
        number = 0
        for number, raw in enumerate(_lines(file), 1):
            if number > MOST_LINES:
                self.error(WHOLE, f"has more than {MOST_LINES} lines: use networks, or two files")
                return
            if len(raw) > _LONGEST:
                longest = f"at most {_LONGEST} are allowed"
                self.error(Mark(number, 1), f"a line of {len(raw)} bytes or more: {longest}")
                continue
            try:
                self._begun = self._read_line(number, raw) or self._begun
            except ValueError as error:
                self._record_line(number, raw, error)
                self._begun = True

    def error(self, at: Mark, message: str, source: str = "") -> None:
        """Records an error; after the first 20, only counts it."""
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(Problem(self._name, at.line, at.column, message, source))
        else:
            self._unlisted += 1

    def problems(self) -> list[Problem]:
        """The errors recorded so far, and the number of those that were only counted."""
        if not self._unlisted:
            return self._errors
        rest = f"{self._unlisted} more lines have errors"
        return [*self._errors, Problem(self._name, 0, 0, rest)]

    def _read_line(self, number: int, raw: bytes) -> bool:
        """Adds the client on a line; False if the line is empty or a comment. Raises ValueError."""
        text, comma, rest = raw.decode().partition(",")
        text = text.strip()
        if not text or text.startswith("#"):
            if comma and not text:
                raise _LineError("a name without an address: write the address before the comma")
            return False
        name = _unquoted(rest) if comma else None
        if "#" in text:
            text, name = text.partition("#")[0].strip(), None
        client = subject(_unquoted(text))
        if name and all(map(_is_client, name.split(","))):
            raise _LineError("several clients on one line: write a line for each")
        name = _name(name) if name else None
        for table in self._tables:
            table.add(client, number, name)
        return True

    def _record_line(self, number: int, raw: bytes, error: ValueError) -> None:
        """Records the error in a line, and its place in the line."""
        if len(self._errors) >= _MOST_ERRORS:
            self._unlisted += 1
            return
        source = raw.decode(errors="replace").rstrip("\r\n")
        column = len(source) - len(source.lstrip()) + 1
        message = str(error)
        if isinstance(error, UnicodeDecodeError):
            column = len(raw[: error.start].decode()) + 1
            message = f"the byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8"
        elif isinstance(error, _NameError):
            column = source.index(",") + 2
        elif not isinstance(error, _LineError):
            hint = hints.of_client_line(source, _is_client, first=not self._begun)
            message = f"{shown(source.strip())} {hint}" if hint else message
        self.error(Mark(number, column), message, source)


class _LineError(ValueError):
    """The whole line is wrong, so the error points to its start."""


class _NameError(ValueError):
    """The name is wrong, so the error points to what follows the comma."""


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line; one that is too long is cut. Raises OSError if the file is too large."""
    if file.seek(0, os.SEEK_END) > MOST_BYTES:
        raise OSError(f"is larger than {MOST_BYTES >> 20} MiB, which is the limit")
    file.seek(0)
    mark = b"\xef\xbb\xbf"  # a spreadsheet's export begins with a byte order mark
    while line := file.readline(_LONGEST + 1):
        raw = line
        while len(raw) > _LONGEST and not raw.endswith(b"\n"):
            raw = file.readline(1 << 16)
        yield line.removeprefix(mark)
        mark = b""


def _is_client(text: str) -> bool:
    """Whether `text` is a client, as it stands before the comma, and not a name."""
    if not _CLIENT.fullmatch(text.strip()):
        return False
    try:
        subject(text.strip())
    except ValueError:
        return False
    return True


def _unquoted(text: str) -> str:
    """`text` without its quotes, and each "" inside them as one " (RFC 4180 section 2)."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


def _name(text: str) -> str:
    if not text.isprintable() and not text.replace("\u200d", "").replace("\xa0", "").isprintable():
        raise _NameError(f"{shown(text)} contains a character that is not printable: remove it")
    try:
        return for_people(text)
    except ValueError as error:
        raise _NameError(str(error)) from None
