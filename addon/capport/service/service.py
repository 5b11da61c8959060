"""What runs beside the hooks, in the same process: the login server, the kernel's set, the ledger.

Each of them follows the gate and none of them decides: where one fails, the gate goes on as it is.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack
from typing import Any, cast

from mitmproxy import connection, ctx

from capport.core.client import Client, ClientId, Peer, parse_address, parts_of
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.session import Instant
from capport.gate import Gate
from capport.linux.libnftables import RulesError
from capport.linux.own_addresses import is_own
from capport.policy import values
from capport.proxy import mitmproxy_options
from capport.proxy.resolver import Addresses
from capport.router.garden_addresses import GardenFollower
from capport.router.known_clients import KnownSet, Neighbourhood
from capport.router.membership import is_let_through
from capport.router.restorer import RulesKeeper
from capport.service import login_health
from capport.service.login_server import Embedded
from capport.session_events import Ledger
from capport.web.records import records_beside

logger = logging.getLogger(__name__)

CARRIED_OUT = 1.0  # seconds in which the kernel has what was granted, or has ended
TICK = 0.1  # seconds between two looks at which sessions time has ended


class Alongside:
    """Starts, follows and ends it all. `recheck` is called with whom something has changed for."""

    def __init__(
        self,
        gate: Gate,
        addresses: Addresses,
        store_url: str,
        recheck: Callable[[Iterable[ClientId]], None],
    ) -> None:
        """Opens the login server's records. Raises OSError, where the policy needs them.

        settings.Unusable for a `portal_api` that cannot be.
        """
        self._gate = gate
        self._addresses = addresses
        self._store_url = store_url
        self._api = _api(store_url)
        self._recheck = recheck
        self._ledger = Ledger(gate.store, lambda: gate.events, gate.now)
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Lock()  # by one policy at a time
        self._known: KnownSet | None = None
        self._held: dict[ClientId, Instant] = {}  # whom the kernel lacks, and until when: in order
        self._garden: GardenFollower | None = None
        self._kernel = ExitStack()  # closes those that follow into the kernel
        self._embedded: Embedded | None = None
        self._serving = False
        self._open_login_server()

    async def start(self) -> None:
        """Begins. Raises OSError where the login server cannot listen, or the API's address."""
        self._gate.store.watch(self._session_changed)
        self._gate.neighbours.watch(lambda address: self._recheck([ClientId(str(address))]))
        async with self._moving:
            if self._embedded:
                await self._serve(self._embedded)
            self._spawn(login_health.follow(self._gate, self._addresses, self._signs_in_elsewhere))
            self._spawn(self._end_sessions())
            await self._follow_kernel()

    def policy_changed(self) -> None:
        """The gate has another policy."""
        self._spawn(self._follow_policy())

    async def stop(self) -> None:
        """Ends it all."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.to_thread(self._kernel.close)
        if self._embedded:
            await self._embedded.stop()

    # --- the kernel's set ------------------------------------------------------------------------

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Whether the kernel holds what a client sends that has a session: a fault.

        The rules are in force, and their set lacks what was put into it. That is reported, and put
        right within the second for which the client is held here too.
        """
        now, session = self._gate.now(), self._gate.session(client)
        if self._known is None or session is None or not self._known.has(client):
            return False  # or it is new where it is, and about to be put in
        if now < session.granted + CARRIED_OUT or now > session.ends - CARRIED_OUT:
            return False
        while self._held and next(iter(self._held.values())) <= now:
            del self._held[next(iter(self._held))]
        if session.client in self._held:
            return True
        sender = client.mac or peer.frame
        if is_let_through(client.address, sender):
            return False
        self._held[session.client] = now + CARRIED_OUT
        self._known.again(session.client)
        what = "the kernel's set lacks a client that has a session; it is put in again"
        self._gate.events.write("fault", client, what=what)
        return True

    # --- the login server ------------------------------------------------------------------------

    def is_login_server(self, place: Place | None) -> bool:
        """Whether `place` is the login server in this process, or a proxy in front of it.

        Where others' word lets on (`return.pem`), `login_url` leads to them.
        """
        policy = self._gate.policy
        if self._embedded is None or policy.login_server is None:
            return False
        if place in policy.login_server.listen:
            return True
        return place in policy.login_places and not self._signs_in_elsewhere()

    def _signs_in_elsewhere(self) -> bool:
        return self._embedded is not None and self._embedded.signs_in_elsewhere

    def sign(self, asks: Peer) -> str | None:
        """What the login server is told of who asks, in a field that only we can write."""
        return self._embedded.sign(asks) if self._embedded else None

    def connected(self, server: connection.Server, client: Peer) -> None:
        """Tells the login server for whom a connection of ours to it is.

        It sees only us at the other end, and in a tunnel nothing can be added to a request.
        """
        if self._embedded and server.sockname and server.peername:
            here = parse_address(server.peername[0])
            for place in self._embedded.server.places:
                if place.port == server.peername[1] and (place.host == here or is_own(here)):
                    self._embedded.portal.vouched.connected(server.sockname, client)

    def disconnected(self, server: connection.Server) -> None:
        """A connection of ours has ended."""
        if self._embedded and server.sockname:
            self._embedded.portal.vouched.hung_up(server.sockname)

    def _open_login_server(self) -> None:
        """Also where the policy has none: whose own it is asks our API, beside the sessions."""
        needed = needs_login_server(self._gate.policy)
        if self._embedded is None:
            try:
                records = records_beside(self._store_url)
                if needed or records is not None:
                    socket = records and records.with_name("api.sock")
                    self._embedded = Embedded(self._gate, records, socket=socket, api=self._api)
            except OSError as error:
                if needed:
                    raise
                logger.error(f"The API for a login server of your own is not there: {error}")
        self._gate.link = self._embedded.link if self._embedded and needed else None

    async def _serve(self, embedded: Embedded) -> None:
        try:
            await embedded.start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            logger.warning(
                f"The login server is not ours: {error.strerror};"
                " if that is not capport login, end it and start again"
            )
        else:
            self._serving = True

    # --- following -------------------------------------------------------------------------------

    def _session_changed(self, client: ClientId) -> None:
        mac, address = parts_of(client)
        both = [ClientId(str(part)) for part in (mac, address) if part is not None]
        self._recheck({client, *both})
        self._ledger.changed(client)

    async def _end_sessions(self) -> None:
        fault = None
        while True:
            await asyncio.sleep(TICK)
            try:
                if over := self._ledger.ended():
                    self._recheck(over)
                before, fault = fault, self._gate.store.fault
                if fault is not None and before is None:
                    self._gate.events.write("fault", what=fault)
            except Exception:  # the edge: a loop that ended would leave open what time has ended
                logger.exception("What sessions that are over had open may still be open")

    async def _follow_policy(self) -> None:
        async with self._moving:
            await self._move()

    async def _move(self) -> None:
        try:
            self._open_login_server()
            if self._embedded and self._serving:
                await self._embedded.follow()
            elif self._embedded:
                await self._serve(self._embedded)
        except OSError as error:
            logger.error(f"The login server does not follow the policy: {error}")
        if self._known:
            try:
                await asyncio.to_thread(self._known.reapply)
                if self._garden:
                    self._garden.again()
            except (OSError, ValueError) as error:
                logger.error(f"The router's rules do not follow the policy: {error}")
        else:
            await self._follow_kernel()

    async def _follow_kernel(self) -> None:
        """Keeps the kernel's set of known clients, where the policy has a router."""
        if self._gate.policy.router is None or self._known:
            return
        gate = self._gate
        try:
            neighbours = cast(Neighbourhood, gate.neighbours)
            known = KnownSet(
                lambda: gate.policy, gate.store, neighbours, now=gate.now, told=self._fault
            )
            self._kernel.callback(known.close)
            garden = GardenFollower(lambda: gate.policy)
            self._kernel.callback(garden.close)
            keeper = RulesKeeper(known, self._fault, garden.again)
            self._kernel.callback(keeper.close)
            for follower in (known, garden, keeper):
                await asyncio.to_thread(follower.start)
        except OSError as error:
            logger.error(f"The router's set of known clients cannot be kept: {error}")
            await asyncio.to_thread(self._kernel.close)
            return
        self._known, self._garden = known, garden
        gate.in_force = self._carried_out

    def _fault(self, what: str) -> None:
        logger.error(what)
        self._gate.events.write("fault", what=what)

    def _carried_out(self, client: ClientId) -> None:
        assert self._known
        try:
            self._known.update([client])
        except RulesError as error:
            logger.error(f"{client}: the router's rules do not follow: {error}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def needs_login_server(policy: Policy) -> bool:
    """Whether the policy's 511 links to us, or with a state that we must mint."""
    return policy.login_server is not None or "{state}" in policy.login_url


_LOCAL = "127.0.0.1:8512 would do"


def _api(store_url: str) -> Place | None:
    """Where the API for a login server of the operator's own listens besides its unix socket."""
    text = ctx.options.portal_api
    if text is None:
        return None
    try:
        place = values.listen(text)
    except ValueError as error:
        raise mitmproxy_options.Unusable(
            f"portal_api: {error}; here on loopback: {_LOCAL}"
        ) from None
    if isinstance(place.host, str) or not place.host.is_loopback:
        why = f"is not on loopback, and clients could reach it: {_LOCAL}"
        raise mitmproxy_options.Unusable(f"portal_api: {place} {why}")
    if records_beside(store_url) is None:
        raise mitmproxy_options.Unusable(
            "portal_api: its tokens are in a file, and :memory: has none"
        )
    return place
