"""Keeps the OCSP response that is stapled to a certificate: asked for in time, dropped in time."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tornado.httpclient import HTTPError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from capport.web.ocsp import (
    OcspError,
    Question,
    RevokedError,
    Staple,
    believed,
    demands_staple,
    question,
)

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a responder has for its answer."""

LARGEST = 64 * 1024
"""Bytes of an answer that are read. Those of public CAs have 0.5 to 3 KB."""

AT_LEAST, AT_MOST = 60.0, 86400.0
"""Seconds between two questions: the least, and the most while there is an answer that holds."""

BACK_OFF = 3600.0
"""Seconds: the longest wait after a question without an answer. The first is `AT_LEAST`."""


class Stapler:
    """The response for one certificate. `file` is what errors name, `chain` what is in it.

    Times in a response are the world's, so they are held against the wall clock, `wall`; waiting
    is by the steady one. A router whose clock is not set believes no response, and soon asks again;
    one whose clock is set back knows all the same that time has passed.
    """

    def __init__(
        self,
        file: str,
        chain: bytes,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._wall, self._steady = file, wall, steady
        self._staple: Staple | None = None
        self._fresh_until = 0.0  # by the wall
        self._at = (0.0, 0.0)  # when that was, by the wall, and by the steady clock
        self._not_before = -1.0  # by the steady clock
        self._failed = 0
        self._told: type[OcspError] | None = None
        self._asked: Question | None = None
        self._demanded = demands_staple(chain)
        try:
            self._asked = question(chain)
        except OcspError as error:
            self._tell(error)

    def response(self) -> bytes:
        """What to staple now; nothing where there is none, or none any more."""
        if self._staple is None or self._staple.until <= self._now():
            return b""
        return self._staple.response

    def is_due(self) -> bool:
        """Whether it is time to ask."""
        if self._asked is None or self._steady() < self._not_before:
            return False
        return self._staple is None or self._fresh_until <= self._now()

    async def refresh(self) -> None:
        """Asks, whether it is time or not. What goes wrong is logged, once until it goes right."""
        if self._asked is None:
            return
        wait = AT_LEAST
        try:
            response = await _ask(self._asked)
            now = self._wall()
            staple = believed(self._asked, response, datetime.fromtimestamp(now, UTC))
        except Exception as fault:
            # The edge, for what a stranger has sent: whoever waits here shows the certificate, and
            # would else never show a renewed one again.
            error = fault if isinstance(fault, OcspError) else OcspError(repr(fault))
            if isinstance(error, RevokedError):
                self._staple = None
            wait = min(BACK_OFF, AT_LEAST * 2.0 ** min(self._failed, 16))
            self._failed += 1
            self._tell(error)
        else:
            if self._failed:
                logger.info("%s: an OCSP response is stapled again", self._file)
            self._failed, self._told, self._staple = 0, None, staple
            # From the middle of what is left there is as much time again to try.
            self._fresh_until = now + min((staple.until - now) / 2, AT_MOST)
            self._at = now, self._steady()
        self._not_before = self._steady() + wait

    def _now(self) -> float:
        """What the wall clock says, or would if nobody had set it back since the last response."""
        wall, steady = self._at
        return max(self._wall(), wall + self._steady() - steady)

    def _tell(self, error: OcspError) -> None:
        if type(error) is self._told:
            return
        self._told = type(error)
        what = "the OCSP response from before stays" if self.response() else "nothing is stapled"
        if self._demanded and not self.response():
            what += ", which it demands (RFC 7633): clients may refuse it"
        if self._asked is None:  # most certificates name no responder, and nobody misses it
            level = logging.WARNING if self._demanded else logging.DEBUG
        else:
            level = logging.ERROR if isinstance(error, RevokedError) else logging.WARNING
        where = f"{self._file}: {self._asked.responder}" if self._asked else self._file
        logger.log(level, "%s: %s; %s", where, error, what)


async def _ask(asked: Question) -> bytes:
    """What the responder answers. Raises OcspError."""
    client = SimpleAsyncHTTPClient(
        force_instance=True, max_body_size=LARGEST, max_header_size=16 * 1024
    )
    try:
        answer = await client.fetch(
            asked.responder,
            method="POST",
            body=asked.request(),
            headers={
                "Content-Type": "application/ocsp-request",
                "Accept": "application/ocsp-response",
            },
            connect_timeout=PATIENCE,
            request_timeout=PATIENCE,
            follow_redirects=False,
            decompress_response=False,
        )
    except (HTTPError, OSError, ValueError) as error:
        raise OcspError(str(error) or type(error).__name__) from error
    finally:
        client.close()
    return bytes(answer.body)
