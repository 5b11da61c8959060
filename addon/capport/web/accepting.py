"""Connections are accepted with patience: a process without a free descriptor waits for one."""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Iterable
from typing import Any

from tornado.ioloop import IOLoop

from capport.log_limits import FAULTS, Seldom

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds until it is tried again; the clients wait in the kernel's queue meanwhile."""

_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_seldom = Seldom(FAULTS)


def is_scarcity(error: OSError, listening: socket.socket) -> bool:
    """Whether a descriptor or memory is lacking to accept a connection; logged once a minute."""
    if error.errno not in _SCARCE:
        return False
    if _seldom.is_due(time.monotonic(), error.errno):
        name = listening.getsockname()
        where = name if isinstance(name, str) else f"{name[0]}:{name[1]}"
        logger.error("No connection to %s can be accepted: %s; tried again", where, error)
    return True


def patient(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """The listening `sockets` again, for Tornado to accept from; the given ones are detached.

    Where a descriptor is lacking, Tornado's own loop would raise and be called again at once,
    because the client still waits: a core, and a traceback each time.
    """
    return [_Patient(one.family, one.type, one.proto, one.detach()) for one in sockets]


class _Patient(socket.socket):
    """A listening socket that Tornado leaves alone for a while when nothing can be accepted."""

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if not is_scarcity(error, self):
                raise
            loop = IOLoop.current()
            loop.update_handler(self, 0)
            asyncio.get_running_loop().call_later(AGAIN, self._go_on, loop)
            raise BlockingIOError from error  # as if nobody waited

    def _go_on(self, loop: IOLoop) -> None:
        if self.fileno() != -1:
            loop.update_handler(self, IOLoop.READ)
