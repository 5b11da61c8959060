"""An addon for mitmdump that answers 511 with as little code as possible, without a gate."""

from mitmproxy import http

BODY = b"<!doctype html><title>Sign in</title>".ljust(2500)


def requestheaders(flow: http.HTTPFlow) -> None:
    """The answer, before any connection to the origin."""
    flow.response = http.Response.make(511, BODY, {"Cache-Control": "no-store"})
