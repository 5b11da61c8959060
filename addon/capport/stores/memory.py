"""Sessions in a dict: for tests, first tries, and `:memory:`."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from capport.core.client import ClientId
from capport.core.session import Instant, Session, check_times
from capport.stores import Watcher
from capport.stores.watchers import Watchers


class MemoryStore:
    """A SessionStore that forgets everything when the process ends."""

    fault: str | None = None

    def __init__(self) -> None:
        self._sessions: dict[ClientId, Session] = {}
        self._lock = threading.Lock()
        self._watchers = Watchers()

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """The open session under the first of `ids` that has one."""
        for client in ids:
            session = self._sessions.get(client)
            if session is not None and session.is_open(now):
                return session
        return None

    def put(self, session: Session) -> None:
        """Opens or replaces a session."""
        check_times(session)
        with self._lock:
            before = self._sessions.get(session.client)
            seen = max(session.last_seen, session.granted, before.last_seen if before else 0.0)
            self._sessions[session.client] = replace(session, last_seen=seen)
        self._watchers.tell(session.client)

    def drop(self, client: ClientId) -> bool:
        """Ends a session; whether there was one."""
        with self._lock:
            if self._sessions.pop(client, None) is None:
                return False
        self._watchers.tell(client)
        return True

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was heard of."""
        with self._lock:
            session = self._sessions.get(client)
            if session is not None and session.idle is not None and session.is_open(now):
                seen = max(session.last_seen, now)
                self._sessions[client] = replace(session, last_seen=seen)

    def sessions(self) -> Iterator[Session]:
        """Each session."""
        yield from tuple(self._sessions.values())

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Has `watcher` called on each change."""
        return self._watchers.add(watcher)

    def close(self) -> None:
        """Forgets everything."""
        self._watchers.close()
        self._sessions.clear()
