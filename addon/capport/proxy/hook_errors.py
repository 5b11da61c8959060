"""The edge: a hook that raises has denied, for mitmproxy logs what it raised and goes on."""

import functools
from collections.abc import Callable
from typing import Protocol

from mitmproxy import exceptions


class Keeper(Protocol):
    """Whose hooks they are."""

    def fault(self, where: str) -> None:
        """Says that something was denied by a fault of ours."""


def closed[Self: Keeper, Data](
    deny: Callable[[Self, Data], None],
) -> Callable[[Callable[[Self, Data], None]], Callable[[Self, Data], None]]:
    """A hook that denies by `deny` whatever it raises over: here closed has a meaning."""

    def wrap(hook: Callable[[Self, Data], None]) -> Callable[[Self, Data], None]:
        @functools.wraps(hook)
        def wrapped(self: Self, data: Data) -> None:
            try:
                hook(self, data)
            except exceptions.AddonHalt:
                raise
            except Exception:
                deny(self, data)
                self.fault(hook.__name__)

        return wrapped

    return wrap
