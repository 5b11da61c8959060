"""Credentials of refused clients, and the portal's own codes and passwords, are nowhere.

RFC 6585 section 7.4. Everything that a mitmweb with the portal writes or serves is searched: its
log, the events, a flow file, a HAR file, its API and its websocket.
"""

import asyncio
import base64
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from ports import free_port
from proxy.mitmdump import Process, started

CANARY = "c4nary"
BASIC = base64.b64encode(f"user:{CANARY}".encode()).decode()
FIELDS = (
    f"Cookie: id={CANARY}\r\nCookie: also={CANARY}\r\nAuthorization: Bearer {CANARY}\r\n"
    f"Proxy-Authorization: Basic {BASIC}\r\n"
)
CAPPORT = str(Path(sys.executable).parent / "capport")
HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)"')


@asynccontextmanager
async def watching(folder: Path, *arguments: str) -> AsyncIterator[tuple[Process, "Web"]]:
    """A mitmweb with the portal, and a user that looks at everything in it."""
    web = free_port()
    files = {name: folder / name for name in ("flows", "events", "flows.har")}
    settings = {
        "web_port": web,
        "web_password": "look",
        "web_open_browser": "false",
        "save_stream_file": files["flows"],
        "hardump": files["flows.har"],
        "portal_events": files["events"],
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    async with started(folder, *options, *arguments, tool="mitmweb", store=None) as it:
        await it.says("Web server listening")
        async with Web(web) as looking:
            yield it, looking


class Web:
    """What mitmweb serves to a browser."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._auth = {"Authorization": "Bearer look"}
        self._client = AsyncHTTPClient(force_instance=True)
        self.seen: list[str] = []

    async def __aenter__(self) -> "Web":
        url = f"ws://127.0.0.1:{self._port}/updates"
        self._updates = await websocket_connect(
            HTTPRequest(url, headers={**self._auth, "Origin": f"http://127.0.0.1:{self._port}"}),
            on_message_callback=lambda text: self.seen.append(str(text)),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._updates.close()
        self._client.close()

    async def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self._port}{path}"
        answer = await self._client.fetch(HTTPRequest(url, headers=self._auth), raise_error=False)
        text = answer.body.decode("latin-1")
        self.seen.append(text)
        return text

    async def command(self, name: str, *arguments: str) -> str:
        """The result of one of mitmproxy's commands."""
        headers = {"Cookie": "_mitmproxy_xsrf=aa", "X-XSRFToken": "aa"}
        headers |= {**self._auth, "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self._port}/commands/{name}"
        asked = HTTPRequest(url, "POST", headers, json.dumps({"arguments": arguments}))
        answer = (await self._client.fetch(asked)).body.decode()
        self.seen.append(answer)
        value: str = json.loads(answer)["value"]
        return value

    async def look(self) -> list[dict[str, str]]:
        """Reads everything about each flow."""
        flows: list[dict[str, str]] = json.loads(await self.get("/flows"))
        for one in flows:
            for message in ("request", "response"):
                await self.get(f"/flows/{one['id']}/{message}/content/Auto.json")
                await self.get(f"/flows/{one['id']}/{message}/content/Raw.json")
        await self.get("/flows/dump")
        await self.get("/events")
        await self.get("/state")
        return flows


def assert_absent(secrets: tuple[str, ...], folder: Path, it: Process, web: Web) -> None:
    """None of `secrets` is in anything that the process wrote or served."""
    everything = {"log": it.log, "web": "\n".join(web.seen)}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "policy.yaml":
            everything[path.name] = path.read_bytes().decode("latin-1")
    assert {"flows", "events", "flows.har"} <= set(everything)
    for place, text in everything.items():
        for secret in secrets:
            assert secret not in text, (place, text[max(0, text.index(secret) - 200) :][:400])


async def output(*command: str, stdin: str = "") -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(stdin.encode())
    assert process.returncode == 0, command
    return out.decode()


async def made(policy: Path, conditions: str) -> str:
    """A new user's password, or a new voucher's code."""
    if conditions == "password":
        await output(CAPPORT, "user", "add", "ann", "--policy", str(policy), stdin=CANARY)
        return CANARY
    printed = await output(CAPPORT, "voucher", "new", "--count", "1", "--policy", str(policy))
    code = re.search(r"\b(?:[A-Z0-9]{4}-){3}[A-Z0-9]{4}\b", printed)
    assert code, printed
    return code[0]


async def test_what_a_refused_client_offered_is_nowhere(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("login_url: https://login.example.net/\n")
    async with watching(tmp_path, "--set", f"portal_policy={policy}") as (it, web):
        userinfo = f"user:{CANARY}@"
        for target, host in (
            ("http://x.example/", "x.example"),
            (f"http://{userinfo}x.example/", "x.example"),
            (f"http://{userinfo}x.example:8080/p?q", f"{userinfo}x.example:8080"),
            ("/", f"{userinfo}x.example"),
            (f"ftp://{userinfo}x.example/", "x.example"),
        ):
            head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{FIELDS}\r\n"
            answer = await it.ask(head.encode())
            assert answer.startswith(b"HTTP/1.1 511 ")
        for target in ("x.example:443", f"{userinfo}x.example:443"):
            tunnel = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{FIELDS}\r\n"
            assert b" 511 " in await it.ask(tunnel.encode())
        flows = await web.look()
        assert len(flows) == 7
        for one in flows:
            for form in ("curl", "httpie", "raw_request", "raw"):
                assert "x.example" in await web.command("export", form, f"@{one['id']}")
        it.process.terminate()
        assert await it.ended() == 0
        assert_absent((CANARY, BASIC), tmp_path, it, web)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    counted = {
        (one["host"], one["cookies"], one["authorizations"]) for one in events if "host" in one
    }
    assert counted == {("x.example", 2, 2), ("x.example", 2, 3)}
    printed = await output(CAPPORT, "report", "--flows", str(tmp_path / "flows"), "--json")
    assert CANARY not in printed
    (client,) = json.loads(printed)["clients"]
    assert client["credentials"] == [{"host": "x.example", "cookies": 14, "authorizations": 19}]


@pytest.mark.parametrize("conditions", ["password", "voucher"])
async def test_what_people_sign_in_with_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    login, policy = f"http://127.0.0.1:{free_port()}/", tmp_path / "policy.yaml"
    listen = login.partition("//")[2].rstrip("/")
    policy.write_text(
        f"login_url: {login}\nlogin_server: {{listen: {listen}, conditions: {conditions}}}\n"
        f"sessions: {{store: {tmp_path / 'sessions.db'}}}\n"
    )
    secret = await made(policy, conditions)
    async with watching(tmp_path, "--set", f"portal_policy={policy}") as (it, web):
        for typed in (f"not-{secret}", secret):
            jar = tmp_path / "jar"
            browser = ("curl", "-s", "-x", f"127.0.0.1:{it.port}", "-b", str(jar), "-c", str(jar))
            page = await output(*browser, "--noproxy", "", login)
            fields = dict(HIDDEN.findall(page)) | {"name": "ann", "code": typed, "password": typed}
            data = [
                part for pair in fields.items() for part in ("--data-urlencode", "=".join(pair))
            ]
            answer = await output(*browser, "--noproxy", "", *data, f"{login}sign-in")
        assert "127.0.0.1" in await output(CAPPORT, "clients", "--policy", str(policy)), answer
        await web.look()
        it.process.terminate()
        assert await it.ended() == 0
        (tmp_path / "jar").unlink()
        assert_absent((secret, quote_plus(secret)), tmp_path, it, web)
