"""Lines of the log that anyone can bring about: told now and then, so that they never fill it."""

import logging
import time
from collections.abc import Callable

QUOTED = 200
"""Characters of what a stranger sent that are quoted in the log."""
RETURNS = 60.0
"""Seconds from one line on a signed return that lets nobody on to the next."""
FAULTS = 60.0
"""The same, for pages that fail for one reason, and for bytes that are no request."""


class Seldom:
    """When a thing was told last: once in `seconds`. What there is to tell has to be bounded."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._quiet_until: dict[object, float] = {}

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
