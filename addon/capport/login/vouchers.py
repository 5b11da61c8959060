"""Makes, hashes and prints voucher codes, which are easy to read out and to type.

A code is 80 random bits in Crockford's base 32, in four groups of four. This alphabet lacks I, L, O
and U, which are easy to mistake. With so many bits, we can store a plain SHA-256 instead of a slow
hash, and guessing is hopeless even without the throttle.
"""

import hashlib
import secrets
import unicodedata
from collections.abc import Mapping
from itertools import batched, zip_longest
from textwrap import wrap

from capport.login.words import Words

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH, _GROUP = 16, 4
_COLUMN = 38  # characters of the sheet: two of them, and a line between, in a terminal's 80
_AS_READ = str.maketrans({"O": "0", "I": "1", "L": "1"})


def new_code() -> str:
    """A new random code, such as `7KQ3-M9XD-2HVT-4WPN`."""
    code = "".join(secrets.choice(ALPHABET) for _ in range(_LENGTH))
    return "-".join(code[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def digest(code: str) -> bytes | None:
    """The hash under which a code is stored, however it was typed; None if it cannot be a code.

    Case does not matter. O counts as 0, I and L as 1, full-width letters as plain ones. All that is
    neither letter nor digit is ignored, because phones put spaces, dashes or dots between groups.
    """
    letters = filter(str.isalnum, unicodedata.normalize("NFKC", code[:64]))
    plain = "".join(letters).upper().translate(_AS_READ)
    if len(plain) != _LENGTH or not set(plain) <= set(ALPHABET):
        return None
    return hashlib.sha256(b"voucher\0" + plain.encode()).digest()


def sheet(
    codes: Mapping[int, str],
    words: Words,
    *,
    network: str | None,
    place: str | None,
    lifetime: float,
    devices: int,
    by: str | None = None,
) -> str:
    """The vouchers as plain text, to print and cut along the lines. `codes`: each by its number.

    There are two columns of 38 characters. Each voucher says how to use it: at `place`, None if
    that is not known here. `lifetime` is in seconds; `by` is the date of the latest first use.
    """
    above = ["", *_wrapped(network or "Wi-Fi"), ""]
    said = words.sheet
    how = said["how"].format(place=place) if place else said["opens"]
    below = ["", *_wrapped(how), ""]
    below += _wrapped(said["time"].format(time=words.time(lifetime)))
    below += [said["devices"].format(count=devices) if devices > 1 else said["device"]]
    below += _wrapped(said["by"].format(date=by)) if by else []
    cells = [
        [*above, code, *below, said["number"].format(number=number), ""]
        for number, code in codes.items()
    ]
    rule = f"{'- ' * (_COLUMN // 2)}+{' -' * (_COLUMN // 2)}\n"
    rows: list[str] = []
    for pair in batched(cells, 2):
        columns = zip_longest(*pair, fillvalue="")
        rows.append("".join(f"{'|'.join(map(_centred, row)).rstrip()}\n" for row in columns))
    return rule.join(["", *rows, ""])


def _wrapped(text: str) -> list[str]:
    return wrap(text, _COLUMN - 4, break_on_hyphens=False)


def _centred(text: str) -> str:
    return f"{text:^{_COLUMN}}"
