"""The guard behind the gate: no connection to an origin that the gate has not approved.

It holds nothing that can be reloaded, and knows only one answer. Should the gate's own hook not
run, raise, or be talked out of it by another addon, the connection is not opened.
"""

from collections.abc import Awaitable, Callable

from mitmproxy import connection
from mitmproxy.addonmanager import Loader
from mitmproxy.hooks import Hook
from mitmproxy.proxy.server_hooks import ServerConnectHook, ServerConnectionHookData

DENIED = "portal: this connection was not approved"


class Guard:
    """Denies every connection that was not approved by exactly the address it is opened to.

    It is no hook but stands behind all of them: an addon that comes later in the chain could change
    the address after a hook, and one that comes earlier could end the chain (`AddonHalt`).
    """

    name = "capport-guard"
    _hooks: Callable[[Hook], Awaitable[None]]

    def __init__(self) -> None:
        self._approved: dict[str, connection.Address | None] = {}

    def load(self, loader: Loader) -> None:
        """Takes its place. mitmproxy calls all its hooks for traffic through `handle_lifecycle`."""
        manager = loader.master.addons
        self._hooks = manager.handle_lifecycle
        manager.handle_lifecycle = self._after_hooks

    def approve(self, server: connection.Server) -> None:
        """`server` may be connected to, once, at the address it has now."""
        self._approved[server.id] = server.address

    async def _after_hooks(self, event: Hook) -> None:
        await self._hooks(event)
        if isinstance(event, ServerConnectHook):
            self._decide(event.data)

    def _decide(self, data: ServerConnectionHookData) -> None:
        approved = self._approved.pop(data.server.id, None)
        if approved is None or approved != data.server.address:
            data.server.error = data.server.error or DENIED
