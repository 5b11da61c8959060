"""Recognizes that no connection can be accepted because no file descriptor or memory is free."""

import errno
import logging
import socket
import time

from capport.log_limits import FAULTS, Seldom

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds until the next attempt; meanwhile the clients wait in the kernel's queue."""

_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_seldom = Seldom(FAULTS)


def is_scarcity(error: OSError, listening: socket.socket) -> bool:
    """Whether accept(2) failed because no descriptor or memory is free; logs it once a minute."""
    if error.errno not in _SCARCE:
        return False
    if _seldom.is_due(time.monotonic(), error.errno):
        name = listening.getsockname()
        where = name if isinstance(name, str) else f"{name[0]}:{name[1]}"
        logger.error(f"No connection to {where} can be accepted: {error}; trying again")
    return True
