"""The report as one page: it needs no network and no script, and can be printed."""

from itertools import groupby

from capport.report import charts
from capport.report.as_text import credentials, heading
from capport.report.findings import Finding, Rule
from capport.report.markup import Node, page, style, tag
from capport.report.recording import ClientRecord
from capport.report.summary import Report, by_host, by_outcome, by_status, by_use, did_next
from capport.report.wording import clock, some

CLIENTS = 100
"""How many clients have a section of their own: those that did most."""

_RFC = "https://www.rfc-editor.org/rfc/rfc6585.html#"

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2126; --soft: #59636e; --line: #d5dae0;
  --panel: #f5f6f8; --error: #b3261e; --warning: #8a5300; --note: #1f5fa8; --passed: #1a7340;
  --refused: #b3261e; --session: #1a7340 }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e4e8ec; --soft: #a0aab4;
  --line: #363d45; --panel: #1d2126; --error: #ff8f85; --warning: #f0b45a; --note: #8cbcff;
  --passed: #63cb8d; --refused: #ff8f85; --session: #63cb8d } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 58rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .25rem }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 0 }
p { margin: .25rem 0 }
code, .time { font: .875em/1.4 ui-monospace, monospace }
a { color: inherit }
.soft, dt, .axis, figcaption { color: var(--soft) }
.finding { margin: 1rem 0; padding: .75rem 1rem; background: var(--panel);
  border-left: 4px solid var(--mark) }
.error { --mark: var(--error) } .warning { --mark: var(--warning) } .note { --mark: var(--note) }
.severity { color: var(--mark); text-transform: uppercase; font-size: .8rem; font-weight: 700;
  letter-spacing: .04em; margin-right: .5rem }
.seen { margin: .5rem 0 0 }
ol, ul { margin: .25rem 0 .5rem; padding-left: 1.25rem }
ol { list-style: none; padding-left: .75rem; border-left: 1px solid var(--line) }
.time { color: var(--soft); margin-right: .6em }
dl { display: grid; grid-template-columns: 7.5rem 1fr; gap: .15rem .75rem; margin: .5rem 0 }
dd { margin: 0; grid-column: 2 }
.client { margin: 1.5rem 0 2.5rem }
svg { display: block; overflow: visible }
.chart { margin: .75rem .5rem }
.timeline text { fill: var(--ink); font: 12px system-ui, sans-serif }
.timeline .tick { fill: var(--soft) }
.grid { stroke: var(--line) }
.refused { fill: var(--refused) } .passed { fill: var(--passed) } .session { fill: var(--session) }
figure { margin: 1rem .5rem }
figcaption { font-size: .875rem }
.retries { margin-top: .5rem; border-left: 1px solid var(--line);
  border-bottom: 1px solid var(--line) }
.steps, .dot { fill: none; stroke: var(--refused); vector-effect: non-scaling-stroke }
.steps { stroke-width: 1.5 } .dot { stroke-width: 7; stroke-linecap: round }
.axis { display: flex; justify-content: space-between; font-size: .75rem }
@media (max-width: 26rem) {
  body { padding: .75rem .5rem; font-size: .875rem }
  dl { grid-template-columns: 1fr } dd { margin: 0 0 .3rem .75rem; grid-column: 1 }
  .finding { padding: .5rem .6rem }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb;
    --panel: #fff; --error: #b3261e; --warning: #8a5300; --note: #1f5fa8; --passed: #1a7340;
    --refused: #b3261e; --session: #1a7340 }
  body { max-width: none; padding: 0; font-size: 10pt }
  * { print-color-adjust: exact }
  .finding, figure, .chart { break-inside: avoid }
  h2, h3 { break-after: avoid }
}
"""


def page_of(report: Report) -> str:
    """The whole page."""
    return page(
        tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("title", "What a portal does to clients"),
                tag("meta", name="viewport", content="width=device-width"),
                tag(
                    "meta",
                    http_equiv="Content-Security-Policy",
                    content="default-src 'none'; style-src 'unsafe-inline'",
                ),
                style(_STYLE),
            ),
            tag(
                "body",
                tag(
                    "header",
                    tag("h1", "What a portal does to clients"),
                    tag("p", heading(report), class_="soft"),
                ),
                tag("main", _findings(report), _untested(report), _clients(report)),
            ),
            lang="en",
        )
    )


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
        tag("li", tag("span", clock(one.time), class_="time"), str(one)) for one in finding.evidence
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
    rows: list[tuple[str, list[str]]] = [
        ("Refused", [f"{count} with {status}" for status, count in by_status(client).items()]),
        ("Offered", [f"{credentials(sent)} for {host}" for host, sent in by_host(client).items()]),
        ("TLS", [f"{count} {outcome}" for outcome, count in by_outcome(client).items()]),
        (
            "Uses",
            [
                f"{use}: {some(count, 'request')}{f' by {agent}' if agent else ''} [{section}]"
                for (use, section, agent), count in by_use(client).items()
            ],
        ),
        ("Then", [did_next(client)]),
    ]
    return tag(
        "article",
        tag("h3", client.id),
        tag(
            "dl",
            (
                node
                for name, values in rows
                if values
                for node in (tag("dt", name), *(tag("dd", value) for value in values))
            ),
        ),
        tag("div", charts.timeline(client, began, until), class_="chart"),
        charts.retries(client),
        class_="client",
    )


def _size(client: ClientRecord) -> int:
    return len(client.requests) + len(client.handshakes)
