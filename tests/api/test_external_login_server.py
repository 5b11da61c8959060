"""An external login server in place of the embedded one: the API is there wherever sessions are.

With a real mitmdump, a real `capport run` and the example server, each in a process of its own.
"""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import requires
from api.portals import CHECKOUT, RUN, portal
from commandline import capport
from confdir import confdir
from conftest import SOON
from login.example import example
from login.house import Browser, free_port, until

PAGE = "http://www.example.org/news"


def _through(port: int, url: str) -> tuple[int, str]:
    """What a GET through the proxy at `port` gets: a status, and the link of a 511."""
    proxy = http.client.HTTPConnection("127.0.0.1", port, SOON)
    with contextlib.closing(proxy):
        proxy.request("GET", url, headers={"Accept": "application/problem+json"})
        answer = proxy.getresponse()
        body = answer.read()
        link = json.loads(body).get("login_url", "") if answer.status == 511 else ""
        return answer.status, str(link)


def _ask(api: Path, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("localhost", timeout=SOON)
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.settimeout(SOON)
        connection.sock.connect(str(api))
        sent = None if body is None else json.dumps(body)
        connection.request(method, f"/api/v1{path}", sent, {"Content-Type": "application/json"})
        got = connection.getresponse().read()
        return json.loads(got) if got else None


@pytest.mark.parametrize("way", RUN)
async def test_the_operators_own_login_server_grants_access(tmp_path: Path, way: str) -> None:
    async with example(tmp_path / "api.sock") as own:
        policy = f"login_url: http://127.0.0.1:{own}/?state={{state}}\n"
        async with portal(tmp_path, way, policy) as (port, api, _):
            status, link = await asyncio.to_thread(_through, port, PAGE)
            assert (status, urlsplit(link).port) == (511, own)
            browser = Browser(own, "127.0.0.1")
            right = await browser.post(f"/?{urlsplit(link).query}", {"word": "swordfish"})
            assert right.links == [PAGE]
            [session] = (await asyncio.to_thread(_ask, api, "GET", "/sessions"))["sessions"]
            assert (session["client"], session["by"], session["how"]) == (
                *("127.0.0.1", "api"),
                "state",
            )
            assert (await asyncio.to_thread(_through, port, PAGE))[0] != 511
        assert not api.exists()


@pytest.mark.parametrize("way", RUN)
async def test_without_a_state_in_its_url_it_names_the_client(tmp_path: Path, way: str) -> None:
    policy = "login_url: https://login.example.net/\n"
    async with portal(tmp_path, way, policy) as (port, api, _):
        status, link = await asyncio.to_thread(_through, port, PAGE)
        assert (status, link) == (511, "https://login.example.net/")
        granted = await asyncio.to_thread(_ask, api, "POST", "/sessions", {"client": "127.0.0.1"})
        assert granted["client"] == "127.0.0.1"
        assert (await asyncio.to_thread(_through, port, PAGE))[0] != 511
        await asyncio.to_thread(_ask, api, "DELETE", "/sessions/127.0.0.1")
        assert (await asyncio.to_thread(_through, port, PAGE))[0] == 511


@pytest.mark.parametrize("way", RUN)
async def test_a_client_that_signed_in_elsewhere_comes_back_through_the_proxy(
    tmp_path: Path, way: str
) -> None:
    """The page's commands suffice: `login_server` stays in the policy, and nothing is listed."""
    key, listen = ed25519.Ed25519PrivateKey.generate(), free_port()
    (tmp_path / "login").mkdir()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "login" / "return.pem").write_bytes(pem)
    policy = (
        "login_url: https://login.example.net/?state={state}\n"
        f"login_server: {{listen: '127.0.0.1:{listen}'}}\n"
    )
    async with portal(tmp_path, way, policy) as (port, _, _):
        _, link = await asyncio.to_thread(_through, port, PAGE)
        back = f"http://127.0.0.1:{listen}/return"
        said = {"aud": back, "state": link.partition("state=")[2], "jti": "1"}
        word = jwt.encode(said | {"exp": time.time() + 60}, key, "EdDSA")
        await until(lambda: _answers(listen), "the login server, listening")
        assert (await asyncio.to_thread(_through, port, f"{back}?g={word}"))[0] == 303
        assert (await asyncio.to_thread(_through, port, PAGE))[0] != 511


async def _answers(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


@requires.tool("curl")
async def test_the_readmes_calls_are_answered_as_it_says_where_the_log_says(tmp_path: Path) -> None:
    """Over the unix socket without a token, and over TCP with one, which TCP requires."""
    readme = (CHECKOUT / "addon/capport/api/README.md").read_text()
    calls = "".join(re.findall(r"<!-- api -->\n```console\n(.*?)```", readme, re.S))
    tcp = free_port()
    policy = "login_url: https://login.example.net/?state={state}\n"
    async with portal(tmp_path, "capport run", policy, f"portal_api=127.0.0.1:{tcp}") as (
        port,
        api,
        said,
    ):
        _, link = await asyncio.to_thread(_through, port, PAGE)
        token = await asyncio.to_thread(_new_token, tmp_path)
        tried = 0
        for part in calls.split("$ ")[1:]:
            command, *printed = part.rstrip("\n").split("\n")
            while command.endswith("\\"):
                command = command[:-1] + printed.pop(0)
            command = (
                command.replace("/var/lib/capport/api.sock", str(api))
                .replace("STATE", link.partition("state=")[2])
                .replace("127.0.0.1:8512", f"127.0.0.1:{tcp}")
                .replace("TOKEN", token)
            )
            answer = await asyncio.to_thread(_run, command)
            pattern = "".join(".*" if part == "…" else re.escape(part) for part in _parts(printed))
            assert re.fullmatch(pattern, answer.rstrip("\n"), re.S), f"$ {command}\n{answer}"
            tried += 1
        assert tried == 11
    listens = f"The API for a login server of your own listens on {api} and 127.0.0.1:{tcp}"
    assert sum(listens in line for line in said) == 1, said


def _parts(printed: list[str]) -> list[str]:
    return re.split("(…)", "\n".join(printed))


def _run(command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout + done.stderr


def _new_token(folder: Path) -> str:
    done = capport("token", "new", "example", "--sessions", str(folder / "sessions.db"))
    done.check_returncode()
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("portal_api=192.0.2.1:8512", "not on loopback"),
        ("portal_api=8512", "has no address"),
    ],
)
async def test_an_api_where_clients_are_stops_the_start(
    tmp_path: Path, option: str, says: str
) -> None:
    (tmp_path / "policy.yaml").write_text("login_url: https://login.example.net/\n")
    options = (f"portal_policy={tmp_path / 'policy.yaml'}", f"confdir={confdir()}")
    stores = f"portal_sessions={tmp_path / 'sessions.db'}"
    given = [part for one in (*options, stores, option) for part in ("--set", one)]
    command = [*RUN["capport run"], "--listen-port", "0", *given]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("taken_by", ["a stranger", "the proxy", "the login server"])
async def test_an_api_without_its_port_stops_the_start_and_says_whose_option_it_is(
    tmp_path: Path, taken_by: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        proxy, login = free_port(), free_port()
        taken = {"a stranger": stranger.getsockname()[1], "the proxy": proxy}.get(taken_by, login)
        (tmp_path / "policy.yaml").write_text(f"login_server: {{listen: '127.0.0.1:{login}'}}\n")
        options = (f"portal_policy={tmp_path / 'policy.yaml'}", f"confdir={confdir()}")
        api = (f"portal_sessions={tmp_path / 'sessions.db'}", f"portal_api=127.0.0.1:{taken}")
        given = [part for one in (*options, *api) for part in ("--set", one)]
        where = ("--listen-host", "127.0.0.1", "--listen-port", str(proxy))
        command = [*RUN["capport run"], *where, *given]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"portal_api: 127.0.0.1:{taken} is in use\n"
    assert not (tmp_path / "api.sock").exists()
