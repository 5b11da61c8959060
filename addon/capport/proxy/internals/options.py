"""What mitmproxy keeps of its options besides their values.

It relies on `OptManager.deferred`, the options that were given and that no addon has declared yet,
and on `OptManager._options`, where a value can be set without a notice to anybody.
"""

from typing import Any

from mitmproxy.options import Options


def undeclared(options: Options) -> dict[str, list[Any]]:
    """The options that were given and that nobody has declared, each with its values."""
    return {name: getattr(it, "val", [it]) for name, it in options.deferred.items()}


def set_silently(options: Options, name: str, value: object) -> None:
    """Sets an option, and notifies no addon. For subscribers, which may not cause a notice."""
    options._options[name].set(value)
