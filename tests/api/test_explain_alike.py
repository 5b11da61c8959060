"""`capport explain`, `portal.explain` and `POST /api/v1/explain` are one answer."""

import asyncio
import http.client
import json
import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from capport.commands import writable_store
from capport.core.client import Address, Mac, parse_mac
from capport.core.explanation import document
from capport.linux import Neighbours
from capport.linux.local_routes import local_networks
from capport.service.service import Service
from capport.service.settings import Settings
from commandline import capport
from conftest import SOON, Origin, StartPortal
from ports import free_port

MAC = parse_mac("02:00:00:00:00:07")
POLICY = """\
clients:
  - {address: 127.0.0.8, access: blocked}
  - {address: 127.0.0.9, access: known}
  - {mac: "02:00:00:00:00:07", access: known}
walled_garden: ["127.0.0.1:ORIGIN"]
tls: {connect: answer}
limits:
  require_conditions: [127.0.0.1]
"""


OF_BOTH = ("client", "mac", "session", "verdict", "because", "closed")


class OneMac(Neighbours):
    """The neighbour table of a link on which 127.0.0.7 has a MAC: on loopback nobody has one."""

    def find_mac(self, address: Address) -> Mac | None:
        return MAC if address == ip_address("127.0.0.7") else None


def own_address() -> str:
    """An address of this machine at which it can be reached from elsewhere, if it has one."""
    hosts = (net for net in local_networks() if net.num_addresses == 1 and net.version == 4)
    return next((str(one[0]) for one in hosts if not one.is_loopback), "127.0.0.2")


def command(folder: Path, method: str, url: str, *client: str) -> dict[str, Any]:
    asked = ["--sessions", str(folder / "sessions.db"), "--method", method, "--client", *client]
    ran = capport("explain", str(folder / "policy.yaml"), "--json", *asked, url)
    ran.check_returncode()
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def post(path: Path, **asked: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SOON)
        connection.connect(str(path))
        asking = http.client.HTTPConnection("localhost")
        asking.sock = connection
        body = json.dumps(asked)
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
        ("127.0.0.1", True, "GET http://127.0.0.1:PROXY/", 502, "closed_place"),
        ("127.0.0.1", True, "GET http://OWN:PROXY/", 502, "closed_place"),
        ("127.0.0.1", True, "GET https://127.0.0.1:PROXY/", None, "closed_place"),
        ("127.0.0.1", False, "GET http://127.0.0.1:PROXY/", 511, "unknown_client"),
        ("127.0.0.1", True, "GET http://OWN:22/", None, "open_session"),
        ("127.0.0.1", True, "GET https://127.0.0.1:22/", None, "open_session"),
        ("127.0.0.1", False, "CONNECT https://127.0.0.1:22/", None, "unknown_client"),
        ("127.0.0.1", False, "GET http://127.0.0.1:ORIGIN/", None, "walled_garden"),
        ("127.0.0.9", False, "GET http://127.0.0.1:22/", None, "known_by_rule"),
        ("127.0.0.9", False, "GET http://127.0.0.1:PROXY/", 502, "closed_place"),
        ("127.0.0.7", False, "GET http://127.0.0.1:22/", None, "known_by_rule"),
        ("127.0.0.7", False, "GET https://127.0.0.1:PROXY/", None, "closed_place"),
    ],
)
async def test_all_three_say_the_same(
    portal: StartPortal,
    origin: Origin,
    tmp_path: Path,
    client: str,
    known: bool,
    asked: str,
    status: int | None,
    rule: str,
) -> None:
    policy = POLICY.replace("ORIGIN", str(origin.port))
    async with portal(policy, sessions=str(tmp_path / "sessions.db")) as it:
        it.gate.neighbours = OneMac()
        for word, means in (("OWN", own_address()), ("PROXY", it.port), ("ORIGIN", origin.port)):
            asked = asked.replace(word, str(means))
        method, url = asked.split()
        netloc = urlsplit(url).netloc
        mac = it.gate.client(client).mac
        if known:
            it.grant(client)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port, local_addr=(client, 0))
        target = netloc if method == "CONNECT" else url
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: {netloc}\r\n\r\n".encode())
        await reader.read(1)
        writer.close()
        flow = it.flows.requests[-1]
        in_mitmproxy = document(it.keeper.explanation(flow), it.gate.policy)
        shown = it.keeper.explain(flow)
        posted = {"client": client, "method": method, "url": url} | ({"mac": mac} if mac else {})
        by_api = await asyncio.to_thread(post, tmp_path / "api.sock", **posted)
        who = (client, "--mac", mac) if mac else (client,)
        by_command = await asyncio.to_thread(command, tmp_path, method, url, *who)
    assert alike({name: by_command[name] for name in by_api}) == alike(by_api)
    # A CONNECT is a request of its own, and the others explain what follows it.
    members = OF_BOTH if method == "CONNECT" else by_api
    assert in_mitmproxy.keys() == by_api.keys()
    for member in members:
        assert alike(in_mitmproxy[member]) == alike(by_api[member])
    assert (by_api["status"], by_api["rules"][-1]["rule"]) == (status, rule)
    assert by_api["closed"] is (rule == "closed_place")
    decisive = (by_api["inside"] or by_api["rules"])[-1 if method == "CONNECT" else 0 :]
    lines = [f"{one['rule']}: {one['because'] or 'says nothing'}" for one in decisive]
    assert str(alike(shown)).endswith(str(alike("\n".join(lines))))


async def test_a_login_server_in_its_own_process_says_the_same(
    portal: StartPortal, tmp_path: Path
) -> None:
    policy, store = tmp_path / "login.yaml", str(tmp_path / "sessions.db")
    policy.write_text(f"login_server: {{listen: 127.0.0.1:{free_port()}, conditions: terms}}\n")
    async with portal(sessions=store) as it:
        it.grant("127.0.0.1")
        asked = {"client": "127.0.0.1", "url": f"http://127.0.0.1:{it.port}/"}
        settings = Settings(policy=policy, sessions=store, socket=tmp_path / "login.sock")
        login = Service(settings, open_sessions=writable_store)
        try:
            await login.start()
            by_login = await asyncio.to_thread(post, tmp_path / "login.sock", **asked)
        finally:
            await login.stop()
        by_proxy = await asyncio.to_thread(post, tmp_path / "api.sock", **asked)
    assert alike(by_login) == alike(by_proxy)
    assert (by_login["closed"], by_login["status"]) == (True, 502)
