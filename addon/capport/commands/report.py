"""`capport report`: what a portal did to clients, from event files or from mitmproxy's flows."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from capport.commands import CommandError
from capport.commands.recordings import recorded_in_events, recorded_in_flows
from capport.report import as_text, comparison
from capport.report.findings import Severity
from capport.report.recording import record_lines
from capport.report.summary import VERSION, Report, document, report_of
from capport.terminal import visible

FOUND = 3
"""The exit status if there is a finding that `--fail-on` names."""

_LARGEST = 256 << 20  # bytes of a report


def report(arguments: Namespace) -> int:
    """Prints the report or the comparison, or writes the page. Returns the exit status."""
    if arguments.compare:
        return _compare(arguments)
    found = _report(arguments)
    if arguments.baseline:
        found = found.without(comparison.fingerprints(_document(arguments.baseline)))
    if arguments.html:
        from capport.report.as_page import page_of

        Path(arguments.html).write_text(page_of(found), encoding="utf-8")
        print(f"Wrote {arguments.html}.")
    elif arguments.json:
        print(json.dumps(document(found), indent=2))
    else:
        for line in as_text.lines_of(found):
            print(line)
    level = arguments.fail_on
    return FOUND if level and found.at_least(Severity(level)) else 0


def _compare(arguments: Namespace) -> int:
    before, after = (_document(path) for path in arguments.compare)
    compared = comparison.compare(before, after)
    if arguments.json:
        print(json.dumps(compared, indent=2))
    else:
        for line in comparison.lines_of(compared):
            print(visible(line))
    if arguments.fail_on is None:
        return 0
    level = Severity(arguments.fail_on)
    worst = (Severity(finding["severity"]) for finding in compared["new"])
    return FOUND if any(severity.reaches(level) for severity in worst) else 0


def _report(arguments: Namespace) -> Report:
    if arguments.flows:
        if arguments.events:
            raise CommandError("name event files, or a flow file with --flows, not both")
        return report_of(recorded_in_flows(arguments.flows))
    return report_of(recorded_in_events(arguments.events or ["events.jsonl"]))


def _document(path: str) -> Mapping[str, object]:
    """The report in a file that `--json` wrote, or the one on a file of events."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        text = file.read(_LARGEST)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "findings" in found:
        if found.get("version") != VERSION:
            raise CommandError(f"{path}: it is a report of another version; write it again")
        return found
    recording = record_lines(text.splitlines())
    if recording.began is None:
        raise CommandError(f"{path}: it is neither a report (--json) nor a file of events")
    return document(report_of(recording))
