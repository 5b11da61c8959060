"""What every answer of the login server and of the APIs has in common."""

import logging
from collections.abc import Awaitable
from typing import Any

from tornado import web

from capport.log_limits import QUOTED
from capport.stores import AwayError
from capport.web.context import WebContext

logger = logging.getLogger(__name__)

AWAY_SECONDS = "10"
"""Seconds for Retry-After when what the routers share is away; text, as in a header."""


class BaseHandler(web.RequestHandler):
    """A request, and an answer that no cache may store. Subclasses set `context`."""

    context: WebContext

    def set_default_headers(self) -> None:
        """Sets the headers of every answer. Tornado calls it again after clearing for an error."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def head(self, *arguments: str) -> Awaitable[None] | None:
        """Answers as GET does (RFC 9110 section 9.1); Tornado leaves the body out."""
        return self.get(*arguments)

    def compute_etag(self) -> str | None:
        """None: an answer that is not stored needs no revalidation."""
        return None

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answers 503 for an OSError (the disk cannot be written now); else as Tornado does."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(503 if isinstance(error, OSError) else status_code, **kwargs)

    def say_when(self, error: BaseException | None) -> None:
        """Sets Retry-After if what the routers share is away. Call it when writing the error."""
        if isinstance(error, AwayError):
            self.set_header("Retry-After", AWAY_SECONDS)

    def methods(self) -> list[str]:
        """The methods that this handler has, for the Allow of a 405 (RFC 9110 section 15.5.6)."""
        there = [
            name
            for name in self.SUPPORTED_METHODS
            if getattr(type(self), name.lower()) is not getattr(web.RequestHandler, name.lower())
        ]
        return there if "GET" in there else [name for name in there if name != "HEAD"]

    def is_to_be_logged(self, fault: object) -> bool:
        """Whether to log `fault` now: each kind is logged at most once a minute."""
        return self.context.faults.is_due(self.context.gate.now(), (type(self), fault))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Logs our errors, once a minute each; a client's in a debug line, without what it sent."""
        if isinstance(value, web.HTTPError):
            said = (value.log_message or "")[:QUOTED]
            logger.debug(f"{self.request.remote_ip}: {value.status_code} {said}")
        elif self.is_to_be_logged(typ):
            line = self.without_traceback(value)
            trace = None if line else (typ, value, tb)
            logger.error(f"Answering 500 or 503: {line or typ.__name__}", exc_info=trace)  # type: ignore[arg-type]

    def without_traceback(self, error: BaseException | None) -> str | None:
        """What to log without a traceback: the text of an error that names its file; else None."""
        return str(error) if isinstance(error, OSError) else None
