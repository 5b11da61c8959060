"""Limits the log lines that strangers can cause: they are cut short, and repeated rarely.

So strangers cannot fill the log, whether this package, mitmproxy or Tornado logs the lines.
"""

import logging
import re
import time
from collections.abc import Callable

from capport.core.bounded_map import BoundedMap

QUOTED = 200
"""How many characters of what a stranger sent are quoted in the log."""
RETURNS = 60.0
"""Seconds between two lines about signed returns that were refused."""
FAULTS = 60.0
"""Seconds between two lines about the same kind of fault, or of one client."""
KINDS = 4096
"""How many kinds of lines are remembered; beyond that the oldest is forgotten."""

# The first words of a line. The rest is about one case: addresses, names, what was sent.
_KIND = re.compile(r"[A-Za-z' -]*+")


class Seldom:
    """Remembers what was logged, so that each thing is logged once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._quiet_until = BoundedMap[object, float](KINDS)

    def is_due(self, now: float, what: object = None) -> bool:
        """Whether `what` may be logged now. If so, it counts as logged."""
        if now < self._quiet_until.get(what, now):
            return False
        self._quiet_until[what] = now + self._seconds
        return True


class _SeldomPassing(logging.Filter):
    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        """`steady` is the clock, because the time in a record is wall time, which may be set."""
        super().__init__()
        self._steady = steady
        self._seldom = Seldom(FAULTS)


class SeldomFilter(_SeldomPassing):
    """Passes one of Tornado's warnings in FAULTS seconds, and nothing below a warning.

    Tornado warns about bytes that are not an HTTP request.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Logging calls this for each record of the logger."""
        if record.levelno < logging.WARNING or not self._seldom.is_due(self._steady()):
            return False
        record.msg, record.args = record.getMessage()[:QUOTED], ()
        return True


class StrangersFilter(_SeldomPassing):
    """Shortens lines about connections, and passes one line a minute for each kind and client.

    A line's kind is the place in the code that logs it, and the words that it begins with. Its
    client is the address that mitmproxy attaches to it. Lines without a client that are not
    warnings are about the portal itself: they all pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Logging calls this for each record of the logger."""
        said, client = record.getMessage(), getattr(record, "client", None)
        if record.levelno <= logging.DEBUG or (not client and record.levelno < logging.WARNING):
            return True
        kind = _KIND.match(said)
        what = (client and client[0], record.name, record.lineno, kind and kind[0][:QUOTED])
        if len(said) > QUOTED:
            record.msg, record.args = f"{said[:QUOTED]}… ({len(said)} characters)", None
        return self._seldom.is_due(self._steady(), what)
