"""Makes the proxy's open connections follow the sessions: when one changes, and when one ends."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import batched
from typing import Protocol

from capport.core.client import Client, ClientId, parts_of
from capport.core.session import Session
from capport.session_events import SessionEvents

TICK = 0.1  # seconds between two checks which sessions have expired
AT_ONCE = 50  # sessions in one turn of the event loop: there may be 100 000


class OpenConnections(Protocol):
    """The proxy's open connections of clients."""

    def recheck(self, ids: Iterable[ClientId]) -> None:
        """Decides again on the connections of these clients."""

    def recheck_all(self) -> None:
        """Decides again on every connection."""

    def drop(self, client: Client) -> None:
        """Ends every connection of `client` at once."""

    @property
    def unknown(self) -> int:
        """How many unknown clients have a connection."""


class Enforcement:
    """Decides again on the open `connections` of each client whose session changes or ends."""

    def __init__(self, session_events: SessionEvents) -> None:
        self.connections: OpenConnections | None = None
        self._session_events = session_events

    def found(self, session: Session) -> None:
        """Notes a session that is in the store at the start."""
        self._session_events.found(session)

    def changed(self, client: ClientId) -> None:
        """Follows a change of the session of `client`, which any process has made."""
        self.recheck(client)
        self._session_events.changed(client)

    def recheck(self, client: ClientId) -> None:
        """Decides again on the connections of `client`, and of its address and its MAC alone."""
        if self.connections:
            parts = {ClientId(str(part)) for part in parts_of(client) if part is not None}
            self.connections.recheck({client, *parts})

    def unknown(self) -> int:
        """How many unknown clients have a connection to the proxy."""
        return self.connections.unknown if self.connections else 0

    async def follow(self, also: Callable[[], None] = lambda: None) -> None:
        """Checks ten times a second which sessions are over, and then calls `also`. Never returns.

        If it fails, expired sessions stay connected until it begins again (`lasting`).
        """
        while True:
            await asyncio.sleep(TICK)
            for some in batched(self._session_events.ended(), AT_ONCE):
                for client in some:
                    self.recheck(client)
                await asyncio.sleep(0)
            also()
