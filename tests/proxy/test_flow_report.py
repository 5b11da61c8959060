"""What mitmproxy and mitmweb show of a client: the report, the findings, and why it was refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mitmproxy import contentviews
from mitmproxy.addons import view

from conftest import Portal, StartPortal

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
