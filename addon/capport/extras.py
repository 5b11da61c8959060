"""The extras that pyproject.toml names: packages that only some policies and commands need."""

from importlib.util import find_spec

EXTRAS = {"login": ("argon2", "jwt", "markdown_it"), "idna": ("idna",)}
"""What is imported of each. mitmproxy and PyYAML, and what they bring, are enough for the rest."""


def lacking(extra: str) -> str | None:
    """Which modules of `extra` are not installed, and what would bring them; None if they are."""
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    names = " and ".join(missing)
    return f"needs {names}, not installed here: pip install 'capport[{extra}]'" if missing else None
