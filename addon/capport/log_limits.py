"""Lines of the log that anyone can bring about: short, and said now and then.

So they never fill it, whoever says them: this package, mitmproxy, Tornado.
"""

import logging
import re
import time
from collections.abc import Callable

from capport.core.bounded_map import BoundedMap

QUOTED = 200
"""Characters of what a stranger sent that are quoted in the log."""
RETURNS = 60.0
"""Seconds from one line on a signed return that lets nobody on to the next."""
FAULTS = 60.0
"""The same, for pages that fail for one reason, for bytes that are no request, for each client."""
KINDS = 4096
"""Things of which it is known when they were said; the oldest is forgotten for one more."""

# The rest of a line is what it is about: addresses, names, what was sent.
_KIND = re.compile(r"[A-Za-z' -]*+")


class Seldom:
    """When a thing was told last: once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._quiet_until = BoundedMap[object, float](KINDS)

    def is_due(self, now: float, what: object = None) -> bool:
        """Whether `what` may be told now, and so is."""
        if now < self._quiet_until.get(what, now):
            return False
        self._quiet_until[what] = now + self._seconds
        return True


class SeldomFilter(logging.Filter):
    """Lets through what Tornado says of bytes that are no request, but seldom, and no trifles."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        """`steady`: a record's own time is the wall clock's, which may be set back by years."""
        super().__init__()
        self._steady = steady
        self._seldom = Seldom(FAULTS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging, for each record of the logger's."""
        if record.levelno < logging.WARNING or not self._seldom.is_due(self._steady()):
            return False
        record.msg, record.args = record.getMessage()[:QUOTED], ()
        return True


class StrangersFilter(logging.Filter):
    """Shortens what is said of a connection, and lets one line of a kind a minute through.

    The kind is where a line comes from, and the words that it begins with; whose it is, the address
    that mitmproxy files it under. What is no warning, and nobody's, says how the portal itself is.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._steady = steady
        self._seldom = Seldom(FAULTS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging, for each record of the logger's."""
        said, client = record.getMessage(), getattr(record, "client", None)
        if record.levelno <= logging.DEBUG or (not client and record.levelno < logging.WARNING):
            return True
        kind = _KIND.match(said)
        what = (client and client[0], record.name, record.lineno, kind and kind[0][:QUOTED])
        if len(said) > QUOTED:
            record.msg, record.args = f"{said[:QUOTED]}… ({len(said)} characters)", None
        return self._seldom.is_due(self._steady(), what)
