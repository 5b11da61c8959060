"""The report on the flows that mitmproxy shows: all findings, and those that rest on one flow."""

from collections.abc import Iterable, Sequence

from mitmproxy import ctx, exceptions
from mitmproxy.flow import Flow

from capport.proxy.flows.saved_flows import events_of_flows
from capport.report.findings import Finding
from capport.report.recording import record
from capport.report.summary import Report, report_on

MOST = 2000
"""The most flows of one client in which findings are looked for: its newest."""


def report_on_flows(flows: Iterable[Flow]) -> Report:
    """The report on these flows."""
    return report_on(events_of_flows(flows))


def findings_on(flow: Flow, flows: Sequence[Flow]) -> list[Finding]:
    """The findings that rest on `flow`. `flows` may contain other clients' flows too."""
    own = record(events_of_flows([flow]))
    times = {one.time for client in own.clients for one in client.everything()}
    same = [one for one in flows if _client(one) == _client(flow)][-MOST:]
    found = report_on_flows(same).findings
    return [one for one in found if any(at.time in times for at in one.seen.evidence)]


def flows_shown() -> Sequence[Flow]:
    """All flows that mitmproxy keeps; none in mitmdump, which keeps none."""
    try:
        kept: Sequence[Flow] = ctx.master.commands.call("view.flows.resolve", "@all")
    except exceptions.CommandError:
        return []
    return kept


def _client(flow: Flow) -> str | None:
    peer = flow.client_conn.peername
    return peer[0] if peer else None
