"""Compares two reports: what a change to an app did, and which findings were known before."""

from collections.abc import Iterator, Mapping
from typing import Any

type Document = Mapping[str, Any]
"""A report, as `summary.document` makes it."""

_TITLES = {
    "new": "New",
    "gone": "Gone",
    "still": "Still there",
    "not_tested": "Not tested this time",
}


def fingerprints(document: Document) -> dict[str, Document]:
    """The findings of a report, by fingerprint."""
    return {str(it["fingerprint"]): it for it in document["findings"]}


def compare(before: Document, after: Document) -> dict[str, list[Any]]:
    """Compares two reports. The result is JSON: lists of findings, as in a report.

    `refused` is how many requests were refused in each. `not_tested` are the findings of the first
    whose rule the second could not test.
    """
    first, second = fingerprints(before), fingerprints(after)
    untested = {it["id"] for it in after["not_tested"]}
    left = [it for name, it in first.items() if name not in second]
    return {
        "refused": [_refused(before), _refused(after)],
        "new": [it for name, it in second.items() if name not in first],
        "gone": [it for it in left if it["id"] not in untested],
        "still": [it for name, it in second.items() if name in first],
        "not_tested": [it for it in left if it["id"] in untested],
    }


def lines_of(compared: Mapping[str, list[Any]]) -> Iterator[str]:
    """The comparison as text for people."""
    yield "Requests refused: {} in the first, {} in the second".format(*compared["refused"])
    for member, title in _TITLES.items():
        yield f"{title}: {len(compared[member]) or 'none'}"
        for finding in compared[member]:
            yield f"  {finding['severity']} {finding['id']}: {finding['seen']}"


def _refused(document: Document) -> int:
    return sum(sum(client["refused"].values()) for client in document["clients"])
