"""Listens for the API for the operator's own login server, where no client can connect.

That is a unix socket, where the file's permissions decide which users may call, and loopback, where
a call needs a bearer token. The calls are in `resources.py`; `openapi.json` describes them.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tornado import httpserver, netutil

from capport.api.resources import create_app
from capport.core.place import Place
from capport.web.accepting import patient
from capport.web.context import WebContext

_MAX_READ = 1024 * 1024  # bytes of a body; a longer one is neither read nor answered


class NoPlace(OSError):
    """The API cannot listen at the address of `portal_api`; the text says why, in one line."""


class BackChannel:
    """Listens on a unix socket, and on loopback too if `place` is given."""

    def __init__(self, context: WebContext, path: Path, place: Place | None = None) -> None:
        if place is not None and (isinstance(place.host, str) or not place.host.is_loopback):
            raise ValueError(f"{place} is not on loopback: the API must be out of clients' reach")
        self.context, self.path, self.place = context, path, place
        self.port: int | None = None
        self._servers: list[httpserver.HTTPServer] = []
        self._file = 0

    def start(self) -> None:
        """Listens in the running event loop. The socket's file gets the permissions of `_mode`.

        Raises OSError; with EADDRINUSE if another process has the socket. Raises NoPlace, and
        gives the socket up again, if it cannot listen at `place`.
        """
        unix = self._bind()
        try:
            bound = _bind_at(self.place) if self.place is not None else []
        except NoPlace:
            unix.close()
            self._unlink()
            raise
        self._serve([unix], token_needed=False)
        if bound:
            self.port = bound[0].getsockname()[1]
            self._serve(bound, token_needed=True)

    @property
    def where(self) -> str:
        """Where it listens, as text: the socket's path, and the address if there is one."""
        if self.place is None or self.port is None:
            return str(self.path)
        return f"{self.path} and {Place(self.place.host, self.port)}"

    async def stop(self) -> None:
        """Stops listening, closes every connection, and removes the socket's file if it is ours."""
        for server in self._servers:
            server.stop()
            await server.close_all_connections()
        if self._servers:
            self._unlink()
        self._servers.clear()

    def _bind(self) -> socket.socket:
        with _locked(self.path.parent):
            if _is_listening(self.path):
                raise OSError(errno.EADDRINUSE, "another process answers there", str(self.path))
            try:
                bound = netutil.bind_unix_socket(str(self.path), mode=_mode(self.path.parent))
            except (OSError, ValueError) as error:
                number = error.errno if isinstance(error, OSError) else None
                raise OSError(number or errno.EINVAL, str(error), str(self.path)) from error
            self._file = self.path.stat().st_ino
        return bound

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._file:
                self.path.unlink()

    def _serve(self, sockets: list[socket.socket], *, token_needed: bool) -> None:
        server = httpserver.HTTPServer(
            create_app(self.context, token_needed=token_needed),
            idle_connection_timeout=60.0,
            body_timeout=15.0,
            max_header_size=16 * 1024,
            max_body_size=_MAX_READ,
        )
        server.add_sockets(patient(sockets))
        self._servers.append(server)


def _bind_at(place: Place) -> list[socket.socket]:
    try:
        return netutil.bind_sockets(place.port, str(place.host))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        why = "is in use" if in_use else f"cannot be used: {error.strerror or error}"
        raise NoPlace(f"portal_api: {place} {why}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from binding there meanwhile. Raises EADDRINUSE if one is at it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OSError(errno.EADDRINUSE, "another process binds there", str(folder)) from error
    finally:
        os.close(opened)


def _is_listening(path: Path) -> bool:
    """Whether a process listens at `path`: the file alone may be left from a killed process."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        # EAGAIN: it listens, but its queue is full.
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
    return False


def _mode(folder: Path) -> int:
    """0660 in a folder that its group may enter and others may not: the same group may call."""
    shared = stat.S_IMODE(folder.stat().st_mode) & 0o077
    return 0o660 if shared & 0o050 == 0o050 and not shared & 0o007 else 0o600
