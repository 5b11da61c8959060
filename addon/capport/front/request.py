"""Reads the head of an ordinary HTTP/1 request, matched as a whole.

`read` takes only a head that every parser understands in the same way. For any other it returns
None, and h11 reads that head (`proxy/layers/http1.py`). So two parsers can never disagree.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from capport.core.bounded_map import BoundedMap
from capport.core.cost import FIELDS, LINE
from capport.core.decision import HttpRequest
from capport.core.http import CREDENTIALS, TCHAR, cookies_in, default_port
from capport.core.place import Place, parse_authority
from capport.core.reply import Asked

_KEPT: Final = 512
_SHORT: Final = 1024
"""The most bytes of a head that is remembered. All together take 1 MB, with their requests 2."""

_HTTP: Final = default_port("http")
_LONGEST_HOST: Final = 300

_HEAD: Final = re.compile(
    rb"([A-Z]{1,24}+) ([!-~]{1,%d}+) HTTP/1\.([01])\r\n"
    rb"((?:%b++:[\t -~\x80-\xff]*+(?<![ \t])\r\n){1,%d}+)\r\n" % (LINE - 50, TCHAR.encode(), FIELDS)
)
_FIELD: Final = re.compile(rb"^([^:\n]++):[ \t]*+([^\r\n]*+)\r$", re.MULTILINE)
_LENGTH: Final = re.compile(rb"[0-9]{1,15}+")

_AUTHORIZATIONS: Final = frozenset(CREDENTIALS) - {b"cookie"}
_CREDENTIALS: Final = re.compile(
    rb"^(?:%b):[^\n]*+\n" % b"|".join(CREDENTIALS), re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class OrdinaryRequest:
    """What a decision, a reply and a report need of a request.

    `claim` is the place that it names. `url` is None for CONNECT. `declared` is its Content-Length,
    0 if it has none. `is_chunked` is whether its body comes in chunks. `keeps_open` is whether the
    client may send another request after it. `cookies` and `authorizations` are counts (RFC 6585
    section 7.4).
    """

    claim: Place
    case: HttpRequest
    asked: Asked
    url: str | None
    declared: int
    is_chunked: bool
    keeps_open: bool
    user_agent: str
    cookies: int
    authorizations: int


remembered: Final = BoundedMap[tuple[bytes, bool], OrdinaryRequest](_KEPT)
"""The requests in short heads, because clients repeat themselves. None has credentials in it."""


def read(head: bytes, *, explicit: bool) -> OrdinaryRequest | None:
    """Reads `head`, which ends with an empty line. None if anything about it is unusual.

    `explicit` is whether the client is configured to use this proxy, so that it may send CONNECT.
    """
    found = remembered.get((head, explicit))
    if found is None:
        found = _read(head, explicit)
        has_credentials = found and (found.cookies or found.authorizations)
        if found and not has_credentials and len(head) <= _SHORT:
            remembered[head, explicit] = found
    return found


def without_credentials(head: bytes) -> bytes:
    """`head` without its cookies and authorizations: they are never kept (RFC 6585 section 7.4)."""
    return _CREDENTIALS.sub(b"", head)


def _read(head: bytes, explicit: bool) -> OrdinaryRequest | None:
    matched = _HEAD.fullmatch(head)
    if matched is None:
        return None
    method, target, is_1_1 = matched[1].decode(), matched[2].decode(), matched[3] == b"1"
    fields = [(name.lower(), value) for name, value in _FIELD.findall(matched[4])]
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        # Joined, two Host fields are not a valid host, and two Content-Lengths not a valid length.
        values[name] = value if name not in values else values[name] + b", " + value
    try:
        host = values[b"host"].decode("ascii")
        if len(host) > _LONGEST_HOST:
            return None
        claim, path = _place(method, target, host, explicit=explicit)
        declared, is_chunked = _body(values, is_1_1=is_1_1)
    except (ValueError, LookupError):
        return None
    options = [option.strip() for option in values.get(b"connection", b"").lower().split(b",")]
    has_body, is_connect = bool(declared or is_chunked), method == "CONNECT"
    if is_connect and has_body:
        return None
    return OrdinaryRequest(
        claim,
        HttpRequest.with_fields(method, "http", path, fields, len(target)),
        Asked(
            method,
            values.get(b"accept", b"").decode("latin-1"),
            values.get(b"accept-language", b"").decode("latin-1"),
        ),
        None if is_connect else f"http://{claim.authority(_HTTP)}{path}",
        declared,
        is_chunked,
        is_1_1 and b"close" not in options and not is_connect and not has_body,
        values.get(b"user-agent", b"").decode("latin-1"),
        sum(cookies_in(value) for name, value in fields if name == b"cookie"),
        sum(name in _AUTHORIZATIONS for name, _ in fields),
    )


@lru_cache(_KEPT)
def _authority(text: str, default_port: int | None) -> Place:
    return parse_authority(text, default_port)


def _place(method: str, target: str, host: str, *, explicit: bool) -> tuple[Place, str]:
    """The place that both the target and the Host field name, and the path.

    Raises ValueError if they differ. RFC 9112 sections 3.2.1 to 3.2.3.
    """
    if method == "CONNECT" and explicit:
        claim, path = _authority(target, None), target
        named = _authority(host, claim.port)
    elif method == "CONNECT":
        raise ValueError("CONNECT, but the client does not use a proxy")
    elif target.startswith("/"):
        named = claim = _authority(host, _HTTP)
        path = target
    else:
        authority, slash, rest = target.removeprefix("http://").partition("/")
        if not target.startswith("http://") or not slash:
            raise ValueError("the target is neither a path nor an http URL")
        claim, path = _authority(authority, _HTTP), slash + rest
        named = _authority(host, _HTTP)
    if named != claim:
        raise ValueError("the target and the Host field differ")
    return claim, path


def _body(values: dict[bytes, bytes], *, is_1_1: bool) -> tuple[int, bool]:
    """The Content-Length, 0 if there is none, and whether the body comes in chunks.

    Raises ValueError if two parsers could disagree about it. RFC 9112 section 6.
    """
    coding, length = values.get(b"transfer-encoding"), values.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None or not is_1_1:
            raise ValueError("a body whose end is disputed")
        return 0, True
    if length is None:
        return 0, False
    if not _LENGTH.fullmatch(length):
        raise ValueError("the Content-Length is not a number")
    return int(length), False
