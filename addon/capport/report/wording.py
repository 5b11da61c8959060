"""Counts, times and texts as reports show them."""

import time


def some(count: int, what: str) -> str:
    """`1 client`, `2 clients`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def lasting(seconds: float) -> str:
    """A duration in one unit: `30 ms`, `2.5 s`, `45 s`, `12 min`, `3.2 h`."""
    for least, size, unit in ((7200, 3600, "h"), (120, 60, "min"), (10, 1, "s")):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def moment(unix: float) -> str:
    """A time in full, in the local zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix))


def clock(unix: float) -> str:
    """The time of day, with milliseconds."""
    unix = round(unix, 3)
    return f"{time.strftime('%H:%M:%S', time.localtime(unix))}.{round(unix % 1 * 1000):03}"


def printable(text: str) -> str:
    """`text` without what a terminal or a page would obey or hide."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
