"""What mitmproxy and mitmweb show of a client: the report, the findings, and why it was refused."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import contentviews
from mitmproxy.addons import view
from mitmproxy.test import tflow
from mitmproxy.utils import emoji

from capport.proxy.flows.flow_marks import SHORT_CAVEAT, mark
from capport.proxy.flows.saved_flows import recording_of
from conftest import Portal, StartPortal, until_closed
from proxy.hellos import over_tls, trusting_all
from proxy.http2 import INTERCEPT
from proxy.tls import check_the_certificate
from proxy.wire import OUTSIDE, Dialled, until

RETRIES = (
    b"GET http://x.example/ HTTP/1.1\r\nHost: x.example\r\n"
    b"User-Agent: axios/1.7\r\nConnection: close\r\n\r\n"
)


@asynccontextmanager
async def watched(portal: StartPortal) -> AsyncIterator[tuple[Portal, view.View]]:
    """A portal in a mitmproxy that keeps its flows, as those with a user interface do."""
    async with portal() as it:
        kept = view.View()
        it.master.addons.add(kept)
        yield it, kept


async def test_the_report_and_the_findings_of_a_flow_are_commands(portal: StartPortal) -> None:
    async with watched(portal) as (it, kept):
        call: Any = it.master.commands.execute
        for _ in range(3):
            assert b" 511 " in await it.talk(RETRIES)
        await asyncio.sleep(0)
        kept.focus.index = 1
        (line,) = [row for row in call("portal.findings @focus") if "retries-511" in row[0]]
        assert line[0].startswith("warning retries-511: ")
        lines = [row[0] for row in call("portal.report")]
    assert lines[0].startswith("1 client: 3 requests refused, ")
    assert any("retries-511" in line for line in lines)


async def test_a_refusal_is_shown_with_its_verdict_its_rules_and_its_findings(
    portal: StartPortal,
) -> None:
    async with watched(portal) as (it, kept):
        for _ in range(3):
            await it.talk(RETRIES)
        shown = kept[1]
        assert shown.response
        found = contentviews.prettify_message(shown.response, shown)
        asked = contentviews.prettify_message(shown.request, shown)
    assert found.view_name == "Portal"
    first, then, *rest = found.text.splitlines()
    assert first == "511 Network Authentication Required"
    assert then == "Then NetworkAuthenticationRequired: 127.0.0.1 has no session"
    assert "walled_garden: says nothing" in rest
    assert any(line.startswith("warning retries-511: ") for line in rest)
    assert asked.view_name != "Portal"


async def test_a_certificate_that_was_rejected_is_a_flow(
    portal: StartPortal, dialled: Dialled, tmp_path: Path
) -> None:
    dialled("127.0.0.1", 443)
    saved = tmp_path / "flows"
    async with portal(INTERCEPT, mode="transparent", save_stream_file=str(saved)) as it:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(check_the_certificate, it.port)
        await until(lambda: any(one.error for one in it.flows.streams))
        (one,) = it.flows.streams
    assert one.marked == ":name_badge:"
    assert one.comment == f"certificate rejected: TLS for {OUTSIDE}: unknown_ca; {SHORT_CAVEAT}"
    (client,) = recording_of(saved).clients
    (handshake,) = client.handshakes
    assert (handshake.outcome, handshake.alert) == ("rejected", "unknown_ca")


async def test_a_request_in_spite_of_the_certificate_error_says_so(
    portal: StartPortal, dialled: Dialled
) -> None:
    dialled("127.0.0.1", 443)
    async with portal(INTERCEPT, mode="transparent") as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        await over_tls((reader, writer), trusting_all([]))
        writer.write(b"GET / HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n")
        assert b" 511 " in await until_closed(reader)
        writer.close()
        (one,) = it.flows.requests
    assert one.comment.startswith("511: 127.0.0.1 has no session")
    assert one.comment.endswith(SHORT_CAVEAT)


@pytest.mark.parametrize(
    ("verdict", "marker", "words"),
    [
        ("Pass", ":white_check_mark:", "passed: why"),
        ("SignIn", ":key:", "302: why"),
        ("TooManyRequests", ":hourglass:", "429: why"),
        ("Refuse", ":no_entry:", "TLS refused: why"),
        ("BadRequest", ":no_entry:", "400: why"),
        ("NoVerdict", ":no_entry:", "no verdict: why"),
    ],
)
def test_each_kind_of_verdict_has_a_marker_and_words(verdict: str, marker: str, words: str) -> None:
    shown = tflow.tflow()
    mark(shown, verdict, "why")
    assert (shown.marked, shown.comment) == (marker, words)
    assert marker in emoji.emoji


async def test_clients_are_a_table(portal: StartPortal) -> None:
    async with portal() as it:
        it.grant("127.0.0.1")
        titles, row = it.master.commands.execute("portal.clients")
    assert titles[0] == "CLIENT"
    assert row[0] == "127.0.0.1"
    assert len(titles) == len(row)


async def test_mitmdump_keeps_no_flows_and_has_an_empty_report(portal: StartPortal) -> None:
    async with portal() as it:
        await it.talk(RETRIES)
        lines = it.master.commands.execute("portal.report")
    assert lines[0][0].startswith("0 clients: 0 requests refused")
