"""Real clients behind a real portal: what each does is found, and no credential is kept."""

import asyncio
import json
import os
from pathlib import Path

import pytest

import requires
from capport.core.client import ClientId
from capport.report import as_text
from capport.report.as_page import page_of
from capport.report.recording import Recording, events_in, record
from capport.report.summary import Report, document, report_of
from conftest import SOON, Origin, StartPortal
from report.clients import CANARY, CLIENTS

INTERCEPT = "tls: {unknown: intercept, connect: alert}\n"
LIMIT = "limits: {unknown_requests: {count: 1, per: 1m}}\n"
HERE = ClientId("127.0.0.1")


@requires.tool("curl")
@requires.tool("wget")
@pytest.mark.parametrize("name", list(CLIENTS))
async def test_what_a_client_does_is_found(
    portal: StartPortal, origin: Origin, tmp_path: Path, name: str
) -> None:
    before, after, found = CLIENTS[name]
    url = f"http://127.0.0.1:{origin.port}/a"
    async with portal(INTERCEPT + (LIMIT if "429" in name else ""), events=True) as it:
        proxy = f"http://127.0.0.1:{it.port}"
        it.keeper.service.watch(HERE)
        await run(before, proxy, url)
        it.grant("127.0.0.1")
        await run(after, proxy, url)
        it.keeper.service.unwatch(HERE)
    report = report_on_file(tmp_path / "events.jsonl")
    assert {finding.rule.id for finding in report.findings} == found
    assert report.requests[-1].answered_by == "origin"
    everything = [
        (tmp_path / "events.jsonl").read_text(),
        *as_text.lines_of(report),
        json.dumps(document(report)),
        page_of(report),
    ]
    assert CANARY not in "".join(everything)


async def run(command: str, proxy: str, url: str) -> None:
    names = ("http_proxy", "https_proxy")
    environment = {"PATH": os.environ["PATH"], "URL": url} | dict.fromkeys(names, proxy)
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    await asyncio.wait_for(process.wait(), SOON)


def report_on_file(path: Path) -> Report:
    recording = Recording()
    return report_of(record(events_in(path.read_text().splitlines(), recording), recording))
