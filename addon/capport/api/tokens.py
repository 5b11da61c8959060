"""Bearer tokens of the API for login servers of others: made, and told from one another."""

import hashlib
import secrets


def new_token() -> str:
    """A bearer token, to be shown once and filed by its digest."""
    return f"capport_{secrets.token_urlsafe(32)}"


def token_digest(token: str) -> bytes:
    """What a token is filed under: 256 random bits need no slow hash."""
    return hashlib.sha256(b"token\0" + token.encode("utf-8", "surrogatepass")).digest()
