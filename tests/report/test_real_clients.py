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

INTERCEPT = "tls: {unknown: intercept, connect: alert}\n"
LIMIT = "limits: {unknown_requests: {count: 1, per: 1m}}\n"
HERE = ClientId("127.0.0.1")
CANARY = "s3cret"

PYTHON = """
import json, ssl, sys, urllib.request
def get(url, **fields):
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=fields), timeout=20).read()
    except OSError:
        pass
"""

# Each pause is twice the time since the request before, however slow the machine is.
PATIENT = """
import time
before, pause = time.monotonic(), 0.02
for _ in range(4):
    get(sys.argv[1])
    time.sleep(pause)
    now = time.monotonic()
    before, pause = now, 2 * (now - before)
get(sys.argv[1])
"""

# What a client does before it is granted a session, what it does afterwards, and what is found.
CLIENTS = {
    "curl once, and again when it is known": ("curl -sf $URL", "curl -sf $URL", set[str]()),
    "curl three times without waiting": (
        "for n in 1 2 3; do curl -sf $URL; done",
        "curl -sf $URL",
        {"retries-511"},
    ),
    "curl that checks certificates": ("curl -sf https://x.test/", "curl -sf $URL", set()),
    "curl that does not": (
        "curl -sfk https://x.test/",
        "curl -sf $URL",
        {"accepts-any-certificate"},
    ),
    "curl that goes on in plain HTTP": (
        "curl -sf https://x.test/ || curl -sf http://x.test/",
        "curl -sf $URL",
        {"plain-http-after-tls"},
    ),
    "curl with a password": (
        f"curl -sf -u me:{CANARY} -b id={CANARY} -e http://a:{CANARY}@b/?{CANARY} $URL?t={CANARY}",
        "curl -sf $URL",
        {"authorization-to-portal", "cookies-to-portal"},
    ),
    "curl with a password in the URL": (
        f"curl -sf http://me:{CANARY}@x.test/",
        "curl -sf $URL",
        {"authorization-to-portal"},
    ),
    "Python's urllib, which sends the password in the target and in Host": (
        f"python3 -c '{PYTHON}\nget(sys.argv[1])' http://me:{CANARY}@x.test/",
        "curl -sf $URL",
        {"authorization-to-portal"},
    ),
    "curl that obeys a 429": ("curl -sf $URL; curl -sf $URL", "curl -sf $URL", set()),
    "curl that asks again after a 429": (
        "for n in a b c; do curl -sf $URL$n; done",
        "curl -sf $URL",
        {"ignores-retry-after"},
    ),
    "wget, which sends what curl does not": (
        f"wget -q -O - --header 'Authorization: Bearer {CANARY}' $URL; wget -q -O - $URL",
        "wget -q -O - $URL",
        {"authorization-to-portal"},
    ),
    "Python's urllib that retries with more and more patience": (
        f"python3 -c '{PYTHON}{PATIENT}' \"$URL\"",
        "curl -sf $URL",
        {"retries-511"},
    ),
}


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
