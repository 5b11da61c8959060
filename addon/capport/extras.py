"""The extras that pyproject.toml names: packages that only some policies and commands need."""

from importlib.util import find_spec

EXTRAS = {
    "login": ("argon2", "jwt", "markdown_it"),
    "idna": ("idna",),
    "metrics": ("prometheus_client",),
    "redis": ("redis",),
    "testing": ("pytest",),
    "fast": ("uvloop",),
}
"""The modules of each extra. The rest needs only mitmproxy, PyYAML and what they depend on."""


def lacking(extra: str) -> str | None:
    """Says which modules of `extra` are missing, and how to install them; None if none is."""
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    names = " and ".join(missing)
    return f"needs {names}, not installed here: pip install 'capport[{extra}]'" if missing else None
