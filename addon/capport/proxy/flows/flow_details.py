"""Makes the fields of an event about a request from mitmproxy's flow.

They contain no credential: a path has no query, a Referer neither query nor userinfo.
"""

import hashlib
import re
import secrets
from urllib.parse import urlsplit

from mitmproxy import http

from capport.core.http import DEFAULT_PORTS
from capport.events import Value
from capport.proxy.request_head import credentials_in
from capport.report.portal_traces import traces_in

MOST = 200  # characters of a text
_KEY = secrets.token_bytes(16)  # so that a digest does not show the query that it was made of
_FIRST_BYTE = re.compile(r"bytes=([0-9]{1,15})-")
_LENGTH = re.compile(r"[0-9]{1,15}")


def request_fields(flow: http.HTTPFlow) -> dict[str, Value]:
    """The fields that each event about a request has. A field that is None is left out."""
    request, response = flow.request, flow.response
    sent = credentials_in(request)
    return {
        "status": response.status_code if response else None,
        "host": request.host or None,
        "method": request.method,
        "cookies": sent.get("cookie"),
        "authorizations": sum(n for name, n in sent.items() if name != "cookie") or None,
    }


def details_of(flow: http.HTTPFlow) -> dict[str, Value]:
    """The fields that an event has in addition if the client is watched."""
    request, response = flow.request, flow.response
    headers = request.headers
    path, _, query = request.path.partition("?")
    tunnel = request.method == "CONNECT"
    first_byte = _FIRST_BYTE.match(headers.get("range", ""))
    validators = ", ".join(headers.get_all("if-none-match") + headers.get_all("if-range"))
    traces = traces_in(path, validators, "; ".join(headers.get_all("cookie")))
    return {
        "scheme": request.scheme if request.scheme in DEFAULT_PORTS and not tunnel else None,
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
        "etag": bool(response and "etag" in response.headers) or None,
        "sets_cookie": bool(response and "set-cookie" in response.headers) or None,
        "answered_by": _answered_by(flow),
        "error": str(flow.error) if flow.error and not response else None,
    }


def _answered_by(flow: http.HTTPFlow) -> str | None:
    """What answered a request that was forwarded; None if nothing did, or the portal."""
    if flow.response is None and (flow.error or flow.request.method != "CONNECT"):
        return None
    marked = flow.metadata.get("portal")
    by = marked.get("answered_by") if isinstance(marked, dict) else None
    return by if isinstance(by, str) else None


def _length(response: http.Response | None) -> int | None:
    """The Content-Length of a response; None if it has none."""
    said = response.headers.get("content-length", "") if response else ""
    return int(said) if _LENGTH.fullmatch(said) else None


def _digest(query: str) -> str:
    """A text that is the same for equal queries, but only while this process runs."""
    data = query.encode("utf-8", "surrogateescape")
    return hashlib.blake2s(data, key=_KEY, digest_size=4).hexdigest()


def _place_of(url: str) -> str | None:
    """A URL without the parts that may be secret: userinfo, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return where[:MOST] if parts.netloc else None
