"""Which sessions were opened and which have ended, told as events, whichever process did it."""

from collections.abc import Callable
from dataclasses import dataclass

from capport.core.bounded_map import BoundedMap
from capport.core.client import ClientId
from capport.core.deadlines import Deadlines
from capport.core.session import Instant, Session
from capport.events import EventLog
from capport.stores import SessionStore

GONE = 1000  # clients whose end was told, and is not told again until they are granted anew
FRESH = 5.0  # seconds: a session that we did not know of and that is older was not granted just now


@dataclass(frozen=True, slots=True)
class _Entry:
    """When a session ends at the latest, and when if nothing more is heard."""

    expires: Instant
    ends: Instant


class Ledger:
    """Hears of each change of the store, and of time.

    It keeps an entry for each session that changed while it looked, and none for the others: what
    was open before the start is told when it is revoked, not when it expires.
    """

    def __init__(
        self, store: SessionStore, events: Callable[[], EventLog], now: Callable[[], Instant]
    ) -> None:
        self._store = store
        self._events = events
        self._now = now
        self._entries: dict[ClientId, _Entry] = {}
        self._gone = BoundedMap[ClientId, None](GONE)
        self._ends = Deadlines[ClientId]()

    def changed(self, client: ClientId) -> None:
        """The store's word that something about `client` has changed."""
        now = self._now()
        before = self._entries.pop(client, None)
        self._ends.drop(client)
        session = self._store.find((client,), now)
        if session is None:
            if client in self._gone:
                return  # opened and ended again before we heard of either
            self._gone[client] = None
            over = before is not None and before.ends <= now
            self._events().write("expired" if over else "revoked", client)
            return
        self._gone.pop(client, None)
        self._file(session)
        if before is None and now - session.granted > FRESH:
            return  # only a touch that was written back
        if before is None or before.expires != session.expires:
            self._tell_granted(session, now)

    def ended(self) -> list[ClientId]:
        """Who has become unknown by time alone since the last call; each is told as `expired`."""
        now, over = self._now(), []
        for client in self._ends.due(now):
            session = self._store.find((client,), now)
            if session is None:
                del self._entries[client]
                self._events().write("expired", client)
                over.append(client)
            else:  # traffic has kept it up
                self._file(session)
        return over

    def _file(self, session: Session) -> None:
        self._entries[session.client] = _Entry(session.expires, session.ends)
        self._ends.set(session.client, session.ends)

    def _tell_granted(self, session: Session, now: Instant) -> None:
        self._events().write(
            "granted",
            session.client,
            seconds=round(session.expires - now),
            by=session.by or None,
            how=session.how or None,
            name=session.name or None,
        )
