"""Makes Tornado accept few connections at once, and none for a while if no descriptor is free."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

from tornado.ioloop import IOLoop

from capport.linux.scarcity import AGAIN, is_scarcity

AT_ONCE = 4
"""Connections that Tornado accepts before the event loop does something else. It would accept 128,
which takes 100 ms."""


def patient(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """The listening `sockets` as sockets that Tornado can accept from; detaches the given ones.

    When no descriptor is free, a plain socket raises, and the event loop calls Tornado again at
    once, because the client still waits: that takes a whole core and logs a traceback each time.
    """
    return [_Patient(one.family, one.type, one.proto, one.detach()) for one in sockets]


class _Patient(socket.socket):
    """A listening socket from which Tornado accepts `AT_ONCE` connections in a row.

    After such a failure, Tornado leaves it alone for `AGAIN` seconds.
    """

    _left = AT_ONCE

    def accept(self) -> tuple[socket.socket, Any]:
        if not self._left:
            self._left = AT_ONCE
            raise BlockingIOError  # the event loop calls Tornado again if a client waits
        self._left -= 1
        try:
            return super().accept()
        except OSError as error:
            if not is_scarcity(error, self):
                raise
            loop = IOLoop.current()
            loop.update_handler(self, 0)
            asyncio.get_running_loop().call_later(AGAIN, self._resume, loop)
            raise BlockingIOError from error  # Tornado takes it as: no client is waiting

    def _resume(self, loop: IOLoop) -> None:
        if self.fileno() != -1:
            loop.update_handler(self, IOLoop.READ)
