"""Compares two reports: what a change to an app did, and which findings were known before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """The findings by their fingerprints, each with what was seen of it last.

    `refused` is how many requests were refused in each report. `unclear` are the findings of the
    first whose rule the second could not test.
    """

    refused: tuple[int, int]
    new: dict[str, Mapping[str, object]]
    gone: dict[str, Mapping[str, object]]
    still: dict[str, Mapping[str, object]]
    unclear: dict[str, Mapping[str, object]]


def fingerprints(document: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """The findings of a report, by fingerprint."""
    findings = document["findings"]
    assert isinstance(findings, list)
    return {str(it["fingerprint"]): it for it in findings}


def compare(before: Mapping[str, object], after: Mapping[str, object]) -> Comparison:
    """Compares two reports, as `summary.document` makes them."""
    first, second = fingerprints(before), fingerprints(after)
    skipped = after["not_tested"]
    assert isinstance(skipped, list)
    untested = {it["id"] for it in skipped}
    left = {name: it for name, it in first.items() if name not in second}
    return Comparison(
        refused=(_refused(before), _refused(after)),
        new={name: it for name, it in second.items() if name not in first},
        gone={name: it for name, it in left.items() if it["id"] not in untested},
        still={name: it for name, it in second.items() if name in first},
        unclear={name: it for name, it in left.items() if it["id"] in untested},
    )


def lines_of(comparison: Comparison) -> Iterator[str]:
    """The comparison as text for people."""
    yield "Requests refused: {} in the first, {} in the second".format(*comparison.refused)
    for title, findings in (
        ("New", comparison.new),
        ("Gone", comparison.gone),
        ("Still there", comparison.still),
        ("Not tested this time", comparison.unclear),
    ):
        yield f"{title}: {len(findings) or 'none'}"
        for finding in findings.values():
            yield f"  {finding['severity']} {finding['id']}: {finding['seen']}"


def document_of(comparison: Comparison) -> dict[str, object]:
    """The comparison as JSON: lists of findings, as in a report."""
    return {
        "refused": list(comparison.refused),
        "new": list(comparison.new.values()),
        "gone": list(comparison.gone.values()),
        "still": list(comparison.still.values()),
        "not_tested": list(comparison.unclear.values()),
    }


def _refused(document: Mapping[str, object]) -> int:
    clients = document["clients"]
    assert isinstance(clients, list)
    return sum(count for client in clients for count in client["refused"].values())
