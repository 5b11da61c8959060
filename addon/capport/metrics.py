"""Counts what the portal does. `service/metrics_page.py` shows the counts to Prometheus.

Counting costs a fraction of a microsecond, so it is always on. A count may be read on any thread.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Upper bounds, in seconds, of the buckets that decisions and changes of sessions are counted in.
DECISION = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 1e-2)
CHANGE = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 1.0, 5.0)
NAMES = 100  # names of verdicts, or of places that denied something, at most
LONGEST_NAME = 100  # characters


@dataclass(slots=True)
class Timing:
    """How long something took: how often, by `bounds` in seconds; and how many `seconds` in all."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)  # up to each bound, and above the last
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Counts one that took `seconds`."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def merge(self, counts: Sequence[int], seconds: float) -> None:
        """Adds what another process has counted, with the same bounds."""
        self.counts = [mine + its for mine, its in zip(self.counts, counts, strict=True)]
        self.seconds += seconds

    @contextmanager
    def of_this(self) -> Iterator[None]:
        """Counts what is done inside the `with` block, whether or not it raises."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - begun)


@dataclass(slots=True)
class Metrics:
    """The counts of one process since its start.

    `verdicts` are those on requests and handshakes, by the name of the verdict's class. `denied` is
    what was denied because the portal could not decide, by the place in the code that denied it.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    denied: Counter[str] = field(default_factory=Counter)
    decisions: Timing = field(default_factory=lambda: Timing(DECISION))
    grants: Timing = field(default_factory=lambda: Timing(CHANGE))
    revocations: Timing = field(default_factory=lambda: Timing(CHANGE))

    def take(self) -> dict[str, object]:
        """What was decided since the last call, as JSON; counting begins again at zero.

        A worker calls it, and the first process adds the counts to its own. Workers neither grant
        nor revoke.
        """
        verdicts, denied, decisions = dict(+self.verdicts), dict(+self.denied), self.decisions
        self.verdicts.subtract(verdicts)
        self.denied.subtract(denied)
        self.decisions = Timing(decisions.bounds)
        return {
            "verdicts": verdicts,
            "denied": denied,
            "decisions": [decisions.counts, decisions.seconds],
        }

    def merge(self, taken: dict[str, Any]) -> None:
        """Adds what `take` returned in another process; raises ValueError if it cannot be that."""
        match taken:
            case {
                "verdicts": dict(verdicts),
                "denied": dict(denied),
                "decisions": [list(counts), int() | float() as seconds],
            } if (
                all(map(_is_count, (*verdicts.values(), *denied.values(), *counts, int(seconds))))
                and len(counts) == len(self.decisions.counts)
                and max(len(self.verdicts | verdicts), len(self.denied | denied)) <= NAMES
                and all(len(name) <= LONGEST_NAME for name in (*verdicts, *denied))
            ):
                self.verdicts.update(verdicts)
                self.denied.update(denied)
                self.decisions.merge(counts, seconds)
            case _:
                raise ValueError("these are no counts")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 53
