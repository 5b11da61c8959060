"""Figures: the rounds of our measurements and of the peers', their ratio, and how they are shown.

The rounds alternate, so other work of the machine slows all of them alike. A ratio is taken in each
round, and the spread of the ratios is the noise.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Missing(Exception):
    """Something that a benchmark needs is missing on this machine; says how to get it."""


class Promise(Enum):
    """A bound that a figure must keep."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line for each of `rows`, ours first. With `peer`, each other row is a ratio of it.

    `promise` bounds the first row: its ratio to the peer if `of_peer`, its maximum if `worst`, and
    otherwise its median.
    """

    name: str
    unit: str
    rows: Mapping[str, Sequence[float]]
    peer: str | None = None
    promise: tuple[Promise, float] | None = None
    of_peer: bool = False
    worst: bool = False

    def lines(self) -> list[str]:
        """The figure as text."""
        shown = [f"{self.name}  [{self.unit}]"]
        for who, values in self.rows.items():
            low, middle, high = spread(values)
            line = f"  {who:<46}{number(low):>10}{number(middle):>10}{number(high):>10}"
            if self.peer and who != self.peer:
                ratio = spread(self.ratios(who))
                line += f"   {number(ratio[1])}x ({number(ratio[0])} to {number(ratio[2])})"
            shown.append(line)
        if self.promise:
            shown.append(f"  {self.kept()}")
        return shown

    def as_json(self) -> dict[str, object]:
        """The figure for another program."""
        return {
            "name": self.name,
            "unit": self.unit,
            "rows": {who: [*values] for who, values in self.rows.items()},
            "peer": self.peer,
            "promise": self.kept() if self.promise else None,
        }

    def ratios(self, who: str) -> list[float]:
        """For each round, the row's value divided by the peer's."""
        assert self.peer
        pairs = zip(self.rows[who], self.rows[self.peer], strict=True)
        return [mine / peers for mine, peers in pairs]

    def kept(self) -> str:
        """Whether the promise is kept, and whether the noise leaves room for doubt."""
        assert self.promise
        how, bound = self.promise
        ours = next(iter(self.rows))
        low, middle, high = spread(self.ratios(ours) if self.of_peer else self.rows[ours])
        if self.worst:
            low = middle = high
        good = [x >= bound if how is Promise.AT_LEAST else x <= bound for x in (low, middle, high)]
        unit = f"times {self.peer}" if self.of_peer else self.unit
        said = f"promised: {how.value} {number(bound)} {unit}; "
        if all(good):
            return said + "kept"
        if not any(good):
            return said + "MISSED"
        return said + ("kept" if good[1] else "MISSED") + " by the median, not in every round"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def percentile(values: Sequence[float], of_100: float) -> float:
    """The value that `of_100` in a hundred do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * of_100 / 100))]


def alternate(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """`rounds` of each measure in turn, forwards and backwards, so that a drift cancels out."""
    rows: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in [*measures][:: -1 if number % 2 else 1]:
            rows[name].append(measures[name]())
    return rows


def number(value: float) -> str:
    """Three significant digits or so, without an exponent."""
    if 0 < abs(value) < 0.001:
        return "<0.001"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
