"""What every page of the login server and every call of its APIs works with."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

from capport import clock
from capport.core.client import Address, Mac
from capport.core.place import Host
from capport.log_limits import FAULTS, Seldom
from capport.web.date_reckoning import Moment
from capport.web.gate_protocol import Grants
from capport.web.records import Records
from capport.web.states import States
from capport.web.vouching import Vouched
from capport.web.worker import Worker

type MayBeProxy = Callable[[Address, Address | None], bool]
"""Whether a connection from the first address to the second, which is ours, may be of a proxy that
cannot say which of its clients it is for."""


@dataclass
class Portal:
    """What the handlers share. `wall` is for what people read and vouchers live by."""

    grants: Grants
    records: Records
    boot: str = field(default_factory=clock.boot_id)
    wall: Callable[[], float] = time.time
    vouched: Vouched = field(default_factory=Vouched)
    frames: WeakKeyDictionary[object, Mac | None] = field(default_factory=WeakKeyDictionary)
    """The MAC that the first frame of a connection came from, by its stream (`Peer`)."""
    faults: Seldom = field(default_factory=partial(Seldom, FAULTS))
    may_be_proxy: MayBeProxy = lambda asks, asked_at: False
    """The proxy in this process vouches for each client (`vouched`), so others are themselves."""
    certified: tuple[Host, ...] = ()
    """The names in the certificate that we show: whatever `login_url` says, they are ours."""

    def __post_init__(self) -> None:
        self.granting = asyncio.Lock()  # one state at a time is spent
        self._states: tuple[bytes, States] | None = None
        self._disk = Worker("portal-records")  # one thread: SQLite takes one writer at a time

    @property
    def states(self) -> States:
        """The states in links, sealed by the secret of the records that are there now."""
        secret = self.records.secret
        if self._states is None or self._states[0] != secret:
            self._states = secret, States(secret, self.boot, self.grants.now)
        return self._states[1]

    def moment(self) -> Moment:
        """What the clocks say."""
        return Moment(self.wall(), self.boot, self.grants.now())

    async def recorded[Answer](self, what: Callable[[], Answer]) -> Answer:
        """`what` done with the records, off the event loop. Raises OSError (`Worker.do`)."""
        return await self._disk.do(what)

    def close(self) -> None:
        """Ends the thread, when what it is at is done, and closes the records."""
        self._disk.close()
        self.records.close()
