"""Shows texts, times and tables in a terminal: without control characters, in columns."""

import time
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

GAP = "  "
"""Between two columns of a table."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def visible(text: str) -> str:
    """`text` with an escape for each character that a terminal would obey, hide or reorder."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def fit(text: str, columns: int) -> tuple[str, int]:
    """As much of `text`, made `visible`, as fits, and how many characters of it that are."""
    fitting, left = "", columns
    for number, character in enumerate(text):
        shown = visible(character)
        left -= cells(shown)
        if left < 0:
            return fitting, number
        fitting += shown
    return fitting, len(text)


def duration(seconds: float) -> str:
    """A duration in its two largest units: `2h`, `7h 59m`, `3d 4h`, `12s`."""
    whole = max(0, round(seconds))
    for (size, unit), (next_size, next_unit) in pairwise(_UNITS):
        if whole >= size:
            count, left = whole // size, whole % size // next_size
            # Without the next unit: `3d 5s` is more exact than anybody needs.
            return f"{count}{unit}" + (f" {left}{next_unit}" if left else "")
    return f"{whole}s"


def moment(unix: float) -> str:
    """A time in full, in the local zone: `2030-01-31 17:05:09 CET`."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix))


def short_moment(unix: float, now: float) -> str:
    """The time of day, after the date if it is not today: at most 12 characters."""
    local, today = time.localtime(unix), time.localtime(now)
    if local[:3] == today[:3]:
        return time.strftime("%H:%M", local)
    form = "%d %b %H:%M" if abs(unix - now) < 300 * 86400 else "%Y-%m-%d"
    return time.strftime(form, local)


def fitted(text: str, width: int) -> str:
    """`text` made `visible`, in exactly `width` columns: padded, or cut with an ellipsis."""
    shown, count = fit(text, width)
    if count < len(text):
        shown = f"{fit(text, width - 1)[0]}…"
    return shown + " " * (width - cells(shown))


def rows_in_columns(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    """Each row as a line of a table."""
    for row in rows:
        yield GAP.join(map(fitted, row, widths)).rstrip()
