"""Shows in mitmproxy, in place of our page, why a request was refused."""

from collections.abc import Callable

from mitmproxy import contentviews, http

from capport.proxy.flows.flow_marks import decided_on
from capport.proxy.flows.flow_report import findings_on, flows_shown


class RefusalContentview(contentviews.Contentview):
    """The verdict, the rules that led to it, and the findings that rest on this request.

    `explain` is `Hooks.explain`.
    """

    name = "Portal"

    def __init__(self, explain: Callable[[http.HTTPFlow], str]) -> None:
        self._explain = explain

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        """The text of the view. Raises ValueError if the flow is not a refusal."""
        flow = _refused(metadata)
        if flow is None or flow.response is None:
            raise ValueError("the portal did not refuse this")
        lines = [f"{flow.response.status_code} {flow.response.reason}", self._explain(flow)]
        if found := findings_on(flow, flows_shown()):
            lines += ["", "Findings:", *map(str, found)]
        return "\n".join(lines)

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        """Higher than any other view's for a refusal: all refusals have the same page."""
        return -1 if _refused(metadata) is None else 2


def _refused(metadata: contentviews.Metadata) -> http.HTTPFlow | None:
    """The flow whose response is the portal's; None if it is not."""
    flow = metadata.flow
    if not isinstance(flow, http.HTTPFlow) or metadata.http_message is not flow.response:
        return None
    return None if decided_on(flow)[0] in ("", "Pass") else flow
