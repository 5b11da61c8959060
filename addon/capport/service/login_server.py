"""The login server inside the addon: all that the addon needs of it, in one place."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from capport.api.back_channel import BackChannel, NoPlace
from capport.core.client import Address, Client, Peer, parse_address
from capport.core.place import Place
from capport.core.policy import Policy
from capport.gate import Gate
from capport.linux.own_addresses import is_own
from capport.log_limits import Seldom
from capport.web.context import MayBeProxy, Portal
from capport.web.gate_in_process import GateGrants
from capport.web.login_listener import App, LoginServer
from capport.web.records import Records
from capport.web.states import login_url
from capport.web.vouching import sign_client

logger = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks whether the records are another file."""

TIDY = 60.0
"""Seconds between two clearings of what is over, and two notes of how late it is."""

AGAIN = 1.0
"""Seconds between two tries to listen for login servers of others, where another process does.

Of several processes with one store one has the API, and when that ends, the next."""

type End = tuple[str, int] | tuple[str, int, int, int]
"""An end of a TCP connection, as a socket names it."""


class Pages(Protocol):
    """What `service/login_pages.py` makes: it is imported only where a policy asks for it."""

    def create(self, encrypted: bool) -> App:
        """What answers on the login server's port."""

    def signs_in_elsewhere(self, policy: Policy) -> bool:
        """Whether `login_url` leads to others (`Theme.signs_in_elsewhere`)."""

    def close(self) -> None:
        """Ends their thread."""


class Embedded:
    """The login server, its API for others, and the links that lead to it.

    `records` is the file they keep (None: in memory); `socket` is where the API for a login server
    of the operator's own listens, and `api` where it does so with tokens, on loopback. Where the
    proxy is in another process, `may_be_proxy` says which connections may be its.
    """

    def __init__(
        self,
        gate: Gate,
        records: Path | None,
        *,
        socket: Path | None = None,
        api: Place | None = None,
        may_be_proxy: MayBeProxy | None = None,
    ) -> None:
        """Opens the records. Raises StoreError."""
        self._gate = gate
        self._grants = GateGrants(gate)
        self.portal = Portal(self._grants, Records(records))
        if may_be_proxy is not None:
            self.portal.may_be_proxy = may_be_proxy
        self._made: Pages | None = None
        self.server = LoginServer(self.portal, lambda encrypted: self._pages().create(encrypted))
        self.back_channel = BackChannel(self.portal, socket, api) if socket else None
        self._tidying = Seldom(TIDY)
        self._tasks: list[asyncio.Task[None]] = []

    def link(self, client: Client, url: str | None) -> str:
        """The login URL for `client`, who asked for `url`, with its state."""
        state = self.portal.states.link(client, url)
        return login_url(self._gate.policy, client.address, state)

    @property
    def signs_in_elsewhere(self) -> bool:
        """Whether `login_url` leads to others (`Theme.signs_in_elsewhere`)."""
        policy = self._gate.policy
        return policy.login_server is not None and self._pages().signs_in_elsewhere(policy)

    def _pages(self) -> "Pages":
        """The pages, imported when a policy asks for them: they need the extra `login`."""
        if self._made is None:
            from capport.service.login_pages import LoginPages

            self._made = LoginPages(self.portal)
        return self._made

    def sign(self, asks: Peer) -> str:
        """The value of `asking.HEADER` on a request to the login server that `asks` made.

        The addon takes the field out of what every client sends, wherever it goes, and puts this in
        where it passes a request on to one of `policy.login_places`.
        """
        return sign_client(asks, self.portal.records.secret, self._gate.now())

    def is_at(self, place: Place | None) -> bool:
        """Whether `place` is this login server, or a proxy in front of it.

        With `return.pem`, another login server signs clients in, and `login_url` points to it.
        """
        policy = self._gate.policy
        if policy.login_server is None:
            return False
        if place in policy.login_server.listen:
            return True
        return place in policy.login_places and not self.signs_in_elsewhere

    def connected(self, here: End, there: End, client: Peer) -> None:
        """The proxy has connected from `here` to `there` on behalf of `client`.

        If that is this login server, it sees only the proxy at the other end, and nothing can be
        added to a request that is in a tunnel.
        """
        address = parse_address(there[0])
        for place in self.server.places:
            if place.port == there[1] and (place.host == address or is_own(address)):
                self.portal.vouched.connected(here, client)

    def disconnected(self, here: End) -> None:
        """A connection of the proxy's from `here` has ended."""
        self.portal.vouched.hung_up(here)

    async def start(self) -> None:
        """Listens, in the running event loop. Raises OSError where the login server cannot.

        NoPlace where the API's address cannot be had; where its unix socket cannot, that is logged,
        and tried again. May be called again after an error.
        """
        try:
            await self.server.start()  # before the API: of one port for both, the API's is amiss
        finally:
            if not self._tasks:
                self._tasks.append(asyncio.create_task(self._tidy()))
                self._start_api()

    def _start_api(self) -> None:
        if self.back_channel is not None and not self._listens(self.back_channel, logger.error):
            self._tasks.append(asyncio.create_task(self._listen_later(self.back_channel)))

    async def follow(self) -> None:
        """To be called when the policy has changed. Raises OSError, as `start`."""
        await self.server.follow()

    async def stop(self) -> None:
        """Ends everything, and lets go of the records."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.server.stop()
        if self.back_channel is not None:
            await self.back_channel.stop()
        if self._made is not None:
            self._made.close()
        self.portal.close()
        self._grants.close()

    @staticmethod
    def _listens(api: BackChannel, tell: Callable[..., None]) -> bool:
        try:
            api.start()
        except NoPlace:
            raise
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                tell = logger.debug  # another of the same store's, or it is one of ours that ends
            what = "The API for a login server of your own is not there"
            tell("%s: %s: %s", what, api.path, error.strerror)
            return False
        logger.info("The API for a login server of your own listens on %s", api.where)
        return True

    async def _listen_later(self, api: BackChannel) -> None:
        said = None
        while True:
            await asyncio.sleep(AGAIN)
            try:
                if self._listens(api, logger.debug):
                    return
            except NoPlace as error:  # a stranger was quicker than we, or ours has not ended quite
                if str(error) != said:
                    logger.error("%s", said := str(error))

    async def _tidy(self) -> None:
        said = None
        while True:
            try:
                await self.portal.recorded(self._tidy_up)
                said = None
            except OSError as error:
                if str(error) != said:
                    logger.warning("%s; spent states are cleared later", said := str(error))
            await asyncio.sleep(LOOK)

    def _tidy_up(self) -> None:
        records, now = self.portal.records, self.portal.moment()
        records.look()
        if self._tidying.is_due(now.running):
            records.clear_spent(now.boot, now.running)
            records.clear_accepted()
            records.keep_time(now)


def may_be_proxy(asks: Address, asked_at: Address | None) -> bool:
    """Whether it comes from this machine: the proxy is another process, and a tunnel says nothing.

    What connects to an address of its own does so from that one, but for `connect_addr`.
    """
    return asks == asked_at or (not asks.is_loopback and is_own(asks))
