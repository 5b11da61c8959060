"""Gives a form that is sent twice one effect: after a double tap, or when a browser sends it again.

Each form that we give out is different, because Tornado masks `_xsrf` differently in every page. So
if the same bytes come again, the answer is the same, and nothing is done a second time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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


type _Answer = asyncio.Future[Outcome | None]
"""The outcome of a form; None if it is to be answered again."""


class Forms:
    """The forms that were sent recently, with their outcomes."""

    def __init__(self) -> None:
        self._sent = BoundedMap[bytes, tuple[Instant, _Answer]](MOST)

    async def once(
        self, form: bytes, now: Instant, answer: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Calls `answer`; if the same form was sent before without a problem, returns that outcome.

        A form with a problem is answered again, because each guess at a password has to count.
        """
        while (before := self._sent.get(form)) is not None:
            _, answered = before
            if (outcome := await asyncio.shield(answered)) is not None:
                return outcome
        while self._sent and now - next(iter(self._sent.values()))[0] >= KEPT:
            self._sent.popitem(last=False)
        answered, kept = asyncio.get_running_loop().create_future(), None
        self._sent[form] = sent = now, answered
        try:
            outcome = await answer()
            kept = None if outcome.problem else outcome
            return outcome
        finally:
            if kept is None and self._sent.get(form) is sent:
                del self._sent[form]
            answered.set_result(kept)
