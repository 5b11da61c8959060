"""Forms that come more than once: a double tap, or a browser that sends again what it sent.

Each form that we give has a token of its own (Tornado masks `_xsrf` differently in every page). The
same form again has the same answer again, and nothing is done a second time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from capport.core.bounded_map import BoundedMap
from capport.core.session import Instant

KEPT = 900.0
"""Seconds that an answer is kept: as long as a link to the form holds."""

MOST = 5000
"""Answers that are kept at a time; one takes about 500 bytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a form came to: the `path` to go on to, or a `problem` to show with the form again."""

    path: str = ""
    problem: str = ""
    status: int = 303
    wait: int = 0


@dataclass(eq=False, slots=True)
class _Sent:
    """A form that was sent. `answered` is set when its outcome is known, or when it has none."""

    at: Instant
    outcome: Outcome | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Forms:
    """What was sent lately, by the form."""

    def __init__(self) -> None:
        self._sent = BoundedMap[bytes, _Sent](MOST)

    async def once(
        self, form: bytes, now: Instant, answer: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """What `answer` gives; for a form that was sent before and was in order, what it gave then.

        One that was not in order is judged again: each guess at a password counts.
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
