"""What several modules need of RFC 9110 and 4918: tokens, ports, methods, Date, credentials."""

import re
from email.utils import formatdate
from functools import lru_cache
from typing import Final

DEFAULT_PORTS: Final = {"http": 80, "https": 443}  # RFC 9110 sections 4.2.1 and 4.2.2

COPIES: Final = frozenset({"COPY", "MOVE"})
"""The methods that overwrite what is at their Destination (RFC 4918 sections 9.8 and 9.9)."""

CREDENTIALS: Final = (b"cookie", b"authorization", b"proxy-authorization")
"""The fields that have them, and are never kept or shown (RFC 6585 section 7.4)."""

TCHAR: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
"""A character of a token (RFC 9110 section 5.6.2). Methods and field names are tokens."""

_TOKEN = re.compile(f"{TCHAR}++")


def default_port(scheme: str) -> int:
    """The port of a URL that has none in it: 443 for https, 80 for any other scheme."""
    return DEFAULT_PORTS.get(scheme, 80)


def is_token(text: str) -> bool:
    """Whether `text` is a token."""
    return _TOKEN.fullmatch(text) is not None


def cookies_in(value: bytes) -> int:
    """How many cookies one Cookie field contains (RFC 6265 section 4.2.1)."""
    return sum(bool(pair.strip()) for pair in value.split(b";"))


CLOCK_IS_SET: Final = 1735689600  # the start of 2025; without a battery, a clock starts in 1970


@lru_cache(2)  # all answers within a second share it
def date_fields(second: int) -> tuple[tuple[str, str], ...]:
    """The Date field at `second`; none if the clock is not set (RFC 9110 section 6.6.1)."""
    return (("Date", formatdate(second, usegmt=True)),) if second >= CLOCK_IS_SET else ()
