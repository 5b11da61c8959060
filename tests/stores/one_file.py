"""Sessions in one SQLite file, for the contract of every store."""

from pathlib import Path

from capport.stores.sqlite.store import SqliteStore
from stores.contract import FakeTime


class OneFile:
    """Stores on one file, with a clock that stands still unless a test moves it."""

    lasting = True

    def __init__(self, folder: Path) -> None:
        self.time = FakeTime()
        self.path = folder / "sessions.db"
        self.opened: list[SqliteStore] = []

    def open(self, *, start_closed: bool = False) -> SqliteStore:
        store = SqliteStore(
            self.path,
            start_closed=start_closed,
            clock=self.time.clock,
            boot_id=self.time.boot_id,
            spares=[self.path.parent / "run"],
        )
        self.opened.append(store)
        return store

    def close(self) -> None:
        for store in self.opened:
            store.close()
