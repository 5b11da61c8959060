"""The charts of a report, as SVG: each client's timeline, and its retries over time.

Positions in time are percentages, so that a chart fits any width and its text stays readable.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from capport.report.markup import Node, tag
from capport.report.recording import ClientRecord, Handshake, Record, Request
from capport.report.rules import attempts_of
from capport.report.wording import how_long, some, time_of_day

_BINS = 150  # bars in a lane, at most
_LANE, _BAR = 44, 22  # pixels: the height of a lane, and of its highest bar
_PLOTS = 6  # requests whose retries are plotted, those with most attempts
_SHOWN = 200  # attempts of one request that are plotted
_TICKS = 4


type _Lane = tuple[str, str, Sequence[Record]]
"""Its name, its class in the style sheet, and what is in it."""


def timeline(client: ClientRecord, began: float, until: float) -> Node:
    """What a client did between two times: a lane for each kind of thing."""
    lanes = [lane for lane in _lanes(client) if lane[-1]]
    scale = _scale(began, until)
    height = _LANE * (len(lanes) + 1) + 18
    counts = ", ".join(f"{name}: {_counted(records)}" for name, _, records in lanes)
    label = f"Timeline of {client.id}: {counts or 'nothing'}"
    return tag(
        "svg",
        *(_tick(number, began, until, height) for number in range(_TICKS + 1)),
        *(_lane(*lane, number * _LANE, scale) for number, lane in enumerate(lanes)),
        _session(client, len(lanes) * _LANE, scale, until),
        class_="timeline",
        width="100%",
        height=str(height),
        role="img",
        aria_label=label,
    )


def retries(client: ClientRecord) -> list[Node]:
    """A plot for each request that was repeated: the attempts over the time since the first."""
    groups = [group for group in attempts_of(client) if len(group) > 2]
    groups.sort(key=len, reverse=True)
    return [_plot(group) for group in groups[:_PLOTS]]


def _lanes(client: ClientRecord) -> list[_Lane]:
    failed = [shake for shake in client.handshakes if shake.failed]
    taken = [shake for shake in client.handshakes if not shake.failed]
    passed = [request for request in client.requests if not request.refused]
    return [
        ("Requests refused", "refused", client.refusals),
        ("Requests forwarded", "passed", passed),
        ("TLS handshakes that failed", "refused", failed),
        ("TLS handshakes accepted or let through", "passed", taken),
    ]


def _lane(
    name: str, kind: str, records: Sequence[Record], top: float, scale: Callable[[float], float]
) -> list[Node]:
    bins = defaultdict[int, list[Record]](list)
    for record in records:
        bins[round(scale(record.time) / 100 * _BINS)].append(record)
    most = max(map(_counted, bins.values()))
    floor = top + _LANE - 4
    bars = [tag("text", f"{name}: {_counted(records)}", x="0", y=f"{top + 13:g}")]
    for number, (first, *others) in sorted(bins.items()):
        size = 6 + (_BAR - 6) * math.sqrt(_counted([first, *others]) / most)
        said = f"{time_of_day(first.time)}  {first}"
        if others:
            said += f", and {len(others)} more until {time_of_day(others[-1].time)}"
        bars.append(_bar(said, kind, _percent(number / _BINS * 100), "3", floor - size, size))
    return bars


def _session(
    client: ClientRecord, top: float, scale: Callable[[float], float], until: float
) -> list[Node]:
    """The lane of its sessions: a bar from each grant to the end of the session."""
    spans, open_since = [], None
    for change in client.changes:
        if change.event == "granted" and open_since is None:
            open_since = change.time
        elif change.event in {"revoked", "expired"} and open_since is not None:
            spans.append((open_since, change.time))
            open_since = None
    if open_since is not None:
        spans.append((open_since, until))
    nodes = [tag("text", f"Sessions: {len(spans)}", x="0", y=f"{top + 13:g}")]
    for start, end in spans:
        left, width = scale(start), _percent(max(scale(end) - scale(start), 0.5))
        said = f"known from {time_of_day(start)} to {time_of_day(end)}"
        nodes.append(_bar(said, "session", _percent(left), width, top + _LANE - 16, 10))
    return nodes


def _bar(said: str, kind: str, left: str, width: str, top: float, height: float) -> Node:
    at = {"x": left, "y": f"{top:.1f}", "width": width, "height": f"{height:.1f}"}
    return tag("rect", tag("title", said), class_=kind, **at)


def _tick(number: int, began: float, until: float, height: int) -> list[Node]:
    share = 100 * number / _TICKS
    x, since = _percent(share), (until - began) * number / _TICKS
    line = tag("line", class_="grid", x1=x, x2=x, y1="0", y2=str(height - 18))
    if number % 2:  # there is room for every second label on a narrow page
        return [line]
    anchor = "start" if not number else "end" if number == _TICKS else "middle"
    said = time_of_day(began) if not number else f"+{how_long(since)}"
    return [line, tag("text", said, class_="tick", x=x, y=str(height - 3), text_anchor=anchor)]


def _plot(group: list[Request]) -> Node:
    first, shown = group[0], group[:_SHOWN]
    span = max(shown[-1].time - first.time, 0.001)
    steps, dots = "M0 100", list[Node]()
    for number, request in enumerate(shown):
        x = f"{1000 * (request.time - first.time) / span:.1f}"
        y = f"{100 - 100 * number / (len(shown) - 1):.1f}"
        steps += f"H{x}V{y}"
        title = tag("title", f"attempt {number + 1}: {time_of_day(request.time)}")
        dots.append(tag("path", title, class_="dot", d=f"M{x} {y}h0"))
    waits = [after.time - before.time for before, after in pairwise(shown)]
    said = (
        f"{some(len(group), 'attempt')} in {how_long(group[-1].time - first.time)};"
        f" waits from {how_long(min(waits))} to {how_long(max(waits))}"
    )
    chart = tag(
        "svg",
        tag("path", class_="steps", d=steps),
        dots,
        viewBox="0 0 1000 100",
        preserveAspectRatio="none",
        class_="retries",
        width="100%",
        height="72",
        role="img",
        aria_label=f"{first.method} {first.url}: {said}",
    )
    return tag(
        "figure",
        tag(
            "figcaption", tag("code", f"{first.method} {first.url}"), f" {first.agent[:60]}: {said}"
        ),
        chart,
        tag("p", tag("span", "first"), tag("span", f"+{how_long(span)}"), class_="axis"),
    )


def _scale(began: float, until: float) -> Callable[[float], float]:
    span = max(until - began, 0.001)
    return lambda time: min(100.0, max(0.0, 100 * (time - began) / span))


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def _counted(records: Sequence[Record]) -> int:
    return sum(one.count for one in records if isinstance(one, Request | Handshake))
