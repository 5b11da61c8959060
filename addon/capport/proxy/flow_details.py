"""What an event of a watched client says about a request, by mitmproxy's flow.

None of it is a credential: a path has no query, a Referer neither query nor userinfo.
"""

import hashlib
import re
import secrets
from urllib.parse import urlsplit

from mitmproxy import http

from capport.core.portal_traces import traces_in
from capport.events import Value
from capport.proxy.request_head import credentials_in

MOST = 200  # characters of a text
_KEY = secrets.token_bytes(16)  # so that a digest does not show the query that it was made of
_FIRST_BYTE = re.compile(r"bytes=([0-9]{1,15})-")
_LENGTH = re.compile(r"[0-9]{1,15}")
_AUTHORIZATIONS = ("authorization", "proxy-authorization")


def credentials_of(shown: http.HTTPFlow) -> dict[str, Value]:
    """How many credentials the request has, never their values; None instead of zero."""
    found = credentials_in(shown.request.headers)
    of_origins = sum(found.get(name, 0) for name in _AUTHORIZATIONS)
    return {"cookies": found.get("cookie"), "authorizations": of_origins or None}


def details_of(shown: http.HTTPFlow) -> dict[str, Value]:
    """The further fields of an event about one request. A field that is None is left out."""
    request, response = shown.request, shown.response
    headers = request.headers
    path, _, query = request.path.partition("?")
    tunnel = request.method == "CONNECT"
    first_byte = _FIRST_BYTE.match(headers.get("range", ""))
    validators = ", ".join(headers.get_all("if-none-match") + headers.get_all("if-range"))
    traces = traces_in(path, validators, "; ".join(headers.get_all("cookie")))
    return {
        "scheme": None if tunnel else request.scheme,
        "port": request.port or None,
        "path": None if tunnel else path.partition("#")[0][:MOST],
        "query": _digest(query) if query else None,
        "agent": headers.get("user-agent", "")[:MOST] or None,
        "accept": headers.get("accept", "")[:MOST] or None,
        "referer": _place_of(headers.get("referer", "")),
        "preflight": "access-control-request-method" in headers or None,
        "range": int(first_byte[1]) if first_byte else None,
        "modified_since": headers.get("if-modified-since", "")[:MOST] or None,
        "traces": " ".join(traces) or None,
        "retry_after": response.headers.get("retry-after", "")[:MOST] or None if response else None,
        "length": _length(response),
    }


def _length(response: http.Response | None) -> int | None:
    """How many bytes the body of a response has, as it says itself."""
    said = response.headers.get("content-length", "") if response else ""
    return int(said) if _LENGTH.fullmatch(said) else None


def _digest(query: str) -> str:
    """Tells one query from another, for as long as this process runs."""
    data = query.encode("utf-8", "surrogateescape")
    return hashlib.blake2s(data, key=_KEY, digest_size=4).hexdigest()


def _place_of(url: str) -> str | None:
    """A URL without what may be secret in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return where[:MOST] if parts.netloc else None
