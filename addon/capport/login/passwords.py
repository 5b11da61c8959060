"""Users' names, and passwords (argon2id): checking an unknown user's takes as long as any other."""

import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MAX_NAME = 64
MAX_PASSWORD = 256
"""Characters. Longer ones are refused without hashing."""

# OWASP's smallest recommended setting (Password Storage Cheat Sheet), because RFC 9106's 64 MiB are
# too much for a router. We hash one password at a time, so an attacker cannot multiply the memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def normal_name(text: str) -> str | None:
    """A user's name as it is stored, whatever its case and width; None if it cannot be a name."""
    if len(text) > MAX_NAME:
        return None
    folded = unicodedata.normalize("NFKC", text).casefold()
    name = unicodedata.normalize("NFKC", folded).strip()  # casefold makes three characters of "ΐ"
    return name if 0 < len(name) <= MAX_NAME and name.isprintable() else None


def hash_password(password: str) -> str:
    """The hash to store; takes 20 ms and 19 MiB. Raises ValueError if nobody could enter it."""
    if not 0 < len(password) <= MAX_PASSWORD:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD} characters")
    if any("\ud800" <= character <= "\udfff" for character in password):
        raise ValueError("a password is text, and this is not UTF-8")
    return _HASHER.hash(_normal(password))


def is_password(kept: str | None, password: str) -> bool:
    """Whether `kept` is the hash of `password`. If `kept` is None: False, after the same time."""
    if len(password) > MAX_PASSWORD:
        return False
    try:
        right = _HASHER.verify(kept or _nobodys(), _normal(password))
    except (VerificationError, InvalidHashError):
        return False
    return right and kept is not None


def _normal(password: str) -> bytes:
    # RFC 8265 section 4.2: the same password, however a keyboard composes its accents.
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


@cache
def _nobodys() -> str:
    return _HASHER.hash(b"nobody's")
