"""`capport explain`, `portal.explain` and `POST /api/v1/explain` are one answer."""

import asyncio
import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from capport.core.explanation import document
from commandline import capport
from conftest import SOON, StartPortal

POLICY = """\
clients:
  - {address: 127.0.0.8, access: blocked}
limits:
  require_conditions: [127.0.0.1]
"""


def command(folder: Path, client: str, method: str, url: str) -> dict[str, Any]:
    asked = ["--sessions", str(folder / "sessions.db"), "--client", client, "--method", method]
    ran = capport("explain", str(folder / "policy.yaml"), "--json", *asked, url)
    ran.check_returncode()
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def post(path: Path, client: str, method: str, url: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SOON)
        connection.connect(str(path))
        asking = http.client.HTTPConnection("localhost")
        asking.sock = connection
        body = json.dumps({"client": client, "url": url, "method": method})
        asking.request("POST", "/api/v1/explain", body, {"Content-Type": "application/json"})
        said: dict[str, Any] = json.loads(asking.getresponse().read())
    return said


def alike(said: object) -> object:
    """Less what a second changes."""
    return json.loads(re.sub(r"known for \d+ s more", "known for a while", json.dumps(said)))


@pytest.mark.parametrize(
    ("client", "known", "asked", "status", "rule"),
    [
        ("127.0.0.1", False, "GET http://127.0.0.1:22/", 511, "unknown_client"),
        ("127.0.0.1", True, "GET http://127.0.0.1:22/", None, "open_session"),
        ("127.0.0.1", True, "PUT http://127.0.0.1:22/", 428, "precondition_required"),
        ("127.0.0.1", True, "GET http://224.0.0.1/", 502, "closed_place"),
        ("127.0.0.1", False, "GET http://224.0.0.1/", 511, "unknown_client"),
        ("127.0.0.8", True, "GET http://127.0.0.1:22/", 511, "blocked_client"),
        (
            *("127.0.0.1", False, "GET http://captive.apple.com/hotspot-detect.html", 302),
            "connectivity_check",
        ),
    ],
)
async def test_all_three_say_the_same(
    portal: StartPortal,
    tmp_path: Path,
    client: str,
    known: bool,
    asked: str,
    status: int | None,
    rule: str,
) -> None:
    method, url = asked.split()
    head = f"{method} {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n"
    async with portal(POLICY, sessions=str(tmp_path / "sessions.db")) as it:
        if known:
            it.grant(client)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port, local_addr=(client, 0))
        writer.write(head.encode())
        await reader.read(1)
        writer.close()
        flow = it.flows.requests[-1]
        in_mitmproxy = document(it.keeper.explanation(flow), it.gate.policy)
        shown = it.keeper.explain(flow)
        by_api = await asyncio.to_thread(post, tmp_path / "api.sock", client, method, url)
        by_command = await asyncio.to_thread(command, tmp_path, client, method, url)
    assert alike(in_mitmproxy) == alike(by_api)
    assert alike({name: by_command[name] for name in by_api}) == alike(by_api)
    assert (by_api["status"], by_api["rules"][-1]["rule"]) == (status, rule)
    assert by_api["closed"] is (rule == "closed_place")
    lines = [f"{one['rule']}: {one['because'] or 'says nothing'}" for one in by_api["rules"]]
    assert str(alike(shown)).endswith(str(alike("\n".join(lines))))
