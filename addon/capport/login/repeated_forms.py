"""Gives a form that is sent twice one effect: after a double tap, or when a browser sends it again.

Each form that we give out is different, because Tornado masks `_xsrf` differently in every page. So
if the same bytes come again, the answer is the same, and nothing is done a second time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from capport.core.bounded_map import BoundedMap
from capport.core.session import Instant

KEPT = 900.0
"""Seconds that an answer is kept: as long as the link to the form is valid."""

MOST = 5000
"""Answers that are kept at the same time; one takes about 500 bytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a form: the `path` to go to next, or a `problem` to show above the form."""

    path: str = ""
    problem: str = ""
    status: int = 303
    wait: int = 0


@dataclass(eq=False, slots=True)
class _Sent:
    """A form that was sent. `answered` is set when its outcome is known, or its answer failed."""

    at: Instant
    outcome: Outcome | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Forms:
    """The forms that were sent recently, with their outcomes."""

    def __init__(self) -> None:
        self._sent = BoundedMap[bytes, _Sent](MOST)

    async def once(
        self, form: bytes, now: Instant, answer: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Calls `answer`; if the same form was sent before without a problem, returns that outcome.

        A form with a problem is answered again, because each guess at a password has to count.
        """
        while (before := self._sent.get(form)) is not None:
            await before.answered.wait()
            if before.outcome is not None:
                return before.outcome
        self._forget(now)
        sent = self._sent[form] = _Sent(now)
        try:
            outcome = await answer()
            if not outcome.problem:
                sent.outcome = outcome
            return outcome
        finally:
            if sent.outcome is None and self._sent.get(form) is sent:
                del self._sent[form]
            sent.answered.set()

    def _forget(self, now: Instant) -> None:
        while self._sent and now - next(iter(self._sent.values())).at >= KEPT:
            self._sent.popitem(last=False)
