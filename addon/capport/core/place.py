"""A place on the network: a name or an address, and a port."""

import re
from dataclasses import dataclass
from functools import lru_cache

from capport.core.client import Address, parse_address
from capport.core.http import default_port

# RFC 1123 section 2.1, and the underscore, which real names contain; A-labels only (RFC 5890).
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

type Host = str | Address
"""A name in lower case without its trailing dot, or an address."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something listens. `str()` gives the authority of RFC 3986: `[2001:db8::1]:80`."""

    host: Host
    port: int

    def __str__(self) -> str:
        return f"{in_url(self.host)}:{self.port}"

    def authority(self, default_port: int) -> str:
        """The place as in a Host field (RFC 9110 section 7.2): without the default port."""
        return in_url(self.host) if self.port == default_port else str(self)

    def url(self, scheme: str, path: str = "/") -> str:
        """The URL of `path` here."""
        return f"{scheme}://{self.authority(default_port(scheme))}{path}"


@lru_cache(512)
def in_url(host: Host) -> str:
    """`host` as in a URL: IPv6 in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]" if ":" in str(host) else str(host)


def parse_host(text: str) -> Host:
    """The name or address in `text`, normalised. Raises ValueError; the name must be ASCII.

    A number that only some resolvers read as an address (`127.1`, `0x7f.0.0.1`) is an error.
    Otherwise the resolver could go to another place than the one that was decided on.
    """
    bracketed = text.startswith("[") and text.endswith("]")
    # An address has a colon, or ends in a digit. Trying with a name takes 4 us.
    may_be_address = ":" in text or bracketed or text[-1:].isdigit()
    try:
        address = parse_address(text[1:-1] if bracketed else text) if may_be_address else None
    except ValueError:
        address = None
    if address is not None:
        if "%" in text:
            raise ValueError(f"{text!r} has a zone, which means nothing on another machine")
        if bracketed and ":" not in text:
            raise ValueError(f"{text!r} has brackets around an IPv4 address")
        return address
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{text!r} is neither a host name nor an address")
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        raise ValueError(f"{text!r} ends in a number, but is not an address")  # WHATWG URL 3.5
    return name


def parse_port(text: str) -> int:
    """The port in `text`, 1 to 65535. Raises ValueError."""
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise ValueError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def parse_authority(text: str, default_port: int | None) -> Place:
    """The place in `HOST[:PORT]` (RFC 3986 section 3.2), without user information.

    Raises ValueError, also when there is no port and no default.
    """
    host, colon, port = text, "", ""
    if not text.endswith("]"):
        host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is not HOST or HOST:PORT")
    if colon:
        return Place(parse_host(host), parse_port(port))
    if default_port is None:
        raise ValueError(f"{text!r} has no port")
    return Place(parse_host(host), default_port)
