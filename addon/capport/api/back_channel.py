"""The API for a login server of the operator's own listens: where no client is.

On a unix socket, where the file's permission is the authority, or on loopback with bearer tokens.
What it is asked is in `resources.py`, and described by `openapi.json`.
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
from capport.web.context import Portal

_MAX_READ = 1024 * 1024  # bytes of a body; one beyond it is not read, nor answered 413


class NoPlace(OSError):
    """The API cannot listen at the address that `portal_api` gives, in one line that says why."""


class BackChannel:
    """Listens on a unix socket, and on loopback if told to."""

    def __init__(self, portal: Portal, path: Path, place: Place | None = None) -> None:
        if place is not None and (isinstance(place.host, str) or not place.host.is_loopback):
            raise ValueError(f"{place} is not on loopback, where no client is")
        self.portal, self.path, self.place = portal, path, place
        self.port: int | None = None
        self._servers: list[httpserver.HTTPServer] = []
        self._file = 0

    def start(self) -> None:
        """Listens in the running event loop. Raises OSError; with EADDRINUSE, where another does.

        NoPlace where it is the address that cannot be had, which none of the same store's has then.
        The socket's file is for its owner, and for its group where the folder is for those two.
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
        """Where it listens, for people: the socket's path, and the address where there is one."""
        if self.place is None or self.port is None:
            return str(self.path)
        return f"{self.path} and {Place(self.place.host, self.port)}"

    async def stop(self) -> None:
        """Ends every connection, and takes the socket's file away, if it is still ours."""
        for server in self._servers:
            server.stop()
            await server.close_all_connections()
        if self._servers:
            self._unlink()
        self._servers.clear()

    def _bind(self) -> socket.socket:
        with _alone(self.path.parent):
            if _answers(self.path):
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
            create_app(self.portal, token_needed=token_needed),
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
        why = "is in use" if in_use else f"cannot be listened on: {error.strerror or error}"
        raise NoPlace(f"portal_api: {place} {why}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """With no other process that looks and binds there meanwhile. Raises OSError, as for those."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OSError(errno.EADDRINUSE, "another process is at it", str(folder)) from error
    finally:
        os.close(opened)


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket at `path`: what a killed process left, nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # it listens, and has no room in its queue
        except OSError:
            return False
    return True


def _mode(folder: Path) -> int:
    """0660 in a folder that its group may use and others not: whom it lets in, it lets ask."""
    shared = stat.S_IMODE(folder.stat().st_mode) & 0o077
    return 0o660 if shared & 0o050 == 0o050 and not shared & 0o007 else 0o600
