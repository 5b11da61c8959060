"""The clock by which sessions are decided, which no other module reads, and times in RFC 3339."""

import time
from datetime import UTC, datetime
from pathlib import Path

from capport.core.session import Instant


def now() -> Instant:
    """Seconds since boot, with the time of suspends. Setting the wall clock does not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The id of this boot. Instants of different boots cannot be compared.

    Raises OSError if the kernel does not give it (random(4)).
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def rfc3339(unix: float, timespec: str = "seconds") -> str:
    """A time of the wall clock in RFC 3339 format, in UTC: `2030-01-31T16:05:09Z`."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec=timespec)[:-6] + "Z"
