"""Puts an app behind a captive portal in its own tests: `Portal`, and a pytest plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capport.testing.portal import Portal, PortalError

__all__ = ["Portal", "PortalError"]


def __getattr__(name: str) -> Any:
    """Imports the portal when it is asked for: pytest loads the plugin below in every run."""
    if name not in __all__:
        raise AttributeError(name)
    from capport.testing import portal

    return getattr(portal, name)
