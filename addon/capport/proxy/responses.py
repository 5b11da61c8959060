"""Makes mitmproxy's responses of our replies, and the replies that have no page."""

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from mitmproxy import http

from capport.core.http import date_fields
from capport.core.reply import Asked, Fields, Reply


def bare(status: int, line: str = "") -> Reply:
    """A reply without a page: the status as text, or `line`."""
    reason = HTTPStatus(status).phrase
    body = f"{line or f'{status} {reason}'}\r\n".encode()
    fields = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Length", str(len(body))),
    )
    return Reply(status, reason, fields, body)


CLOSED: Final = bare(503, "The captive portal cannot decide now.")
"""The answer to every request that gets no verdict: the gate fails closed."""


def fields_of(reply: Reply) -> Fields:
    """The header fields of `reply` as they are sent now: with a Date, if the clock is set."""
    return (*reply.fields, *date_fields(int(time.time())))


def to_mitmproxy(reply: Reply) -> http.Response:
    """Makes mitmproxy's response of `reply`."""
    fields = [(name.encode(), value.encode("latin-1")) for name, value in fields_of(reply)]
    return response(reply.status, reply.reason.encode("ascii"), fields, reply.body)


def response(
    status: int, reason: bytes, fields: Iterable[tuple[bytes, bytes]], body: bytes
) -> http.Response:
    """Makes mitmproxy's response of these parts, as they are. It is complete now."""
    headers, now = http.Headers(fields), time.time()
    return http.Response(b"HTTP/1.1", status, reason, headers, body, None, now, now)


def asked_of(request: http.Request) -> Asked:
    """The parts of a request on which the reply depends."""
    return Asked(
        request.data.method.decode("ascii", "replace"),  # `request.method` makes HEAD of head
        request.headers.get("accept", ""),
        request.headers.get("accept-language", ""),
    )
