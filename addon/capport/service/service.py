"""Builds and runs the portal without its proxy: store, gate, kernel, login server and API.

The addon, `capport run` and `capport login` each have one `Service`. Only the gate decides; the
other parts follow it. If one of them fails, the gate continues to decide.
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

from capport.core.client import Address, Client, ClientId, Peer
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.reach import Machine
from capport.events import EventLog, Watched
from capport.extras import lacking
from capport.gate import Gate
from capport.lasting import cancel_all, keep, start
from capport.linux.neighbours import NetlinkNeighbours
from capport.linux.own_addresses import OWN
from capport.metrics import Metrics
from capport.policy import policy_file
from capport.policy.policy_file import PolicyError
from capport.policy.watcher import PolicyWatcher
from capport.service import login_health
from capport.service.enforcement import AT_ONCE, Enforcement, OpenConnections
from capport.service.kernel import Kernel
from capport.service.login_health import Resolver
from capport.service.login_links import needs_login_server
from capport.service.login_server import Embedded, may_be_proxy
from capport.service.noted_ports import NotedPorts
from capport.service.settings import SettingError, Settings
from capport.service.shared_state import LoginState, Shared
from capport.session_events import SessionEvents
from capport.stores import SessionStore, StoreError
from capport.stores.opening import open_store, store_url
from capport.web.context import WebContext
from capport.web.records import records_beside
from capport.web.shared_records import open_records
from capport.web.vouching import Vouched

logger = logging.getLogger(__name__)

API = "api.sock"  # the socket of the API for an external login server, beside the sessions' file
OPEN_SESSIONS = partial(open_store, start_closed=True)


class Service:
    """Opens all parts of a portal; `start` begins to serve, `stop` ends everything.

    `resolver` and `machine` are set if this process is the enforcement device. Without them this
    process has only the login server, and the proxy is another process with the same store, which
    notes its ports there. `vouched` is where workers of this process note for which clients they
    connect to the login server.
    """

    def __init__(
        self,
        settings: Settings,
        resolver: Resolver | None = None,
        *,
        machine: Machine | None = None,
        open_sessions: Callable[[str], SessionStore] = OPEN_SESSIONS,
        metrics: Metrics | None = None,
    ) -> None:
        """Raises PolicyError, SettingError or OSError, and then leaves nothing open."""
        self._settings = settings
        self._resolver = resolver
        self.vouched = Vouched()
        policy, self._watcher = self._open_policy(settings.policy)
        if resolver is None and policy.login_server is None:
            raise SettingError(f"{settings.policy} has no login_server to serve")
        self.store_url = store_url(settings.sessions, policy)
        self._noted_ports, self._ports = NotedPorts(self.store_url), frozenset[int]()
        if settings.api is not None and records_beside(self.store_url) is None:
            raise SettingError("portal_api: its tokens need a file, and :memory: has none")
        if settings.metrics is not None and (missing := lacking("metrics")) is not None:
            raise SettingError(f"portal_metrics {missing}")
        self._answering: dict[Place, Address] = {}
        self._running = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._following = asyncio.Lock()  # so that one policy at a time is followed
        self._store_fault: str | None = None
        self.login: Embedded | None = None
        self.watched = Watched()
        with ExitStack() as opened:
            self._events = _event_log(settings.events, self.watched)
            opened.callback(lambda: self._events.close())
            store = open_sessions(self.store_url)
            opened.callback(store.close)
            neighbours = self._neighbours = NetlinkNeighbours(policy.client_interfaces)
            opened.callback(neighbours.close)
            self.gate = Gate(
                policy,
                store,
                machine=machine or Machine(OWN, self._noted_ports),
                neighbours=neighbours,
                events=self._events,
                state=self._state,
                answering=self._answering,
                carry_out=lambda client: self._kernel.carry_out(client),
                drop=self.drop,
                metrics=metrics,
            )
            self._kernel = Kernel(self.gate, self._fault)
            session_events = SessionEvents(store, lambda: self._events, self.gate.now)
            self._enforcement = Enforcement(session_events)
            self._open_login_server()
            self._opened = opened.pop_all()
        self._policy_loaded()

    async def start(self, connections: OpenConnections | None = None) -> None:
        """Starts to serve. Raises OSError if the login server or the API cannot listen."""
        self._running, self._enforcement.connections = True, connections
        self._show_metrics()
        if self._watcher:
            self._watcher.start()
        async with self._following:
            if self._resolver is None:
                await self._listen()
                return
            soon = asyncio.get_running_loop().call_soon_threadsafe

            def changed(client: ClientId) -> None:
                # In this order, a revoked client is removed from the kernel's sets, its connections
                # here are cut, and an event is written.
                self._kernel.changed(client)
                soon(self._bind, client)
                soon(self._enforcement.changed, client)

            # The store calls on its own thread: the kernel's sets do not wait for the event loop.
            await asyncio.to_thread(self.gate.store.watch, changed)
            self.gate.neighbours.watch(self._mac_changed)
            for some in batched(self.gate.store.sessions(), AT_ONCE):
                for session in some:
                    self._enforcement.found(session)
                    self._bind(session.client)
                await asyncio.sleep(0)
            if connections:
                connections.recheck_all()  # mitmproxy listens already: sessions may have ended
            await self._listen()
            await self._note_ports()
            follow_login = partial(
                login_health.follow,
                lambda: self.gate.policy,
                self._answering,
                self._resolver,
                self._signs_in_elsewhere,
            )
            keep("The check whether the login server answers", follow_login, self._tasks)
            follow_sessions = partial(self._enforcement.follow, self._look)
            keep("The check which sessions are over", follow_sessions, self._tasks)
            await self._kernel.follow()

    async def stop(self) -> None:
        """Ends everything, and writes what is pending."""
        if self._watcher:
            self._watcher.stop()
        await cancel_all(self._tasks)
        await self._kernel.stop()
        if self.login:
            await self.login.stop()
        self._opened.close()

    def follow_policy_file(self, path: Path | None) -> None:
        """Follows another policy file from now on. Raises PolicyError, and keeps the old one."""
        policy, watcher = self._open_policy(path)
        if self._watcher:
            self._watcher.stop()
        self._watcher = watcher
        self._use(policy)
        if watcher and self._running:
            watcher.start()

    def write_events_to(self, path: Path | None) -> asyncio.Task[object] | None:
        """Writes events to another file from now on. Raises SettingError, and keeps the old one.

        Returns the task that writes the last events to the old file, if the portal runs.
        """
        before, events = self._events, _event_log(path, self.watched)
        self._events = self.gate.events = events
        if self._running:
            # A slow disk must not hold up the event loop.
            return start(asyncio.to_thread(before.close), self._tasks)
        before.close()
        return None

    def watch(self, client: ClientId) -> None:
        """Writes each request and handshake of a client as an event of its own from now on.

        Raises ValueError like `Watched.add`.
        """
        self.watched.add(client)
        forwards = self.gate.policy.router is not None
        self._events.write("watched", client, kernel_forwards=forwards)

    def unwatch(self, client: ClientId) -> None:
        """Ends what `watch` began."""
        self.watched.discard(client)
        self._events.write("unwatched", client)

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Whether the kernel holds a client that has a session (`Kernel.is_held`)."""
        return self._kernel.is_held(peer, client)

    def drop(self, client: Client, seconds: float) -> None:
        """Ends the connections of a client that was refused too often, and drops new ones."""
        if self._enforcement.connections:
            self._enforcement.connections.drop(client)
        if self._running:
            start(self._kernel.drop(client, seconds), self._tasks)

    def shared(self) -> Shared:
        """What a proxy in another process decides by."""
        policy, state = self.gate.policy, None
        if self.login is not None:
            state = LoginState(
                self.login.context.records.secret,
                self.login.listener.places,
                self.login.signs_in_elsewhere,
                makes_links=needs_login_server(policy),
            )
        return Shared(policy, state, dict(self._answering))

    @property
    def listens_at(self) -> list[Place]:
        """Where the login server listens."""
        return list(self.login.listener.places) if self.login else []

    # --- metrics ---------------------------------------------------------------------------------

    def _show_metrics(self) -> None:
        place = self._settings.metrics
        if place is None:
            return
        from capport.service.metrics_page import metrics_page  # needs an extra

        page = metrics_page(place, self.gate, self._health, self._enforcement.unknown)
        try:
            self._opened.enter_context(page)
        except OSError as error:
            raise SettingError(f"portal_metrics: {place}: {error.strerror}") from None

    def _health(self) -> dict[str, bool]:
        parts = {"store": self.gate.store.fault is None, "neighbours": self._neighbours.works}
        return parts | ({"kernel": self._kernel.works} if self.gate.policy.router else {})

    # --- the policy ------------------------------------------------------------------------------

    def _open_policy(self, path: Path | None) -> tuple[Policy, PolicyWatcher | None]:
        if path is None:
            return policy_file.default(), None
        watcher = PolicyWatcher(path, self._use, self._policy_rejected)
        return watcher.load(), watcher

    def _use(self, policy: Policy) -> None:
        self.gate.policy = policy
        self._neighbours.use(policy.client_interfaces)
        if self._enforcement.connections:
            self._enforcement.connections.recheck_all()
        if self._running:
            start(self._follow_policy(), self._tasks)
        self._policy_loaded()

    def _policy_loaded(self) -> None:
        name = self.gate.policy.file or "the embedded default policy"
        logger.info(f"Policy in force: {name}")
        self._events.write("policy", action="loaded", file=name)

    def _policy_rejected(self, error: PolicyError) -> None:
        logger.error(f"The last good policy stays in force.\n{error}")
        file = self.gate.policy.file
        self._events.write("policy", action="rejected", file=file, because=str(error))

    async def _follow_policy(self) -> None:
        async with self._following:
            try:
                self._open_login_server()
                await self._listen()
            except OSError as error:
                logger.error(f"Cannot apply the policy to the login server: {error}")
            if self._resolver is not None:
                await self._kernel.follow()

    # --- the login server ------------------------------------------------------------------------

    def _open_login_server(self) -> None:
        """Makes the login server and the API, if there is none yet.

        It does so even if the policy has no login server, because an external one may call the API.
        """
        if self.login is not None:
            return
        needed, alone = needs_login_server(self.gate.policy), self._resolver is None
        try:
            records = records_beside(self.store_url)
            if needed or records is not None:
                context = WebContext(self.gate, open_records(self.store_url), vouched=self.vouched)
                if alone:
                    context.may_be_proxy = may_be_proxy
                self.login = Embedded(
                    context,
                    socket=self._settings.socket if alone else records and records.with_name(API),
                    api=self._settings.api,
                )
        except OSError as error:
            if needed:
                raise
            logger.error(f"The API for a login server of your own cannot start: {error}")

    async def _listen(self) -> None:
        if self.login is None:
            return
        try:
            await self.login.start()
        except OSError as error:
            if self._resolver is None or error.errno != errno.EADDRINUSE:
                raise
            logger.warning(
                f"Another process has the login server's address: {error.strerror}. If it is not"
                " `capport login`, stop it and start the portal again"
            )

    def _state(self, client: Client, url: str | None) -> str | None:
        return self.login.state(client, url) if self.login else None

    def _signs_in_elsewhere(self) -> bool:
        return self.login is not None and self.login.signs_in_elsewhere

    # --- sessions --------------------------------------------------------------------------------

    def _mac_changed(self, address: Address) -> None:
        self._bind(ClientId(str(address)))
        self._enforcement.recheck(ClientId(str(address)))

    def _bind(self, client: ClientId) -> None:
        """Files a session of an address under its MAC, once that is known (`Gate.bind`)."""

        async def bind() -> None:
            try:
                await asyncio.to_thread(self.gate.bind, client)
            except StoreError as error:
                logger.error(f"The session of {client} is not filed under its MAC: {error}")

        if self.gate.to_bind(client):
            start(bind(), self._tasks)

    def _look(self) -> None:
        """Writes an event when the store can make nothing durable any more; notes new ports."""
        before, self._store_fault = self._store_fault, self.gate.store.fault
        if self._store_fault is not None and before is None:
            self._events.write("fault", what=self._store_fault)
        ports = frozenset(self.gate.machine.ports)
        if ports and ports != self._ports:  # at the end there are none, and the last ones stay
            start(self._note_ports(), self._tasks)

    async def _note_ports(self) -> None:
        self._ports = ports = frozenset(self.gate.machine.ports)
        try:
            await asyncio.to_thread(self._noted_ports.note, ports)
        except OSError as error:
            logger.warning(f"capport explain does not learn the proxy's ports: {error}")

    def _fault(self, what: str) -> None:
        logger.error(what)
        self._events.write("fault", what=what)


def _event_log(path: Path | None, watched: Watched) -> EventLog:
    """The log in the file at `path`. Raises SettingError that says what to do."""
    try:
        return EventLog(path, watched)
    except OSError as error:
        remedies = {
            errno.ENOENT: "no such folder; make it first",
            errno.EISDIR: "is a folder; name a file in it",
        }
        why = remedies.get(error.errno or 0, error.strerror or str(error))
        raise SettingError(f"portal_events: {path}: {why}") from None
