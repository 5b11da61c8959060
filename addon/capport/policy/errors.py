"""Errors and warnings in a file: the message, its place, and the line with a caret under it."""

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from capport.linux.safe_files import open_regular
from capport.terminal import cells, fit, visible

MOST_ERRORS = 100
"""At most this many errors are shown: a file with more is probably not a policy at all."""

_CREDENTIALS = re.compile(r"(rediss?://)\S*@")
_WIDTH, _BEFORE = 88, 44  # terminal columns of the quoted line: in all, and before the caret


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a text: line and column from 1, the column in characters."""

    line: int
    column: int


WHOLE = Mark(0, 0)
"""The place of an error that concerns a file as a whole, and no single line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. `source` is the text of the line; line 0 is the file as a whole."""

    file: str
    line: int
    column: int
    message: str
    source: str = ""

    def __str__(self) -> str:
        message = visible(_without_password(self.message))
        if not self.line:
            return f"{visible(self.file)}: {message}"
        head = f"{visible(self.file)}:{self.line}:{self.column}: {message}"
        if not self.source:
            return head
        source = _without_password(self.source)
        quoted, cells = _around(source, min(self.column - 1, len(source)))
        return f"{head}\n    {quoted}\n    {' ' * cells}^"


class PolicyError(ValueError):
    """A policy file cannot be used; `problems` has every error in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class TooMany(Exception):
    """MOST_ERRORS errors were found, so the rest of the file is not read."""


class Problems:
    """Collects the errors and warnings in one text."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self._lines = re.split(r"\r\n|\r|\n", text)
        self._errors: list[tuple[Mark, Problem]] = []
        self._warnings: list[tuple[Mark, Problem]] = []

    def error(self, at: Mark, message: str) -> None:
        """Records an error. Raises TooMany when MOST_ERRORS are recorded."""
        self.error_in(at, self._problem(at, message))

    def error_in(self, at: Mark, problem: Problem) -> None:
        """Records an error in another file, which the line at `at` includes. Raises TooMany."""
        self._errors.append((at, problem))
        if len(self._errors) == MOST_ERRORS:
            end = Mark(max(place.line for place, _ in self._errors) + 1, 0)
            message = f"{MOST_ERRORS} errors: the rest of the file was not read"
            self._errors.append((end, Problem(self.file, 0, 0, message)))
            raise TooMany

    def warn(self, at: Mark, message: str) -> None:
        """Records a warning: valid, but probably not intended."""
        if len(self._warnings) < MOST_ERRORS:
            self._warnings.append((at, self._problem(at, message)))

    def line(self, at: Mark) -> str:
        """The text of the line that `at` is in."""
        return self._lines[at.line - 1] if 0 < at.line <= len(self._lines) else ""

    @property
    def end(self) -> Mark:
        """The place after the last character."""
        return Mark(len(self._lines), len(self._lines[-1]) + 1)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Each error, in the text's order."""
        return tuple(problem for _, problem in sorted(self._errors, key=itemgetter(0)))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Each warning, in the text's order."""
        return tuple(problem for _, problem in sorted(self._warnings, key=itemgetter(0)))

    def _problem(self, at: Mark, message: str) -> Problem:
        # If a text ends without a line break, libyaml reports its end as one line too many.
        at = min(at, self.end)
        return Problem(self.file, at.line, at.column, message, self.line(at))


def shown(text: str) -> str:
    """A value for a message: cut if it is long, in quotes if its end would not be clear."""
    text = _without_password(text)  # before the cut, which could remove the @
    short = text if len(text) <= 60 else text[:59] + "…"
    return short if re.fullmatch(r"[\w.:/@*…+-]+", short) else repr(short)


def read_bounded(path: Path, most: int) -> bytes:
    """The content of the regular file `path`. Raises OSError, also if it is over `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most >> 20} MiB, which is the limit")
    return data


def reason(error: OSError) -> str:
    """What went wrong with a file, without its name, because the message starts with that."""
    text = error.strerror or str(error)
    return text if text.startswith("is ") else f"cannot be read: {text}"


def _without_password(text: str) -> str:
    """`text` without the user and the password in a URL of Redis: they must not get into a log."""
    return _CREDENTIALS.sub(r"\1...@", text)


def _around(line: str, at: int) -> tuple[str, int]:
    """As much of `line` as fits around the index `at`, and how many columns come before it."""
    most = _WIDTH if len(line) <= _WIDTH else _BEFORE
    start = max(0, at - most)
    while cells(before := visible(line[start:at])) > most:
        start += 1
    after, count = fit(line[at : at + _WIDTH], _WIDTH - cells(before))
    before = f"{'…' if start else ''}{before}"
    return f"{before}{after}{'…' if at + count < len(line) else ''}", cells(before)
