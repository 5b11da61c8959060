"""A request's head, as h11 or mitmproxy read it: the place it names, and its credentials."""

import re
import time
from collections import Counter
from typing import Final

import h11
from mitmproxy import connection, http

from capport.core.decision import HttpRequest
from capport.core.http import CREDENTIALS, cookies_in, default_port, is_token
from capport.core.place import Place, parse_authority, parse_host
from capport.proxy.internals.http_streams import set_destination

_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NO_TARGET: Final = re.compile(rb"[\x00-\x20\x7f]")

_COUNTED: Final = re.compile(rb"\[redacted(?:: ([0-9]{1,9}))?\]")


def place_of(address: connection.Address | None) -> Place | None:
    """Makes a place of mitmproxy's `address`; None if there is none, or its host is invalid."""
    if address is None:
        return None
    try:
        return Place(parse_host(address[0]), address[1])
    except ValueError:
        return None


def redact(request: http.Request) -> dict[bytes, list[bytes]]:
    """Replaces the credentials in a request (RFC 6585 section 7.4).

    Returns the values that it replaced in header fields, by the field's name. It does not return
    the userinfo of the URL, because nobody gets that.
    """
    taken: dict[bytes, list[bytes]] = {}
    fields = []
    for name, value in request.headers.fields:
        if name.lower() in CREDENTIALS:
            taken.setdefault(name.lower(), []).append(value)
            fields.append((name, redacted(name, value)))
        else:
            fields.append((name, _without_userinfo(value) if name.lower() == b"host" else value))
    request.headers.fields = tuple(fields)
    request.data.authority = _without_userinfo(request.data.authority)
    return taken


def _without_userinfo(authority: bytes) -> bytes:
    _, at, place = authority.rpartition(b"@")  # RFC 3986 section 3.2.1
    return b"[redacted]@" + place if at else authority


def redacted(name: bytes, value: bytes) -> bytes:
    """The text that replaces a credential, with the number of cookies if it is not one.

    If `value` is such a text already, it stays as it is.
    """
    if _COUNTED.fullmatch(value):
        return value
    count = cookies_in(value) if name.lower() == b"cookie" else 1
    return b"[redacted]" if count == 1 else b"[redacted: %d]" % count


def restore(headers: http.Headers, taken: dict[bytes, list[bytes]]) -> None:
    """Puts back what `redact` took, and drops the credentials that were meant for a proxy."""
    left = {name: iter(values) for name, values in taken.items()}
    fields = []
    for name, value in headers.fields:
        if _COUNTED.fullmatch(value) and name.lower() in left:
            if name.lower() != b"proxy-authorization":
                fields.append((name, next(left[name.lower()], b"")))
        else:
            fields.append((name, value))
    headers.fields = tuple(fields)


def credentials_in(request: http.Request) -> dict[str, int]:
    """How many credentials of each kind there are, before or after `redact`.

    Each cookie counts as one (RFC 6265 section 4.2.1); so does each field of another kind, and
    the userinfo of the URL, which a client may repeat in its Host field.
    """
    named = [request.authority, *request.headers.get_all("host")]
    found = Counter(userinfo=int(any("@" in authority for authority in named)))
    for name, value in request.headers.fields:
        if (kind := name.lower()) in CREDENTIALS:
            counted = _COUNTED.fullmatch(value)
            cookies = int(counted[1] or 1) if counted else cookies_in(value)
            found[kind.decode()] += cookies if kind == b"cookie" else 1
    return dict(+found)


def claim_of(request: http.Request) -> Place | None:
    """The place that a request names by its target or its one Host field; None if there is none."""
    if request.method == "CONNECT":
        return place_of((request.host, request.port))
    hosts = request.headers.get_all("host")
    named = request.authority or (hosts[0] if hosts else "")
    if len(hosts) > 1 or (not request.path.startswith("/") and request.path != "*"):
        return None
    if not named:
        return place_of((request.host, request.port)) if request.host else None
    return _place(named, default_port(request.scheme))


def _place(authority: str, default_port: int | None) -> Place | None:
    try:
        return parse_authority(authority, default_port)
    except ValueError:
        return None


def url_of(scheme: str, claim: Place | None, path: str) -> str | None:
    """The URL of a request; None if its path is `*`, or it names no place."""
    if claim is None or path == "*":
        return None
    return claim.url(scheme, path)


def case_of(request: http.Request) -> HttpRequest:
    """Makes the core's request of one that mitmproxy read."""
    fields, target = request.headers.fields, request.data.authority + request.data.path
    return HttpRequest.with_fields(
        request.method, request.scheme, request.path, fields, len(target)
    )


def is_plain(request: http.Request) -> bool:
    """Whether the head is valid in HTTP/1 too. In HTTP/2, a method may contain spaces."""
    line = is_token(request.method) and not _NO_TARGET.search(request.data.path)
    return bool(line) and not any(_CONTROLS.search(value) for _, value in request.headers.fields)


def authority_for(place: Place, claim: Place | None, scheme: str) -> str:
    """The Host field of a request that is sent to `place`: that place.

    But if a client dialled an address in the garden, its Host field may name that place.
    """
    names_it = claim if claim and not isinstance(place.host, str) else place
    return names_it.authority(default_port(scheme))


def send_to(request: http.Request, place: Place) -> None:
    """Sends a request to `place`, with exactly one Host field."""
    authority = authority_for(place, claim_of(request), request.scheme)
    host = str(place.host)
    if request.is_http2 or request.is_http3:
        set_destination(request, host, place.port, authority.encode())
        request.headers.pop("host", None)
    else:
        set_destination(request, host, place.port, b"")
        request.headers["host"] = authority


def is_framed_twice(head: h11.Request) -> bool:
    """Whether two readers may disagree where the body ends (RFC 9112 sections 6.1 and 6.3)."""
    names = {name for name, _ in head.headers}
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or head.http_version < b"1.1"


class Head:
    """A request's head as h11 read it, and the place that it names."""

    def __init__(self, head: h11.Request, *, explicit: bool, scheme: str) -> None:
        self.method = head.method.decode("ascii", "replace")
        self.target = head.target.decode("ascii", "replace")
        self.fields = head.headers.raw_items()
        self.scheme = scheme
        self.version = head.http_version
        self.path, authority = self.target, self.field(b"host")
        default: int | None = default_port(scheme)
        named = True  # whether the authority counts as a place here
        if self.method == "CONNECT":
            authority, default, named = self.target, None, explicit
        elif self.target == "*" and self.method == "OPTIONS":
            pass  # RFC 9112 section 3.2.4: `*` is the whole server, which the Host field names
        elif not self.target.startswith("/"):
            # RFC 9112 section 3.2.2: the authority in the target counts, not the Host field.
            spoken, slashes, rest = self.target.partition("://")
            cut = next((at for at, c in enumerate(rest) if c in "/?#"), len(rest))
            authority, self.path = rest[:cut], rest[cut:] or "/"
            named = bool(slashes) and spoken.lower() == scheme
            if not self.path.startswith("/"):
                self.path = f"/{self.path}"
        self.claim = _place(authority, default) if named else None
        # RFC 9110 section 4.2.4: userinfo is an error, so this is no claim. It is only shown.
        _, at, host = authority.rpartition("@")
        self._with_userinfo = _place(host, default) if at else None
        self._shown_authority = authority.encode() if at or self.method == "CONNECT" else b""

    @property
    def has_controls(self) -> bool:
        """Whether a value has a control character: h11 accepts it, RFC 9110 5.5 does not."""
        return any(_CONTROLS.search(value) for _, value in self.fields)

    def field(self, name: bytes) -> str:
        """The first value of the field `name`; empty if there is none."""
        for found, value in self.fields:
            if found.lower() == name:
                return value.decode("latin-1")
        return ""

    @property
    def connection_options(self) -> frozenset[bytes]:
        """The fields that the client declares valid for this hop only (RFC 9110 section 7.6.1)."""
        said = b",".join(value for name, value in self.fields if name.lower() == b"connection")
        return frozenset(option.strip().lower() for option in said.split(b","))

    def as_case(self) -> HttpRequest:
        """Makes the core's request of it."""
        target = len(self.target)
        return HttpRequest.with_fields(self.method, self.scheme, self.path, self.fields, target)

    def to_mitmproxy(self, dialled: Place | None) -> http.Request:
        """Makes mitmproxy's request of it, to be shown in a flow, without its credentials."""
        place = self.claim or self._with_userinfo or dialled
        tunnel = self.method == "CONNECT"
        now = time.time()
        request = http.Request(
            host=str(place.host) if place else "",
            port=place.port if place else 0,
            method=self.method.encode(),
            scheme=self.scheme.encode(),
            authority=self._shown_authority,
            path=b"" if tunnel else self.path.encode(),
            http_version=b"HTTP/" + self.version,
            headers=http.Headers(self.fields),
            content=b"",
            trailers=None,
            timestamp_start=now,
            timestamp_end=now,
        )
        redact(request)
        return request
