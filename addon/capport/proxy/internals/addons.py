"""The portal's place among mitmproxy's addons, and behind their hooks.

It relies on `ProxyConnectionHandler.handle_hook`, which calls all hooks for traffic through the
manager's `handle_lifecycle`, and on the manager's `chain`, in which hooks are called in order.
"""

from collections.abc import Callable
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import AddonManager
from mitmproxy.hooks import Hook


def after_each_hook(manager: AddonManager, then: Callable[[Hook], None]) -> None:
    """Calls `then` after the addons, also for a hook that one of them has ended (AddonHalt)."""
    hooks = manager.handle_lifecycle

    async def hooks_and_then(event: Hook) -> None:
        await hooks(event)
        then(event)

    manager.handle_lifecycle = hooks_and_then  # type: ignore[method-assign]


def put_where_scripts_stand(addon: object) -> None:
    """Adds `addon` before those of mitmproxy's addons that choose layers and TLS."""
    manager: Any = ctx.master.addons
    manager.register(addon)
    names = [getattr(it, "name", type(it).__name__.lower()) for it in manager.chain]
    manager.chain.insert(names.index("scriptloader") + 1, addon)
