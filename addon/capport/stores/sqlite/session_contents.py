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

    Some space on the disk is reserved beside it, so that revocations work on a full disk too.
    """

    schema = SESSIONS

    def __init__(
        self, path: Path, journal: Revoked, store_time: StoreTime, follower: Follower
    ) -> None:
        self._path, self._ballast, self._is_reserved = path, Path(f"{path}-ballast"), True
        self._journal, self._time, self._follower = journal, store_time, follower

    def begin(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Writes this boot to the file."""
        self._time.begin(reader, writer)

    def load(self, reader: sqlite3.Connection) -> None:
        """Reads all sessions."""
        self._follower.load(reader)

    def opened(self) -> None:
        """Reserves space on the disk, or logs once that it cannot. Upkeep calls it regularly."""
        try:
            self._journal.make()
            set_ballast(self._ballast, self._path)
        except OSError as error:
            if self._is_reserved:
                logger.warning(
                    "%s: %s; revocations may fail on a full disk", self._ballast, error.strerror
                )
            self._is_reserved = False
        else:
            self._is_reserved = True

    def settle(self, writer: sqlite3.Connection) -> None:
        """Moves store time on."""
        self._time.settle(writer)

    def committed(self) -> None:
        """Wakes the other processes."""
        self._journal.ring()

    def free_room(self) -> None:
        """Frees the reserved space."""
        free_ballast(self._ballast, self._path)
