"""A finding: a rule that a client broke, what was seen of it, and on which requests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capport.report.agents import UNNAMED, Agent
from capport.report.recording import ClientRecord, Record

EVIDENCE = 20
"""How many requests or handshakes a finding lists; the others are counted."""


class Severity(StrEnum):
    """How bad it is: an `error` harms people or data, a `warning` the network or the app."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    def reaches(self, level: "Severity") -> bool:
        """Whether this is as bad as `level`, or worse."""
        order = list(Severity)
        return order.index(self) >= order.index(level)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rule saw of one program at one host: a sentence, and the records that show it."""

    sentence: str
    evidence: Sequence[Record]
    host: str = ""
    agent: Agent = UNNAMED


class NotTested(Exception):
    """A client's record cannot show whether it breaks a rule; the text says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `look` finds where a client breaks it; `change` and `no_fault` are advice.

    `look` raises NotTested, before it yields anything.
    """

    severity: Severity
    section: str
    look: Callable[[ClientRecord], Iterator[Seen]]
    title: str
    change: str
    no_fault: str

    @property
    def id(self) -> str:
        """The name of `look`, with hyphens: `retries-511`."""
        return self.look.__name__.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a client broke. `known_before` is whether a baseline has it."""

    rule: Rule
    client: str
    seen: Seen
    known_before: bool = False

    @property
    def fingerprint(self) -> str:
        """The same in two runs for the same fault: no address, time, count or version in it."""
        return f"{self.rule.id} {self.seen.agent.name or '-'} {self.seen.host or '-'}"

    @property
    def evidence(self) -> Sequence[Record]:
        """The first of the records that show it."""
        return self.seen.evidence[:EVIDENCE]

    @property
    def more(self) -> int:
        """How many further records show it."""
        return len(self.seen.evidence) - len(self.evidence)

    def __str__(self) -> str:
        return f"{self.rule.severity} {self.rule.id}: {self.seen.sentence} ({self.rule.section})"


class Findings(tuple[Finding, ...]):
    """Findings that say in an assertion's message what a person needs."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines: list[str] = []
        for finding in self:
            lines += [str(finding), *(f"    {one}" for one in finding.evidence)]
            lines += [f"    and {finding.more} more"] if finding.more else []
            lines += [f"  change: {finding.rule.change}", f"  no fault: {finding.rule.no_fault}"]
        return "\n".join(["", *lines]) if lines else "()"
