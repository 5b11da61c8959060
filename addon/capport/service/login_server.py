"""The embedded login server and its API, with everything that the proxy needs of them."""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from capport.api.back_channel import BackChannel, NoPlace
from capport.core.client import Address, Client, Peer, parse_address
from capport.core.place import Place
from capport.core.policy import Policy
from capport.lasting import cancel_all, keep
from capport.linux.own_addresses import HERE
from capport.log_limits import Seldom
from capport.service.login_links import End, is_among, leads_to_login, needs_login_server
from capport.stores import Book
from capport.web.context import WebContext
from capport.web.login_listener import App, LoginListener
from capport.web.vouching import sign_client
from capport.web.work_thread import WorkThread

logger = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two checks whether the records' file has been replaced."""

LASTING = 3
"""How many checks in a row must fail before it is reported that the routers share no records.

Some fail for a second or two whenever a router or Redis starts."""

TIDY = 60.0
"""Seconds between two times that expired records are cleared and the time is recorded."""

AGAIN = 1.0
"""Seconds between two attempts to listen with the API while another process listens.

Of several processes with one store, one has the API. When it ends, another takes over."""


class Pages(Protocol):
    """What `service/login_pages.py` makes; that module is imported only if the policy needs it."""

    def create(self, encrypted: bool) -> App:
        """The application that answers on the login server's port."""

    def signs_in_elsewhere(self, policy: Policy) -> bool:
        """Whether an external login server signs clients in (`Theme.signs_in_elsewhere`)."""

    def close(self) -> None:
        """Ends the thread of the pages."""


class Embedded:
    """The login server, the API for an external login server, and the links that lead to it.

    `stop` closes `context`. `socket` is where the API listens, and `api` where it also listens with
    tokens, on loopback. In a worker, the proxy uses `worker_service.WorkerLogin` instead.
    """

    def __init__(
        self, context: WebContext, *, socket: Path | None = None, api: Place | None = None
    ) -> None:
        self.context, self._gate = context, context.gate
        self._made: Pages | None = None
        self.listener = LoginListener(context, lambda encrypted: self._pages().create(encrypted))
        self.back_channel = BackChannel(context, socket, api) if socket else None
        self._tidying = Seldom(TIDY)
        self._tasks: set[asyncio.Task[Any]] = set()

    def state(self, client: Client, url: str | None) -> str | None:
        """The state in the login URL of `client`, which asked for `url`; None if it has none."""
        is_needed = needs_login_server(self._gate.policy)
        return self.context.states.link(client, url) if is_needed else None

    @property
    def signs_in_elsewhere(self) -> bool:
        """Whether an external login server signs clients in, although the policy has our own."""
        policy = self._gate.policy
        return policy.login_server is not None and self._pages().signs_in_elsewhere(policy)

    def _pages(self) -> "Pages":
        """The pages; they need the extra `login`, so they are imported only if the policy does."""
        if self._made is None:
            from capport.service.login_pages import LoginPages

            self._made = LoginPages(self.context)
        return self._made

    def sign(self, asks: Peer) -> str:
        """The value of the field `vouching.HEADER` for a request of `asks` to the login server.

        The addon removes the field from every request of a client, and adds its own value to each
        request that it passes on to one of `policy.login_places`.
        """
        return sign_client(asks, self.context.records.secret, self._gate.now())

    def is_at(self, place: Place | None) -> bool:
        """Whether `place` is this login server, or a proxy in front of it."""
        return leads_to_login(self._gate.policy, place, lambda: self.signs_in_elsewhere)

    def connected(self, here: End, there: End, client: Peer) -> None:
        """Notes that the proxy has connected from `here` to `there` on behalf of `client`.

        In a tunnel, the addon cannot add a field to the requests, and the login server sees only
        the proxy at the other end. So the client is noted here, if `there` is the login server.
        """
        if is_among(self.listener.places, there[1], parse_address(there[0])):
            self.context.vouched.connected(here, client)

    def disconnected(self, here: End) -> None:
        """Notes that the proxy's connection from `here` has ended."""
        self.context.vouched.hung_up(here)

    async def start(self) -> None:
        """Listens, in the running event loop, as the policy says. Raises OSError if it cannot.

        Call it again whenever the policy has changed. The API starts at the first call: raises
        NoPlace if it cannot listen at `api`. If it cannot listen at `socket`, that is logged, and
        tried again later.
        """
        try:
            await self.listener.follow()  # first: if both have one port, the error names the API's
        finally:
            if not self._tasks:
                keep("Clearing spent states", self._tidy, self._tasks)
                if (book := self.context.records.book) is not None:
                    keep("Sharing records", partial(self._share, book), self._tasks)
                self._start_api()

    def _start_api(self) -> None:
        if self.back_channel is not None and not self._listens(self.back_channel, logger.error):
            listen = partial(self._listen_later, self.back_channel)
            keep("Listening with the API", listen, self._tasks)

    async def stop(self) -> None:
        """Stops everything, and closes the records."""
        await cancel_all(self._tasks)
        await self.listener.stop()
        if self.back_channel is not None:
            await self.back_channel.stop()
        if self._made is not None:
            self._made.close()
        self.context.close()

    @staticmethod
    def _listens(api: BackChannel, log: Callable[..., None]) -> bool:
        """Makes the API listen, if it can; otherwise passes the reason to `log`."""
        try:
            api.start()
        except NoPlace:
            raise
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                log = logger.debug  # another process with this store has it, or our old one still
            what = "The API for a login server of your own cannot listen"
            log(f"{what}: {api.path}: {error.strerror}")
            return False
        logger.info(f"The API for a login server of your own listens on {api.where}")
        return True

    async def _listen_later(self, api: BackChannel) -> None:
        logged = None
        while True:
            await asyncio.sleep(AGAIN)
            try:
                if self._listens(api, logger.debug):
                    return
            except NoPlace as error:  # another program has the address, or our old process still
                if str(error) != logged:
                    logged = str(error)
                    logger.error(logged)

    async def _tidy(self) -> None:
        logged = None
        while True:
            try:
                await self.context.recorded(self._tidy_up)
                logged = None
            except OSError as error:
                if str(error) != logged:
                    logged = str(error)
                    logger.warning(f"{logged}; spent states are cleared later")
            await asyncio.sleep(LOOK)

    async def _share(self, book: Book) -> None:
        """Keeps what the routers share up to date, on a thread that may wait for the network."""
        logged, lately = None, deque[str | None](maxlen=LASTING)
        with closing(WorkThread("portal-shared")) as network:
            while True:
                try:
                    await network.do(book.look)
                    fault = book.fault
                except Exception as error:  # the edge: without this task nothing is shared
                    fault = f"looking at them failed: {error!r}"
                    if fault not in lately:
                        logger.exception("Sharing the records failed; it continues")
                lately.append(fault)
                if lately.count(fault) == LASTING and fault != logged:
                    logged = fault
                    if fault is None:
                        logger.info("Vouchers and single-use states are accepted again")
                    else:
                        refused = f"Vouchers and single-use states are refused: {fault}"
                        logger.warning(refused)
                        self._gate.events.write("fault", what=refused)
                await asyncio.sleep(LOOK)

    def _tidy_up(self) -> None:
        records, now = self.context.records, self.context.moment()
        records.look()
        if self._tidying.is_due(now.running):
            records.clear_spent(now.boot, now.running)
            records.clear_accepted()
            records.keep_time(now)


def may_be_proxy(asks: Address, asked_at: Address | None) -> bool:
    """Whether a connection from `asks` to `asked_at` comes from this machine, so from the proxy.

    The proxy is another process, and adds nothing to a request in a tunnel. A machine that connects
    to one of its own addresses uses that address on both ends, unless mitmproxy's option
    `connect_addr` says otherwise.
    """
    return asks == asked_at or (not asks.is_loopback and HERE.is_own(asks))
