"""What every page of the login server and every call of its APIs works with."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from capport import clock
from capport.core.client import Address, Mac
from capport.core.place import Host
from capport.core.policy import Policy
from capport.log_limits import FAULTS, RETURNS, Seldom
from capport.login.repeated_forms import Forms
from capport.login.theme import Theme
from capport.login.throttle import Often, Throttle
from capport.web.date_reckoning import Moment
from capport.web.grants import Grants
from capport.web.records import Records
from capport.web.states import States
from capport.web.vouching import Vouched
from capport.web.worker import Worker

type MayBeProxy = Callable[[Address, Address | None], bool]
"""Whether a connection from the first address to the second, which is ours, may be of a proxy that
cannot say which of its clients it is for."""

HASHES_WAITING = 8
"""Passwords that may wait for the one thread that hashes; more are told to come back."""


@dataclass
class Portal:
    """The login server's belongings. `wall` is for what people read and vouchers live by."""

    grants: Grants
    records: Records
    boot: str = field(default_factory=clock.boot_id)
    wall: Callable[[], float] = time.time
    throttle: Throttle = field(default_factory=Throttle)
    often: Often = field(default_factory=Often)
    forms: Forms = field(default_factory=Forms)
    hashing: int = 0
    vouched: Vouched = field(default_factory=Vouched)
    frames: WeakKeyDictionary[object, Mac | None] = field(default_factory=WeakKeyDictionary)
    """The MAC that the first frame of a connection came from, by its stream (`Peer`)."""
    returns: Seldom = field(default_factory=partial(Seldom, RETURNS))
    faults: Seldom = field(default_factory=partial(Seldom, FAULTS))
    may_be_proxy: MayBeProxy = lambda asks, asked_at: False
    """The proxy in this process vouches for each client (`vouched`), so others are themselves."""
    certified: tuple[Host, ...] = ()
    """The names in the certificate that we show: whatever `login_url` says, they are ours."""

    def __post_init__(self) -> None:
        self.granting = asyncio.Lock()  # one state at a time is spent
        self.states = States(self.records.secret, self.boot, self.grants.now)
        self._theme: tuple[str | None, Theme] = (None, Theme(None))
        # One thread each: SQLite takes one writer at a time, and argon2 19 MiB.
        self._disk = Worker("portal-records")
        self._hash = ThreadPoolExecutor(1, thread_name_prefix="portal-hash")

    def moment(self) -> Moment:
        """What the clocks say."""
        return Moment(self.wall(), self.boot, self.grants.now())

    def theme(self, policy: Policy) -> Theme:
        """The theme in the folder `login/` beside the policy file."""
        if self._theme[0] != policy.file:
            folder = Path(policy.file).absolute().parent / "login" if policy.file else None
            self._theme = (policy.file, Theme(folder))
        return self._theme[1]

    async def recorded[Answer](self, what: Callable[[], Answer]) -> Answer:
        """`what` done with the records, off the event loop. Raises OSError (`Worker.do`)."""
        return await self._disk.do(what)

    async def hashed[Answer](self, what: Callable[[], Answer]) -> Answer:
        """`what` computed on the one thread for passwords, off the event loop."""
        self.hashing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hash, what)
        finally:
            self.hashing -= 1

    def close(self) -> None:
        """Ends the threads, when what they are at is done, and lets go of the records."""
        self._disk.close()
        self._hash.shutdown(wait=True)
        self.records.close()
