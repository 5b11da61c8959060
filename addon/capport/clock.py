"""The only module that reads the clock by which sessions are decided."""

import time
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
