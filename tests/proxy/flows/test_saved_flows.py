"""A flow file of mitmproxy's is read as the events of clients that were watched."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http, io
from mitmproxy.test import tflow

from capport.proxy.flows.flow_marks import decided_on
from capport.proxy.flows.saved_flows import recording_of
from capport.report.summary import document, report_of
from conftest import Origin, StartPortal, until_closed
from json_schemas import schema_errors
from proxy.hellos import over_tls, trusting_all
from proxy.wire import Dialled

CANARY = "s3cret"


async def test_a_flow_file_of_mitmproxys_gives_a_report(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    tmp_path: Path,
) -> None:
    flows, place = tmp_path / "flows", f"127.0.0.1:{origin.port}"
    dialled("127.0.0.1", origin.port)
    head = (
        f"GET /a?q={CANARY} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: axios/1.7\r\n"
        f"Cookie: id={CANARY}\r\nAuthorization: Bearer {CANARY}\r\nConnection: close\r\n\r\n"
    ).encode()
    async with portal("tls: {unknown: intercept}\n", mode="transparent") as it:
        it.master.options.update(save_stream_file=str(flows))
        for _ in range(3):
            assert b" 511 " in await it.talk(head)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        await over_tls((reader, writer), trusting_all([]))
        writer.write(head)
        assert b" 511 " in await until_closed(reader)
        writer.close()
        it.grant("127.0.0.1")
        assert b" 200 " in await it.talk(head)
    found: dict[str, Any] = json.loads(json.dumps(document(report_of(recording_of(flows)))))
    assert schema_errors("report/report.schema.json", found) == []
    assert {finding["id"] for finding in found["findings"]} == {
        *("retries-511", "authorization-to-portal", "accepts-any-certificate", "cookies-to-portal")
    }
    (client,) = found["clients"]
    assert client["refused"] == {"511": 4}
    assert client["passed"] == 1
    assert client["next"] == "asked again, reached an origin"
    assert CANARY not in json.dumps(found)
    flows.write_bytes(flows.read_bytes()[:-9])  # as if mitmproxy were writing the last flow
    cut = recording_of(flows)
    assert (cut.unread, len(cut.clients[0].requests)) == (1, 4)


def saved(path: Path, *flows: http.HTTPFlow) -> Path:
    with path.open("wb") as file:
        for one in flows:
            io.FlowWriter(file).add(one)
    return path


@pytest.mark.parametrize(
    "marks", [{}, [], "Pass", {"verdict": "Pass"}, {"verdict": 1, "because": None}]
)
def test_a_flow_with_other_marks_than_ours_counts_as_far_as_they_say(
    tmp_path: Path, marks: Any
) -> None:
    shown = tflow.tflow(resp=True)
    shown.metadata["portal"] = marks
    (client,) = recording_of(saved(tmp_path / "flows", shown)).clients
    assert [request.status for request in client.requests] == [200]
    assert decided_on(shown)[1] == ""


@pytest.mark.parametrize("time", [1e300, -1e300, 1e14, float("inf"), float("nan")])
def test_a_flow_without_a_valid_time_is_counted_as_unread(tmp_path: Path, time: float) -> None:
    odd, good = tflow.tflow(resp=True), tflow.tflow(resp=True)
    odd.request.timestamp_start = time
    found = recording_of(saved(tmp_path / "flows", odd, good))
    assert (found.unread, len(found.clients[0].requests)) == (1, 1)


def test_a_flow_whose_client_has_no_address_is_counted_as_unread(tmp_path: Path) -> None:
    odd, good = tflow.tflow(resp=True), tflow.tflow(resp=True)
    odd.client_conn.peername = ("nowhere", 1)
    found = recording_of(saved(tmp_path / "flows", odd, good))
    assert (found.unread, len(found.clients[0].requests)) == (1, 1)
