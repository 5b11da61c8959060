"""The portal's start, what changes while it runs, and its end."""

import errno
import logging
from pathlib import Path

from mitmproxy import connection, ctx, exceptions
from mitmproxy.proxy import mode_specs

from capport.core.client import Client
from capport.core.policy import Policy
from capport.events import EventLog
from capport.gate import Gate
from capport.linux import Neighbours
from capport.linux.neighbours import NetlinkNeighbours
from capport.policy import policy_file
from capport.policy.watcher import PolicyWatcher
from capport.proxy import mitmproxy_options
from capport.proxy.connections import Connections
from capport.proxy.flow_marks import Telling
from capport.proxy.internals import server
from capport.proxy.resolver import Addresses
from capport.service.service import Alongside
from capport.stores import default_store, open_store

logger = logging.getLogger(__name__)

HELD = "the client has a session, and the kernel's set lacks it: that is put right"


class Life(Telling):
    """What the hooks ask, opened, followed and closed."""

    alongside: Alongside

    def __init__(self) -> None:
        super().__init__()
        self.addresses = Addresses()
        self._watcher: PolicyWatcher | None = None
        self._running = False

    def start(self) -> None:
        """Opens everything. Raises OptionsError, PolicyError, or OSError."""
        mitmproxy_options.hold(ctx.options)
        policy, self._watcher = self._open_policy()
        events = _event_log(ctx.options.portal_events)
        url = ctx.options.portal_sessions or policy.sessions.store or default_store()
        store = open_store(url, start_closed=True)
        gate = Gate(policy, store, neighbours=_neighbours(policy), events=events)
        self.connections = Connections(gate, server.handler_of)
        self.alongside = Alongside(gate, self.addresses, url, self.connections.recheck)
        self.gate = gate
        self.started = True
        self._policy_loaded(policy)

    def configure(self, updated: set[str]) -> None:
        """A change of ours while running; mitmproxy's own options are held by `settings`."""
        if not self.started:
            return
        for name in ("portal_sessions", "portal_api"):
            if name in updated:
                raise mitmproxy_options.Unusable(f"{name} cannot be changed while the portal runs")
        if "portal_events" in updated:
            events = _event_log(ctx.options.portal_events)
            self.gate.events.close()
            self.gate.events = events
        if "portal_policy" in updated:
            try:
                policy, watcher = self._open_policy()
            except policy_file.PolicyError as error:
                raise exceptions.OptionsError(str(error)) from None
            if self._watcher:
                self._watcher.stop()
            self._watcher = watcher
            self._use(policy)
            if watcher and self._running:
                watcher.start()

    async def running(self) -> None:
        """Begins what needs the event loop. Raises OSError where that cannot be."""
        if self._running or not self.started:
            return
        self._running = True
        if self._watcher:
            self._watcher.start()
        server.prepare_listeners()
        try:
            await self.alongside.start()
        except OSError as error:
            mitmproxy_options.stop_the_start(error)

    async def done(self) -> None:
        """The end: what is due is written."""
        if self._watcher:
            self._watcher.stop()
        if self.started:
            await self.alongside.stop()
            self.gate.neighbours.close()
            self.gate.store.close()
            self.gate.events.close()

    def is_held(self, conn: connection.Client, client: Client) -> bool:
        """Whether a known client is here only because the kernel's set lacks it (`Alongside`)."""
        if not isinstance(conn.proxy_mode, mode_specs.TransparentMode):
            return False
        return self.alongside.is_held(self.peer(conn), client)

    def _open_policy(self) -> tuple[Policy, PolicyWatcher | None]:
        file = ctx.options.portal_policy
        if not file:
            return policy_file.default(), None
        path = _path("portal_policy", file)
        watcher = PolicyWatcher(path, self._use, self._policy_rejected)
        return watcher.load(), watcher

    def _use(self, policy: Policy) -> None:
        self.gate.policy = policy
        self._policy_loaded(policy)
        self.connections.recheck_all()
        if self._running:
            self.alongside.policy_changed()

    def _policy_loaded(self, policy: Policy) -> None:
        name = policy.file or "the embedded default policy"
        logger.info(f"Policy in force: {name}")
        self.event("policy", action="loaded", file=name)

    def _policy_rejected(self, error: policy_file.PolicyError) -> None:
        logger.error(f"The last good policy stays in force.\n{error}")
        self.event("policy", action="rejected", file=self.gate.policy.file, because=str(error))


def _neighbours(policy: Policy) -> Neighbours:
    """The kernel's table; on a router, of the clients' side alone."""
    return NetlinkNeighbours([policy.router.client_interface] if policy.router else None)


def _path(option: str, text: str) -> Path:
    """The path in `text`. Raises settings.Unusable for the home of somebody who has none here."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise mitmproxy_options.Unusable(
            f"{option}: {text}: there is no such home folder"
        ) from None


def _event_log(text: str | None) -> EventLog:
    """The log that `portal_events` names. Raises settings.Unusable, which says what would do."""
    path = _path("portal_events", text) if text else None
    try:
        return EventLog(path)
    except OSError as error:
        would_do = {
            errno.ENOENT: "no such folder; make it first",
            errno.EISDIR: "is a folder; name a file in it",
        }
        why = would_do.get(error.errno or 0, error.strerror or str(error))
        raise mitmproxy_options.Unusable(f"portal_events: {path}: {why}") from None
