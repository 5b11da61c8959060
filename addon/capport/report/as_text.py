"""The report as text for people, in 80 columns."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from capport.report.findings import Finding
from capport.report.recording import ClientRecord
from capport.report.summary import Report, by_host, by_outcome, by_status, by_use, did_next
from capport.report.wording import some, span, time_of_day
from capport.terminal import fitted, visible

WIDTH = 80
LISTED = 5  # requests or handshakes of a finding


def lines_of(report: Report) -> Iterator[str]:
    """The lines, without their ends."""
    yield from _wrapped(heading(report))
    yield from findings_of(report)
    yield ""
    if report.kept:
        kept = ", ".join(rule.id for rule in report.kept)
        yield from _wrapped(f"Tested and not seen: {kept}.", after="  ")
    if report.not_tested:
        yield "Not tested:"
        for untested in report.not_tested:
            yield from _wrapped(f"{untested.rule.id}: {untested.because}", "  ", "    ")
    for client in report.recording.clients:
        yield ""
        yield from _client(client)


def findings_of(report: Report) -> Iterator[str]:
    """The findings alone, each rule after an empty line."""
    for rule, group in groupby(report.findings, key=lambda it: it.rule):
        yield ""
        heading_of = f"{rule.severity.upper()} {rule.id} ({rule.section}): {rule.title}"
        yield from _wrapped(heading_of, after="  ")
        for finding in group:
            yield from _finding(finding)
        yield from _wrapped(f"Change: {rule.change}", "  ", "          ")
        yield from _wrapped(f"No fault: {rule.no_fault}", "  ", "            ")


def heading(report: Report) -> str:
    """What was recorded, in one sentence."""
    recording = report.recording
    requests = sum(one.count for client in recording.clients for one in client.refusals)
    shakes = sum(one.count for client in recording.clients for one in client.handshakes)
    clients = some(len(recording.clients), "client")
    said = f"{clients}: {some(requests, 'request')} refused, {some(shakes, 'TLS handshake')}"
    if recording.began is not None and recording.until is not None:
        said += f", {span(recording.began, recording.until)}"
    said += f". {some(len(report.findings), 'finding')}."
    known = sum(finding.known_before for finding in report.findings)
    said += f" {known} of them known before." if known else ""
    if recording.left_out:
        said += f" {some(recording.left_out, 'event')} more are not in this report."
    if recording.unread:
        said += f" {some(recording.unread, 'record')} could not be read."
    return said


def rows_of(client: ClientRecord) -> Iterator[tuple[str, list[str]]]:
    """What a client did, in rows: the name of each, and its values; some rows have none."""
    statuses = ", ".join(f"{count} with {status}" for status, count in by_status(client).items())
    yield "refused", [statuses] if statuses else []
    passed = sum(request.count for request in client.requests if not request.refused)
    yield "forwarded", [some(passed, "request")] if passed else []
    offered = by_host(client).items()
    yield "offered", [f"{_credentials(sent)} for {host}" for host, sent in offered]
    shakes = ", ".join(f"{count} {outcome}" for outcome, count in by_outcome(client).items())
    yield "TLS", [shakes] if shakes else []
    uses = [
        f"{use}: {some(count, 'request')}{f' by {agent}' if agent else ''} [{section}]"
        for (use, section, agent), count in by_use(client).items()
    ]
    yield "uses", uses
    yield "then", [did_next(client)]


def _credentials(sent: dict[str, int]) -> str:
    """`3 cookies, 1 HTTP credential`."""
    names = {"cookies": "cookie", "authorizations": "HTTP credential"}
    return ", ".join(some(sent[kind], name) for kind, name in names.items() if sent[kind])


def _finding(finding: Finding) -> Iterator[str]:
    before = " (known before)" if finding.known_before else ""
    yield from _wrapped(f"{finding.client}: {finding.seen.sentence}{before}", "  ", "    ")
    for one in finding.seen.evidence[:LISTED]:
        yield fitted(f"    {time_of_day(one.time)}  {one}", WIDTH).rstrip()
    if len(finding.seen.evidence) > LISTED:
        yield f"    and {len(finding.seen.evidence) - LISTED} more"


def _client(client: ClientRecord) -> Iterator[str]:
    yield from _wrapped(client.id)
    for name, values in rows_of(client):
        for number, value in enumerate(values):
            yield from _wrapped(value, f"  {'' if number else name:<11}", " " * 13)


def _wrapped(text: str, first: str = "", after: str = "") -> list[str]:
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=first, subsequent_indent=after, break_on_hyphens=False
    )
    return wrapper.wrap(visible(text))
