"""What a command did behind each kind of portal: a table of 80 columns, and the findings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from capport.report import as_text
from capport.report.findings import Rule
from capport.report.rules import RULES
from capport.report.summary import Report
from capport.testing.kinds import PortalKind

_LEGEND = "E error  W warning  n note  . kept  ? not tested  x skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a command: its exit status and the report, or why it was skipped."""

    kind: PortalKind
    status: int | None = None
    report: Report | None = None
    skipped: str = ""


def lines_of(runs: Sequence[Run]) -> Iterator[str]:
    """The table; what was skipped, what was found behind each kind, and what was not tested."""
    found = [rule for rule in RULES if any(_cell(rule, run) in "EWn" for run in runs)]
    yield from _table(runs, found)
    if found:
        yield _LEGEND
    for run in runs:
        if run.report is None:
            yield ""
            yield from wrap(f"{run.kind.name} was skipped: {run.skipped}", as_text.WIDTH)
        elif run.report.findings:
            yield ""
            yield f"--- {run.kind.name}"
            yield from as_text.findings_of(run.report)
    if fooled := [run.kind.name for run in runs if run.report and _is_fooled(run, run.report)]:
        said = (
            f"It succeeded behind {', '.join(fooled)}, though none of its requests reached an"
            " origin: it took the portal's answer for the origin's, or does not look at answers."
        )
        yield ""
        yield from wrap(said, as_text.WIDTH)
    if untested := [rule.id for rule in RULES if all(_cell(rule, run) in "?x" for run in runs)]:
        yield ""
        said = f"Not tested: {', '.join(untested)}."
        yield from wrap(said, as_text.WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if not found:
        yield ""
        yield "No findings."


def _table(runs: Sequence[Run], found: Sequence[Rule]) -> Iterator[str]:
    rows = [
        ("", [run.kind.name for run in runs]),
        ("exit status", [str(run.status) if run.report else "x" for run in runs]),
        ("requests refused", [_shown(run, _refused) for run in runs]),
        ("TLS handshakes failed", [_shown(run, _failed) for run in runs]),
        *((rule.id, [_cell(rule, run) for run in runs]) for rule in found),
    ]
    width = max(len(title) for title, _ in rows)
    for title, cells in rows:
        columns = zip(cells, runs, strict=True)
        yield title.ljust(width) + "".join(
            cell.rjust(len(run.kind.name) + 1) for cell, run in columns
        )


def _cell(rule: Rule, run: Run) -> str:
    if run.report is None:
        return "x"
    if any(it.rule is rule for it in run.report.not_tested):
        return "?"
    if any(it.rule is rule for it in run.report.findings):
        return {"error": "E", "warning": "W"}.get(rule.severity, "n")
    return "."


def _shown(run: Run, count: Callable[[Report], int]) -> str:
    return "x" if run.report is None else str(count(run.report))


def _refused(report: Report) -> int:
    return sum(one.count for one in report.requests if one.refused)


def _failed(report: Report) -> int:
    return sum(one.count for one in report.handshakes if one.failed)


def _is_fooled(run: Run, report: Report) -> bool:
    """Whether the command reports success, though it met nothing but the portal."""
    reached = any(request.answered_by == "origin" for request in report.requests)
    passed = any(shake.outcome == "passed" for shake in report.handshakes)
    return run.status == 0 and _refused(report) > 0 and not reached and not passed
