"""Messages between the first process of `capport run --workers` and one of its workers.

A message is one datagram: a JSON array, whose first item says what it is about. A worker reads
strangers' bytes, so the first process reads JSON from it and nothing else, with numbers that are
finite. The first process may send an object along, pickled in a file in memory.
"""

import json
import math
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any

_LONGEST = 1 << 16  # bytes of a message
_BUFFER = 1 << 20  # bytes of messages that may wait for the other process

PATIENCE = 1.0  # seconds for which the first process may leave a worker's events unread

type ChannelMessage = list[Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel. It keeps the boundaries and the order of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end, which never waits. With `unpickles`, it accepts objects that come with messages."""

    def __init__(self, end: socket.socket, *, unpickles: bool = False) -> None:
        self.is_closed = False
        self._end, self._unpickles = end, unpickles
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def fileno(self) -> int:
        """The descriptor, so that an event loop can wait for messages."""
        return self._end.fileno()

    def send(self, *message: object, pickled: bytes | None = None) -> bool:
        """Sends a message; returns False if the other process is gone or has too many to read.

        The other process gets the object in `pickled` as the last item of the message.
        """
        data = json.dumps(message).encode()
        try:
            if pickled is None:
                return self._end.send(data) == len(data)
            with os.fdopen(os.memfd_create("capport"), "wb") as file:
                file.write(pickled)
                file.flush()
                return socket.send_fds(self._end, [data], [file.fileno()]) == len(data)
        except OSError:
            return False

    def messages(self) -> Iterator[ChannelMessage]:
        """Yields each message that has come. If the other process is gone, sets `is_closed`.

        Raises ValueError for data that is not a message.
        """
        while not self.is_closed:
            try:
                # The kernel closes descriptors for which there is no room.
                data, files, _, _ = socket.recv_fds(self._end, _LONGEST, int(self._unpickles))
            except BlockingIOError:
                return
            except ConnectionError:
                data, files = b"", []
            if not data:
                self.is_closed = True
                return
            message = _parsed(data)
            if not isinstance(message, list) or not message:
                raise ValueError("not an array with items")
            for file in files:
                with os.fdopen(file, "rb") as whole:
                    whole.seek(0)
                    message.append(pickle.load(whole))  # noqa: S301 - from the first process
            yield message

    def close(self) -> None:
        """Closes this end."""
        self.is_closed = True
        self._end.close()


def forward(end: socket.socket) -> Callable[[str], bool]:
    """Makes a function that sends a line of events as a message, and returns whether it could.

    The function may wait, so it must not be called on an event loop (`EventLog` has a thread).
    """
    end.settimeout(PATIENCE)

    def send(line: str) -> bool:
        try:
            return end.send(f'["event", {line}]'.encode()) > 0
        except OSError:
            return False

    return send


def _parsed(data: bytes) -> Any:
    """The JSON in `data`. Raises ValueError, and no other error, whatever the data is."""
    try:
        return json.loads(data, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("its arrays are nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.20} is not finite")
    return number
