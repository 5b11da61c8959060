"""Sessions in a dict: for tests, first tries, and `:memory:`."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from capport.core.client import ClientId
from capport.core.session import Instant, Session, check_times, first_open, open_ones
from capport.stores import FullError, Watcher
from capport.stores.subscribers import Watchers

_FEW = 1000
"""Sessions that may be over and still be there."""


class MemoryStore:
    """A SessionStore that forgets everything when the process ends."""

    fault: str | None = None

    def __init__(self) -> None:
        self._sessions: dict[ClientId, Session] = {}
        self._most = _FEW  # before the next look for those that are over
        self._lock = threading.Lock()
        self._watchers = Watchers()

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """The open session under the first of `ids` that has one."""
        return first_open(map(self._sessions.get, ids), now)

    def put(self, session: Session, *, most: int | None = None) -> None:
        """Opens or replaces a session."""
        self._put(session, renews=False, most=most)

    def renew(self, session: Session) -> bool:
        """Replaces one."""
        return self._put(session, renews=True)

    def _put(self, session: Session, *, renews: bool, most: int | None = None) -> bool:
        check_times(session)
        with self._lock:
            before = self._sessions.get(session.client)
            if before is None:
                if renews:
                    return False
                if most is not None and len(self._sessions) >= most:
                    self._clear(session.granted)
                    if len(self._sessions) >= most:
                        raise FullError.by_policy(most)
            seen = max(session.last_seen, session.granted, before.last_seen if before else 0.0)
            self._sessions[session.client] = replace(session, last_seen=seen)
            if len(self._sessions) > self._most:
                self._clear(session.granted)
        self._watchers.tell(session.client)
        return True

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
            session = first_open([self._sessions.get(client)], now)
            if session is not None and session.idle is not None:
                seen = max(session.last_seen, now)
                self._sessions[client] = replace(session, last_seen=seen)

    def sessions(self) -> Iterator[Session]:
        """Each session."""
        yield from tuple(self._sessions.values())

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Has `watcher` called on each change."""
        return self._watchers.add(watcher)

    def _clear(self, now: Instant) -> None:
        """Forgets who is over, as devices that are made up soon are: there is no end of those."""
        self._sessions = {one.client: one for one in open_ones(self._sessions.values(), now)}
        self._most = 2 * max(_FEW, len(self._sessions))

    def close(self) -> None:
        """Forgets everything."""
        self._watchers.close()
        self._sessions.clear()
