"""What a database of sessions does when its file is opened and written to."""

import logging
import sqlite3
from pathlib import Path

from capport.stores.sqlite.boot_clock import StoreTime
from capport.stores.sqlite.database import Contents
from capport.stores.sqlite.follower import Follower
from capport.stores.sqlite.revocation_file import Revoked, free_ballast, set_ballast
from capport.stores.sqlite.session_schema import SESSIONS

logger = logging.getLogger(__name__)


class SessionContents(Contents):
    """The sessions in the file at `path`, which `follower` reads; `journal` wakes other processes.

    Beside it some room on the disk is set aside, so that a full one still takes revocations.
    """

    schema = SESSIONS

    def __init__(
        self, path: Path, journal: Revoked, store_time: StoreTime, follower: Follower
    ) -> None:
        self._path, self._ballast, self._has_room = path, Path(f"{path}-ballast"), True
        self._journal, self._time, self._follower = journal, store_time, follower

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Makes the file know of this boot."""
        self._time.begin(reader, writer)

    def load(self, reader: sqlite3.Connection) -> None:
        """Reads all sessions."""
        self._follower.load(reader)

    def opened(self) -> None:
        """Sets room aside on the disk; says so once where it cannot. To be called now and then."""
        try:
            self._journal.make()
            set_ballast(self._ballast, self._path)
        except OSError as error:
            if self._has_room:
                logger.warning("%s: %s; revocations may fail", self._ballast, error.strerror)
            self._has_room = False
        else:
            self._has_room = True

    def settle(self, writer: sqlite3.Connection) -> None:
        """Moves store time on."""
        self._time.settle(writer)

    def committed(self) -> None:
        """Wakes the other processes."""
        self._journal.ring()

    def free_room(self) -> None:
        """Gives the room back."""
        free_ballast(self._ballast, self._path)
