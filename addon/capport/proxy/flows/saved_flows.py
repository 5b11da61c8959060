"""Makes events of mitmproxy's flows, as if all clients had been watched."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mitmproxy import exceptions, http, io, tcp
from mitmproxy.flow import Flow

from capport.core.client import parse_address
from capport.events import Value, stamp
from capport.proxy.flows.flow_details import details_of, request_fields
from capport.proxy.flows.flow_marks import decided_on
from capport.report.recording import Recording, record

type Event = dict[str, Value]


class FlowFileError(ValueError):
    """A file that mitmproxy cannot read."""


def recording_of(path: Path) -> Recording:
    """What happened, according to the flows in a file. Raises FlowFileError or OSError."""
    recording = Recording()
    with path.open("rb") as file:
        return record(events_of_flows(_flows(path, file, recording), recording), recording)


def events_of_flows(flows: Iterable[Flow], recording: Recording | None = None) -> list[Event]:
    """The events of flows, by time.

    Flows that were saved without the portal count as forwarded, unless their status is 511. A flow
    whose time or client cannot be read is left out, and counted in `recording`.
    """
    recording = recording or Recording()
    timed: list[tuple[float, Event]] = []
    clients: dict[str, float] = {}
    accepted: set[str] = set()  # the connections whose handshake has its event
    for flow in flows:
        try:
            events = [(time, {"time": stamp(time), **it}) for time, it in _events(flow, accepted)]
        except (ValueError, OverflowError, OSError):  # there is no such time or address
            recording.unread += 1
            continue
        for time, event in events:
            client = str(event["client"])
            clients[client] = min(time, clients.get(client, time))
            timed.append((time, event))
    for client, time in clients.items():
        watched: Event = {"time": stamp(time), "event": "watched", "client": client}
        watched["kernel_forwards"] = False
        timed.append((time, watched))
    timed.sort(key=lambda it: (it[0], it[1]["event"] != "watched"))
    return [event for _, event in timed]


def _flows(path: Path, file: BinaryIO, recording: Recording) -> Iterator[Flow]:
    """Yields the flows before the first incomplete one, which mitmproxy may be writing."""
    any_read = False
    try:
        for flow in io.FlowReader(file).stream():
            any_read = True
            yield flow
    except exceptions.FlowReadException as error:
        if not any_read:
            raise FlowFileError(f"{path}: not a flow file of mitmproxy: {error}") from None
        recording.unread += 1


def _events(flow: Flow, accepted: set[str]) -> Iterator[tuple[float, Event]]:
    conn = flow.client_conn
    if conn.peername is None:
        return
    verdict, because = decided_on(flow)
    event: Event = {"client": str(parse_address(conn.peername[0]))}
    if isinstance(flow, http.HTTPFlow):
        refused = verdict != "Pass" if verdict else _status_of(flow) == 511
        if refused and conn.tls_established and conn.id not in accepted:
            # The portal answers inside TLS only if the client took its certificate.
            accepted.add(conn.id)
            outcome: Event = {"action": "intercept", "outcome": "accepted"}
            at = conn.timestamp_tls_setup or flow.request.timestamp_start
            name = conn.sni or flow.request.host
            yield at, {**event, "event": "tls", "sni": name, **outcome}
        event["event"] = "refused" if refused else "passed"
        event |= request_fields(flow) | details_of(flow) | {"because": because or None}
        if not verdict and flow.response and not refused:
            event["answered_by"] = "origin"
        yield flow.request.timestamp_start, {k: v for k, v in event.items() if v is not None}
    elif isinstance(flow, tcp.TCPFlow) and verdict:
        saved = flow.metadata["portal"].get("tls")
        if isinstance(saved, dict):
            yield flow.timestamp_created, event | {"event": "tls", **saved, "because": because}


def _status_of(flow: http.HTTPFlow) -> int | None:
    return flow.response.status_code if flow.response else None
