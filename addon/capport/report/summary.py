"""The report: what each client did, the findings, and what the record could not show."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from capport.events import stamp
from capport.report.findings import Finding, Findings, NotTested, Rule, Seen, Severity
from capport.report.recording import ClientRecord, Handshake, Recording, Request, record
from capport.report.rules import RULES
from capport.report.uses import use_of

VERSION = 1
"""The version of the JSON document. It grows when a member changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class Untested:
    """A rule that no client's record could show, and why not."""

    rule: Rule
    because: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a portal did to clients. `kept` are the rules that were tested and that nobody broke."""

    recording: Recording
    findings: Findings
    not_tested: tuple[Untested, ...]
    kept: tuple[Rule, ...]

    @property
    def requests(self) -> list[Request]:
        """The requests of all clients, in the order of time."""
        found = [one for client in self.recording.clients for one in client.requests]
        return sorted(found, key=lambda it: it.time)

    @property
    def handshakes(self) -> list[Handshake]:
        """The TLS handshakes of all clients, in the order of time."""
        found = [one for client in self.recording.clients for one in client.handshakes]
        return sorted(found, key=lambda it: it.time)

    def __repr__(self) -> str:
        """Short, because pytest shows it where an assertion on a report fails."""
        seen = f"{len(self.requests)} requests, {len(self.handshakes)} handshakes"
        return f"<Report: {seen}, {len(self.findings)} findings>"

    def errors(self) -> Findings:
        """The findings that are errors. In a test: `assert not report.errors()`."""
        return self.at_least(Severity.ERROR)

    def warnings(self) -> Findings:
        """The findings that are warnings or errors."""
        return self.at_least(Severity.WARNING)

    def at_least(self, level: Severity) -> Findings:
        """The findings of that severity or worse that no baseline has."""
        return Findings(
            it for it in self.findings if it.rule.severity.reaches(level) and not it.known_before
        )

    def without(self, known: Collection[str]) -> "Report":
        """The same report, with the findings marked whose fingerprints are `known` already."""
        marked = (replace(it, known_before=it.fingerprint in known) for it in self.findings)
        return replace(self, findings=Findings(marked))


def report_on(events: Iterable[Mapping[str, object]], until: float | None = None) -> Report:
    """The report on events, which are in the order of time. The record ends at `until`."""
    return report_of(record(events, until=until))


def report_of(recording: Recording) -> Report:
    """The report on a recording, by every rule."""
    findings: list[Finding] = []
    untested: list[Untested] = []
    kept: list[Rule] = []
    for rule in RULES:
        reasons: list[str] = []
        found: list[Finding] = []
        for client in recording.clients:
            try:
                found += [Finding(rule, client.id, seen) for seen in _merged(rule.look(client))]
            except NotTested as error:
                reasons.append(str(error))
        findings += found
        if len(reasons) == len(recording.clients):
            because = Counter(reasons).most_common(1)[0][0] if reasons else "no client was seen"
            untested.append(Untested(rule, because))
        elif not found:
            kept.append(rule)
    worst = list(reversed(Severity))
    findings.sort(key=lambda it: worst.index(it.rule.severity))
    return Report(recording, Findings(findings), tuple(untested), tuple(kept))


def _merged(found: Iterable[Seen]) -> list[Seen]:
    """One for each program and host: the first sentence, and the evidence of all."""
    merged: dict[tuple[str, str], list[Seen]] = {}
    for seen in found:
        merged.setdefault((seen.agent.name, seen.host), []).append(seen)
    return [_as_one(seen) for seen in merged.values()]


def _as_one(found: list[Seen]) -> Seen:
    if len(found) == 1:
        return found[0]
    evidence = list({id(one): one for seen in found for one in seen.evidence}.values())
    sentence = f"{found[0].sentence}; and {len(found) - 1} more of the kind"
    return replace(found[0], sentence=sentence, evidence=evidence)


# --- what each client did ------------------------------------------------------------------------


def by_status(client: ClientRecord) -> dict[str, int]:
    """How many requests the portal answered with each status."""
    counts: Counter[str] = Counter()
    for request in client.refusals:
        counts[str(request.status or "tunnel")] += request.count
    return dict(sorted(counts.items()))


def by_host(client: ClientRecord) -> dict[str, dict[str, int]]:
    """The credentials that the client offered to the portal, for each host; never their values."""
    found: dict[str, dict[str, int]] = {}
    for request in client.refusals:
        if request.cookies or request.authorizations:
            sent = found.setdefault(request.host, {"cookies": 0, "authorizations": 0})
            sent["cookies"] += request.cookies * request.count
            sent["authorizations"] += request.authorizations * request.count
    return found


def by_outcome(client: ClientRecord) -> dict[str, int]:
    """How many TLS handshakes ended in each way."""
    counts: Counter[str] = Counter()
    for shake in client.handshakes:
        how = f" ({shake.alert or 'hung up'})" if shake.outcome == "rejected" else ""
        counts[f"{shake.outcome}{how}"] += shake.count
    return dict(sorted(counts.items()))


def by_use(client: ClientRecord) -> dict[tuple[str, str, str], int]:
    """How many requests were of each use: by name, section and User-Agent."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for request in client.refusals:
        if use := use_of(request):
            counts[use.name, use.section, request.agent] += request.count
    return dict(counts.most_common(50))


def did_next(client: ClientRecord) -> str:
    """What the client did after its first refusal, in a few words."""
    refused: list[Request | Handshake] = [*client.refusals]
    refused += [shake for shake in client.handshakes if shake.failed]
    if not refused:
        return "was never refused"
    first = min(one.time for one in refused)
    answered_by = {request.answered_by for request in client.requests if request.time >= first}
    steps = (
        (sum(one.count for one in refused) > 1, "asked again"),
        (any(change.event == "dropped" for change in client.changes), "was dropped for a time"),
        ("login server" in answered_by, "went to the login server"),
        (any(grant.time >= first for grant in client.grants), "was granted a session"),
        ("origin" in answered_by, "reached an origin"),
    )
    return ", ".join(said for happened, said in steps if happened) or "gave up"


# --- as JSON -------------------------------------------------------------------------------------


def document(report: Report) -> dict[str, object]:
    """The report as JSON. Its schema is report.schema.json, and its members stay as they are."""
    recording = report.recording
    return {
        "version": VERSION,
        "from": None if recording.began is None else stamp(recording.began),
        "until": None if recording.until is None else stamp(recording.until),
        "events_left_out": recording.left_out,
        "lines_not_read": recording.unread,
        "clients": [_client(client) for client in recording.clients],
        "findings": [_finding(finding) for finding in report.findings],
        "not_tested": [
            {"id": it.rule.id, "section": it.rule.section, "because": it.because}
            for it in report.not_tested
        ],
        "kept": [rule.id for rule in report.kept],
    }


def _client(client: ClientRecord) -> dict[str, object]:
    return {
        "client": client.address or None,
        "mac": client.mac or None,
        "name": client.name or None,
        "refused": by_status(client),
        "passed": sum(request.count for request in client.requests if not request.refused),
        "credentials": [{"host": host, **sent} for host, sent in by_host(client).items()],
        "handshakes": by_outcome(client),
        "uses": [
            {"use": name, "section": section, "agent": agent or None, "count": count}
            for (name, section, agent), count in by_use(client).items()
        ],
        "next": did_next(client),
    }


def _finding(finding: Finding) -> dict[str, object]:
    rule, seen = finding.rule, finding.seen
    return {
        "id": rule.id,
        "severity": str(rule.severity),
        "section": rule.section,
        "client": finding.client,
        "agent": seen.agent.name or None,
        "host": seen.host or None,
        "seen": seen.sentence,
        "change": rule.change,
        "no_fault": rule.no_fault,
        "evidence": [{"time": stamp(one.time), "what": str(one)} for one in finding.evidence],
        "more": finding.more,
        "fingerprint": finding.fingerprint,
        "known_before": finding.known_before,
    }
