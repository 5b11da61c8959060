"""What every answer of the login server and of the APIs has in common."""

from collections.abc import Awaitable
from typing import Any

from tornado import web

from capport.web.context import Portal


class BaseHandler(web.RequestHandler):
    """A request, and an answer that nothing may store. Its children set `portal`."""

    portal: Portal

    def set_default_headers(self) -> None:
        """Also called for an error, when all else was cleared."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def head(self, *arguments: str) -> Awaitable[None] | None:
        """As GET, where there is one (RFC 9110 section 9.1); Tornado leaves the body out."""
        return self.get(*arguments)

    def compute_etag(self) -> str | None:
        """None: what is not stored is not revalidated either."""
        return None

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's, but what cannot be written down or made durable is 503: come back later."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(503 if isinstance(error, OSError) else status_code, **kwargs)

    def methods(self) -> list[str]:
        """The methods that its class has, for a 405 (RFC 9110 section 15.5.6)."""
        there = [
            name
            for name in self.SUPPORTED_METHODS
            if getattr(type(self), name.lower()) is not getattr(web.RequestHandler, name.lower())
        ]
        return there if "GET" in there else [name for name in there if name != "HEAD"]

    def is_to_be_logged(self, fault: object) -> bool:
        """Whether a line about `fault` is due: each kind is logged once a minute."""
        return self.portal.faults.is_due(self.portal.grants.now(), (type(self), fault))
