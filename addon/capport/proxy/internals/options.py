"""Reads mitmproxy's options that no addon has declared, and sets options silently.

It relies on `OptManager.deferred`, the options that were given and that no addon has declared yet,
and on `OptManager._options`, where a value can be set without a notice to the addons.
"""

from typing import Any

from mitmproxy.options import Options


def undeclared(options: Options) -> dict[str, list[Any]]:
    """The options that were given and that no addon has declared, each with its values."""
    return {name: getattr(it, "val", [it]) for name, it in options.deferred.items()}


def set_silently(options: Options, name: str, value: object) -> None:
    """Sets an option without a notice to the addons, which a subscriber must not cause."""
    options._options[name].set(value)
