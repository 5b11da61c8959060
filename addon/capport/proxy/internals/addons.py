"""Puts the portal's addons in their place in mitmproxy's chain, and the guard behind all hooks.

It relies on `ProxyConnectionHandler.handle_hook`, which calls the manager's `handle_lifecycle` for
every hook of traffic, and on the manager's `chain`, whose order is the order of the calls.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import AddonManager
from mitmproxy.hooks import Hook
from mitmproxy.proxy.server_hooks import ServerConnectErrorHook


def after_each_hook(manager: AddonManager, then: Callable[[Hook], None]) -> None:
    """Calls `then` after the addons' hooks, also if an addon ended the chain (AddonHalt)."""
    hooks = manager.handle_lifecycle

    async def hooks_and_then(event: Hook) -> None:
        await hooks(event)
        then(event)

    manager.handle_lifecycle = hooks_and_then  # type: ignore[method-assign]


def before_failures(
    manager: AddonManager, turn: Callable[[str], Coroutine[None, None, None]]
) -> None:
    """Awaits `turn` of a client's address before it is reported that a connection has failed.

    Hundreds may fail at once, and mitmproxy then answers them all.
    """
    hooks = manager.handle_lifecycle

    async def turn_and_hooks(event: Hook) -> None:
        try:
            if isinstance(event, ServerConnectErrorHook):
                await turn(event.data.client.peername[0])
        finally:
            await hooks(event)

    manager.handle_lifecycle = turn_and_hooks  # type: ignore[method-assign]


async def fire(hook: Hook) -> None:
    """Calls the addons' hooks, as mitmproxy does for its own connections."""
    await ctx.master.addons.handle_lifecycle(hook)


def put_where_scripts_stand(addon: object) -> None:
    """Adds `addon` behind the script loader, before mitmproxy's addons for layers and TLS."""
    manager: Any = ctx.master.addons
    manager.register(addon)
    names = [getattr(it, "name", type(it).__name__.lower()) for it in manager.chain]
    manager.chain.insert(names.index("scriptloader") + 1, addon)
