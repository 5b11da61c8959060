"""Writes an event when a session opens or ends, whichever process made the change."""

import math
from collections.abc import Callable, Iterator

from capport.core.bounded_map import BoundedMap
from capport.core.client import ClientId
from capport.core.deadlines import Deadlines
from capport.core.session import Instant, Session, first_open
from capport.events import EventLog
from capport.stores import SessionStore

GONE = 1000  # clients whose end was written, and is not written again until the next grant
FRESH = 5.0  # seconds; a session that is new to us but older than this was not granted just now


class SessionEvents:
    """Turns changes in the store, and the passing of time, into events.

    It has an entry for each open session. A lease makes no difference: it ends for all sessions at
    once, and begins for all at once.
    """

    def __init__(
        self, store: SessionStore, events: Callable[[], EventLog], now: Callable[[], Instant]
    ) -> None:
        self._store = store
        self._events = events
        self._now = now
        # When the session ends at the latest, and when it ends if its client is silent.
        self._entries: dict[ClientId, tuple[Instant, Instant]] = {}
        self._gone = BoundedMap[ClientId, None](GONE)
        self._ends = Deadlines[ClientId]()

    def found(self, session: Session) -> None:
        """Notes a session that is in the store at the start, so that its end is written too."""
        if first_open([session.without_lease()], self._now()):
            self._file(session)

    def changed(self, client: ClientId) -> None:
        """The store calls this when the session of `client` has changed."""
        now = self._now()
        expires, ends = self._entries.pop(client, (None, math.inf))
        self._ends.drop(client)
        session = self._store.find((client,), now)
        if session is None:
            if client in self._gone:
                return  # opened and ended again between two calls
            self._gone[client] = None
            self._events().write("expired" if ends <= now else "revoked", client)
            return
        self._gone.pop(client, None)
        self._file(session)
        if expires is None and now - session.granted > FRESH:
            return  # only a new last-seen time
        if expires != session.expires:
            self._events().write(
                "granted",
                client,
                seconds=round(session.left(now)),
                by=session.by or None,
                how=session.how or None,
                name=session.name or None,
            )

    def ended(self) -> Iterator[ClientId]:
        """Yields each client whose session has expired, and writes `expired` for it."""
        now = self._now()
        for client in self._ends.due(now):
            session = self._store.find((client,), now)
            if session is None:
                del self._entries[client]
                self._gone[client] = None  # the store may still write when it was last seen
                self._events().write("expired", client)
                yield client
            else:  # traffic has moved its end
                self._file(session)

    def _file(self, session: Session) -> None:
        self._entries[session.client] = session.expires, session.ends_by_itself
        self._ends.set(session.client, session.ends_by_itself)
