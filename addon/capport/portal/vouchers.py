"""Vouchers: codes that can be read out over a counter, and told from nothing but themselves.

A code is 80 random bits in Crockford's base 32, four groups of four: no I, L, O or U to mistake.
With so many bits a plain SHA-256 at rest is as good as a slow hash, and guessing is hopeless even
without the throttle (THREATS: at least 64 bits).
"""

import hashlib
import secrets
from collections.abc import Sequence

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH, _GROUP = 16, 4
_AS_READ = str.maketrans(
    {"O": "0", "I": "1", "L": "1", "-": None, " ": None, "\u2010": None, "\u2013": None}
)


def new_code() -> str:
    """A code no one has seen: `7KQ3-M9XD-2HVT-4WPN`."""
    code = "".join(secrets.choice(ALPHABET) for _ in range(_LENGTH))
    return "-".join(code[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def digest(code: str) -> bytes | None:
    """What a code is filed under, however it was typed; None where it cannot be one.

    Case, spaces and hyphens do not matter, nor O for 0, nor I and L for 1.
    """
    plain = code[:64].upper().translate(_AS_READ)
    if len(plain) != _LENGTH or not set(plain) <= set(ALPHABET):
        return None
    return hashlib.sha256(b"voucher\0" + plain.encode()).digest()


def sheet(codes: Sequence[str], *, network: str | None, valid: str, devices: int) -> str:
    """Codes as plain text to print and cut: two columns, a rule between rows. `valid`: `24h`."""
    for_devices = "1 device" if devices == 1 else f"{devices} devices"
    width = 36
    rows = [[network or "Wi-Fi", code, f"{valid}, {for_devices}"] for code in codes]
    lines: list[str] = []
    for at in range(0, len(rows), 2):
        pair = rows[at : at + 2]
        for texts in zip(*pair, strict=True):
            lines.append("  ".join(f"{text[: width - 2]:^{width}}" for text in texts).rstrip())
        lines.append("- " * width)
    return "\n".join(lines) + "\n"
