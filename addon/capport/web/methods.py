"""Which methods there are: a 405 says so (RFC 9110 section 15.5.6)."""

from tornado import web


def methods_of(handler: web.RequestHandler) -> list[str]:
    """Those that its class has; HEAD only beside GET."""
    there = [
        name
        for name in handler.SUPPORTED_METHODS
        if getattr(type(handler), name.lower()) is not getattr(web.RequestHandler, name.lower())
    ]
    return there if "GET" in there else [name for name in there if name != "HEAD"]
