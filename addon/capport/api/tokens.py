"""Makes and hashes the bearer tokens of the API for the operator's own login server."""

import hashlib
import secrets


def new_token() -> str:
    """A new bearer token: show it once, and store only its digest."""
    return f"capport_{secrets.token_urlsafe(32)}"


def token_digest(token: str) -> bytes:
    """The hash under which a token is stored. 256 random bits need no slow hash."""
    return hashlib.sha256(b"token\0" + token.encode("utf-8", "surrogatepass")).digest()
