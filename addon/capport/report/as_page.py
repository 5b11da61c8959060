"""The report as one page: it needs no network and no script, and can be printed."""

from importlib.resources import files
from itertools import groupby

from capport.report import charts
from capport.report.as_text import heading, rows_of
from capport.report.findings import Finding, Rule
from capport.report.markup import Node, page, style, tag
from capport.report.recording import ClientRecord
from capport.report.summary import Report
from capport.report.wording import time_of_day

CLIENTS = 100
"""How many clients have a section of their own: those that did most."""

_RFC = "https://www.rfc-editor.org/rfc/rfc6585.html#"

_STYLE = (files(__package__) / "style.css").read_text("utf-8")


def page_of(report: Report) -> str:
    """The whole page."""
    title, policy = "What a portal does to clients", "default-src 'none'; style-src 'unsafe-inline'"
    head = [
        tag("meta", charset="utf-8"),
        tag("title", title),
        tag("meta", name="viewport", content="width=device-width"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        style(_STYLE),
    ]
    header = tag("header", tag("h1", title), tag("p", heading(report), class_="soft"))
    main = tag("main", _findings(report), _untested(report), _clients(report))
    return page(tag("html", tag("head", head), tag("body", header, main), lang="en"))


def _findings(report: Report) -> Node:
    nodes = [
        _rule(rule, list(found)) for rule, found in groupby(report.findings, key=lambda it: it.rule)
    ]
    return tag(
        "section", tag("h2", "Findings"), nodes or [tag("p", "None. See below what was tested.")]
    )


def _rule(rule: Rule, found: list[Finding]) -> Node:
    anchor = "section-" + rule.section.rpartition(" ")[2]
    where = _RFC + ("appendix-B" if "appendix" in rule.section else anchor)
    return tag(
        "article",
        tag("h3", tag("span", str(rule.severity), class_="severity"), tag("code", rule.id)),
        tag("p", f"{rule.title[0].upper()}{rule.title[1:]}. ", tag("a", rule.section, href=where)),
        (node for finding in found for node in _finding(finding)),
        tag("p", tag("strong", "Change: "), rule.change),
        tag("p", tag("strong", "No fault: "), rule.no_fault, class_="soft"),
        class_=f"finding {rule.severity}",
    )


def _finding(finding: Finding) -> list[Node]:
    before = " (known before)" if finding.known_before else ""
    evidence = [
        tag("li", tag("span", time_of_day(one.time), class_="time"), str(one))
        for one in finding.evidence
    ]
    if finding.more:
        evidence.append(tag("li", f"and {finding.more} more", class_="soft"))
    sentence = f"{finding.seen.sentence}{before}"
    return [
        tag("p", tag("strong", f"{finding.client}: "), sentence, class_="seen"),
        tag("ol", evidence),
    ]


def _untested(report: Report) -> Node:
    kept = [tag("li", tag("code", rule.id), f": {rule.title}") for rule in report.kept]
    skipped = [tag("li", tag("code", it.rule.id), f": {it.because}") for it in report.not_tested]
    return tag(
        "section",
        tag("h2", "Tested and not seen"),
        tag("ul", kept) if kept else tag("p", "None."),
        tag("h2", "Not tested"),
        tag("ul", skipped) if skipped else tag("p", "None."),
    )


def _clients(report: Report) -> Node:
    clients = sorted(report.recording.clients, key=_size, reverse=True)
    began, until = report.recording.began or 0.0, report.recording.until or 0.0
    rest = len(clients) - CLIENTS
    return tag(
        "section",
        tag("h2", "Clients"),
        [_client(client, began, until) for client in clients[:CLIENTS]],
        tag("p", f"{rest} more clients did less, and have no section.") if rest > 0 else None,
        tag("p", "None.") if not clients else None,
    )


def _client(client: ClientRecord, began: float, until: float) -> Node:
    rows: list[Node] = []
    for name, values in rows_of(client):
        if values:
            rows += [tag("dt", name), *(tag("dd", value) for value in values)]
    return tag(
        "article",
        tag("h3", client.id),
        tag("dl", rows),
        tag("div", charts.timeline(client, began, until), class_="chart"),
        charts.retries(client),
        class_="client",
    )


def _size(client: ClientRecord) -> int:
    return len(client.requests) + len(client.handshakes)
