"""The one place that reads a clock to decide by."""

import time
from pathlib import Path

from capport.core.session import Instant


def now() -> Instant:
    """Seconds since boot, suspend included: no change of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot this is: instants of two different ones have nothing to do with each other.

    Raises OSError where the kernel does not say (random(4)).
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
