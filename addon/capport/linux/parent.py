"""Ends a process together with the process that started it, also if that one is killed."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # here, because loading it between fork(2) and exec(2) might never end


def end_with_the_parent() -> None:
    """Ends this process as soon as its parent has ended, even if this one is stopped then."""
    parent = os.getppid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
