"""Keeps sessions in a dict: `:memory:`, for tests and to try capport out."""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from capport.core.client import ClientId
from capport.core.session import Instant, Session, check_times, first_open, open_ones
from capport.stores import FullError, Watcher
from capport.watchers import Watchers

_FEW = 1000
"""With no more sessions than this, those that are over may stay in the dict."""


class MemoryStore:
    """A SessionStore that forgets everything when the process ends."""

    fault: str | None = None
    lease: Instant = math.inf

    def __init__(self) -> None:
        self._sessions: dict[ClientId, Session] = {}
        self._remove_above = _FEW  # sessions: with more, those that are over are removed
        self._lock = threading.Lock()
        self._watchers = Watchers[ClientId]("the session store")

    def find(self, ids: Sequence[ClientId], now: Instant) -> Session | None:
        """Returns the open session of the first of `ids` that has one."""
        return first_open(map(self._sessions.get, ids), now)

    def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
        """Opens or replaces a session; with `renews`, only replaces one."""
        check_times(session)
        with self._lock:
            before = self._sessions.get(session.client)
            if before is None:
                if renews:
                    return False
                if most is not None and len(self._sessions) >= most:
                    self._remove_ended(session.granted)
                    if len(self._sessions) >= most:
                        raise FullError.by_policy(most)
            seen = max(session.last_seen, session.granted, before.last_seen if before else 0.0)
            self._sessions[session.client] = replace(session, last_seen=seen)
            if len(self._sessions) > self._remove_above:
                self._remove_ended(session.granted)
        self._watchers.notify(session.client)
        return True

    def revoke(self, client: ClientId) -> bool:
        """Ends a session. Returns whether there was one."""
        with self._lock:
            if self._sessions.pop(client, None) is None:
                return False
        self._watchers.notify(client)
        return True

    def touch(self, client: ClientId, now: Instant) -> None:
        """Notes that the client was active at `now`."""
        with self._lock:
            session = first_open([self._sessions.get(client)], now)
            if session is not None and session.idle is not None:
                seen = max(session.last_seen, now)
                self._sessions[client] = replace(session, last_seen=seen)

    def sessions(self, about: Collection[str] | None = None) -> Iterator[Session]:
        """Yields each session, or those whose id is or has one of the addresses `about`."""
        for session in tuple(self._sessions.values()):
            mac, _, address = session.client.partition("@")
            if about is None or mac in about or address in about:
                yield session

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` at each change; returns a function that stops this."""
        return self._watchers.add(watcher)

    def _remove_ended(self, now: Instant) -> None:
        """Removes the sessions that are over, because a client can invent any number of devices."""
        self._sessions = {one.client: one for one in open_ones(self._sessions.values(), now)}
        self._remove_above = 2 * max(_FEW, len(self._sessions))

    def close(self) -> None:
        """Forgets everything."""
        self._watchers.close()
        self._sessions.clear()
