"""The clients that a policy keeps in a file of their own: one a line, up to two million of them.

A line is a MAC address, an address or a network, then, after a comma, a name. What follows a `#` at
the start of a line, or after a subject that has no name, is a comment.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from capport.core.policy import ClientRules
from capport.linux.safe_files import open_regular
from capport.policy import hints
from capport.policy.errors import WHOLE, Mark, Problem, reason, shown
from capport.policy.values import for_people, subject

MOST_BYTES = 256 << 20
MOST_LINES = 2_000_000
_LONGEST = 1024  # bytes of a line: a network, a comma and a hundred characters fit
_MOST_ERRORS = 20
# What a name hardly ever is. Twelve digits in one may be a name: a number of something.
_CLIENT = re.compile(r"(?=.*[.:-])[0-9A-Fa-f.:/-]{3,}")


def read(path: Path, rules: ClientRules) -> list[Problem]:
    """Adds each client in the file to `rules`; gives what is wrong with the file.

    At most 20 errors are told, then their number.
    """
    reading = _Reading(str(path), rules)
    try:
        with open_regular(path) as file:
            reading.all(file)
    except OSError as error:
        reading.error(WHOLE, reason(error))
    return reading.problems()


class _Reading:
    """One clients file in the reading."""

    def __init__(self, name: str, rules: ClientRules) -> None:
        self._name = name
        self._rules = rules
        self._errors: list[Problem] = []
        self._untold = 0
        self._begun = False  # whether there was a line that is not a comment

    def all(self, file: BinaryIO) -> None:
        """Reads it, line by line, so that no more than one is in memory."""
        number = 0
        for number, raw in enumerate(_lines(file), 1):
            if number > MOST_LINES:
                self.error(WHOLE, f"has more than {MOST_LINES} lines: name networks, or two files")
                return
            if len(raw) > _LONGEST:
                longest = f"{_LONGEST} bytes are the most"
                self.error(Mark(number, 1), f"a line of {len(raw)} bytes or more: {longest}")
                continue
            try:
                self._begun = self._line(number, raw) or self._begun
            except ValueError as error:
                self._wrong(number, raw, error)
                self._begun = True

    def error(self, at: Mark, message: str, source: str = "") -> None:
        """Files an error, or, where there are enough, counts it."""
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(Problem(self._name, at.line, at.column, message, source))
        else:
            self._untold += 1

    def problems(self) -> list[Problem]:
        """What is wrong."""
        if not self._untold:
            return self._errors
        rest = f"{self._untold} more lines are wrong"
        return [*self._errors, Problem(self._name, 0, 0, rest)]

    def _line(self, number: int, raw: bytes) -> bool:
        """Adds the client of a line; False where there is none in it. Raises ValueError."""
        text, comma, rest = raw.decode().partition(",")
        text = text.strip()
        if not text or text.startswith("#"):
            if comma and not text:
                raise _LineError("a name without an address: write the address before the comma")
            return False
        name = _unquoted(rest) if comma else None
        if "#" in text:
            text, name = text.partition("#")[0].strip(), None
        who = subject(_unquoted(text))
        if name and all(map(_is_client, name.split(","))):
            raise _LineError("several clients in one line: write a line for each")
        self._rules.add(who, number, _name(name) if name else None)
        return True

    def _wrong(self, number: int, raw: bytes, error: ValueError) -> None:
        """Files what was wrong with a line, with the place in it."""
        if len(self._errors) >= _MOST_ERRORS:
            self._untold += 1
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
    """It is the whole line that is wrong."""


class _NameError(ValueError):
    """It is the name that is wrong, not what stands before it."""


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line, cut where it is longer than any may be. Raises OSError for a file too large."""
    too_large = OSError(f"is larger than {MOST_BYTES >> 20} MiB, which is the most")
    total = 0
    first = True
    while raw := file.readline(_LONGEST + 1):
        line = raw
        while len(raw) > _LONGEST and not raw.endswith(b"\n"):
            raw = file.readline(1 << 16)
            total += len(raw)
            if total > MOST_BYTES:
                raise too_large
        total += len(line)
        if total > MOST_BYTES:
            raise too_large
        # A spreadsheet's export begins with a byte order mark.
        yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _is_client(text: str) -> bool:
    """Whether `text` could stand before a comma."""
    if not _CLIENT.fullmatch(text.strip()):
        return False
    try:
        subject(text.strip())
    except ValueError:
        return False
    return True


def _unquoted(text: str) -> str:
    """As RFC 4180 section 2 has it: what is in quotes, less those, and each "" in it one."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


def _name(text: str) -> str:
    if not text.isprintable() and not text.replace("\u200d", "").replace("\xa0", "").isprintable():
        raise _NameError(f"{shown(text)} holds a character that does not print: remove it")
    try:
        return for_people(text)
    except ValueError as error:
        raise _NameError(str(error)) from None
