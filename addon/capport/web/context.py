"""What every page of the login server and every call of its APIs works with."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

from tornado import web

from capport import clock
from capport.core.client import Address, Client, ClientId, Mac
from capport.core.place import Host
from capport.gate import Gate
from capport.log_limits import FAULTS, Seldom
from capport.web.date_reckoning import Moment
from capport.web.granting import Grants
from capport.web.records import Records
from capport.web.states import State, States
from capport.web.vouching import Vouched
from capport.web.work_thread import WorkThread

type MayBeProxy = Callable[[Address, Address | None], bool]
"""Whether a connection from the first address to the second, which is ours, may come from a proxy
that does not say for which of its clients it connects."""


@dataclass
class WebContext:
    """What the handlers share. `wall` is the clock for times that people read, and for vouchers."""

    gate: Gate
    records: Records
    boot: str = field(default_factory=clock.boot_id)
    wall: Callable[[], float] = time.time
    vouched: Vouched = field(default_factory=Vouched)
    frames: WeakKeyDictionary[object, Mac | None] = field(default_factory=WeakKeyDictionary)
    """For each connection's stream: the MAC from which its first frame came (`Peer`)."""
    faults: Seldom = field(default_factory=partial(Seldom, FAULTS))
    may_be_proxy: MayBeProxy = lambda asks, asked_at: False
    """By default never: the proxy in this process enters each of its connections in `vouched`, so
    every other connection comes from the client itself."""
    certified: tuple[Host, ...] = ()
    """The names in our certificate. They are our names, whatever `login_url` says."""

    def __post_init__(self) -> None:
        self.grants = Grants(self.gate)
        self._spending = asyncio.Lock()  # states are spent one at a time
        self._states: tuple[bytes, States] | None = None
        self._disk = WorkThread("portal-records")  # one thread: SQLite takes one writer at a time

    @property
    def states(self) -> States:
        """Mints and reads states, with the secret of the records file that is there now."""
        secret = self.records.secret
        if self._states is None or self._states[0] != secret:
            self._states = secret, States(secret, self.boot, self.gate.now)
        return self._states[1]

    @asynccontextmanager
    async def spending(
        self, state: State, client: Client, *also: bytes
    ) -> AsyncIterator[ClientId | None]:
        """Spends a state for `client`, and what else can be used once: yields None.

        If one of them was used before, yields the client that did. If the block fails, what it has
        spent can be used again.
        """
        spent, spent_by = list[bytes](), None
        async with self._spending:
            try:
                for name in (state.id, *also):
                    spend = partial(self.records.spend, name, client.id, self.boot, state.expires)
                    if (spent_by := await self.recorded(spend)) is not None:
                        break
                    spent.append(name)
                yield spent_by
            except (OSError, web.HTTPError):
                for name in spent:
                    await self.recorded(partial(self.records.unspend, name))
                raise
            self.states.spent(state)

    def moment(self) -> Moment:
        """What the clocks show now."""
        return Moment(self.wall(), self.boot, self.gate.now())

    async def recorded[Answer](self, what: Callable[[], Answer]) -> Answer:
        """Calls `what`, which uses the records, off the event loop. Raises as `WorkThread.do`."""
        return await self._disk.do(what)

    def close(self) -> None:
        """Ends the threads once their work is done, and closes the records."""
        self.grants.close()
        self._disk.close(self.records.close)
