"""Counts, times and texts as reports show them."""

import time


def some(count: int, what: str) -> str:
    """`1 client`, `2 clients`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def how_long(seconds: float) -> str:
    """A duration in one unit: `30 ms`, `2.5 s`, `45 s`, `12 min`, `3.2 h`."""
    for least, size, unit in ((7200, 3600, "h"), (120, 60, "min"), (10, 1, "s")):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def span(began: float, until: float) -> str:
    """`2030-01-31 17:05:09 to 17:06:20 CET`, in the local zone; with both dates if they differ."""
    first, last = time.localtime(began), time.localtime(until)
    form = "%H:%M:%S %Z" if first[:3] == last[:3] else "%Y-%m-%d %H:%M:%S %Z"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', first)} to {time.strftime(form, last)}"


def time_of_day(unix: float) -> str:
    """The time of day, with milliseconds."""
    unix = round(unix, 3)
    return f"{time.strftime('%H:%M:%S', time.localtime(unix))}.{round(unix % 1 * 1000):03}"
