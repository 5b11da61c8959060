"""The store of a router whose `fleet.db` cannot be used: it is closed until a usable file is there.

The file has revocations that nobody else may know of, so it is neither ignored nor made again.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from capport.core.client import ClientId
from capport.core.session import Instant, Session
from capport.lasting import lasting_on_thread
from capport.stores import SessionStore, StoreError, Watcher
from capport.stores.redis.router_marks import RouterMarks
from capport.watchers import Watchers

logger = logging.getLogger(__name__)

RETRY = 1.0  # seconds between two attempts to open the store


class ClosedStore:
    """A SessionStore that passes everything on to the store of `reopen`, once that can be opened.

    Until then no client is known and grants fail. A revocation goes to `own`, the store of what
    this router granted, and is made again before the opened store is used.
    """

    def __init__(
        self, path: Path, own: SessionStore, reopen: Callable[[], SessionStore], why: StoreError
    ) -> None:
        self._path, self._own, self._reopen, self._why = path, own, reopen, str(why)
        self._store: SessionStore | None = None
        self._revoked: dict[ClientId, None] = {}
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._watchers = Watchers[ClientId]("the session store")
        logger.error(self._why)
        opening = ("Opening the session store", self._run, self._stopping)
        self._thread = threading.Thread(
            target=lasting_on_thread, args=opening, name="closed-store", daemon=True
        )
        self._thread.start()

    @property
    def fault(self) -> str | None:
        """Why the store cannot be used."""
        return self._why if self._store is None else self._store.fault

    @property
    def lease(self) -> Instant:
        """Until when sessions of other routers are in force."""
        return 0.0 if self._store is None else self._store.lease

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one."""
        return None if self._store is None else self._store.find(ids, now)

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`."""
        if self._store is not None:
            self._store.touch(client, now)

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields each session, or those whose id is or has one of the addresses `about`."""
        return iter(()) if self._store is None else self._store.sessions(about)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change, and for each client that is known once it is open."""
        return self._watchers.add(watcher)

    def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
        """Opens or replaces a session. Raises StoreError while the store is closed."""
        if self._store is None:
            raise StoreError(self._why)
        return self._store.put(session, most=most, renews=renews)

    def revoke(self, client: ClientId) -> bool:
        """Ends a session. Raises StoreError while the store is closed: others do not hear of it."""
        with self._changing:
            if self._store is None:
                self._revoked[client] = None
        if self._store is not None:
            return self._store.revoke(client)
        self._own.revoke(client)
        raise StoreError(f"{self._why}; {client} is unknown here, but no other router hears of it")

    def close(self) -> None:
        """Closes everything."""
        self._stopping.set()
        self._thread.join()
        self._own.close()
        if self._store is not None:
            self._store.close()
        self._watchers.close()

    def _run(self) -> None:
        while not self._stopping.wait(RETRY):
            try:
                self._open()
                return
            except StoreError as error:
                if str(error) != self._why:
                    self._why = str(error)
                    logger.error(str(error))

    def _open(self) -> None:
        # This reads the damaged file alone: the sessions may be a million.
        with closing(RouterMarks(self._path.with_name("fleet.db"), like=self._path)) as marks:
            marks.changed()
        store = self._reopen()
        while True:
            with self._changing:
                if not self._revoked:
                    self._store = store
                    break
                client, _ = self._revoked.popitem()
            try:
                store.revoke(client)
            except StoreError as error:  # it is in force, and the store makes it durable later
                logger.warning(str(error))
        logger.info(f"{self._path.with_name('fleet.db')}: works again")
        store.watch(self._watchers.notify)
        for session in store.sessions():
            self._watchers.notify(session.client)
