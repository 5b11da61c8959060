"""The login server's own commands, as processes."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.portals import portal
from capport.commands.login_records import moment
from capport.login import vouchers
from capport.stores.opening import open_store
from capport.web.records import Records
from conftest import SOON
from login.certificates import certificate
from login.house import Browser, free_port, until
from proxy.hellos import trusting_all
from web.accepted_terms import acceptances

POLICY = "login_server: {{listen: 127.0.0.1:{port}, conditions: {conditions}}}\n"
RUN = (
    "import sys; from argparse import Namespace; from importlib import import_module;"
    "from capport.commands import CommandError\n"
    "module, name = sys.argv[1].split(':'); given = dict(a.split('=', 1) for a in sys.argv[2:])\n"
    "given = {k: v or None for k, v in given.items()}\n"
    "try: getattr(import_module('capport.commands.' + module), name)(Namespace(**given))\n"
    "except CommandError as error: sys.exit(str(error))"
)


async def _start(does: str, **given: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, does, *(f"{name}={value}" for name, value in given.items())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


async def _run(does: str, typed: str = "", **given: str) -> tuple[int | None, str, str]:
    process = await _start(does, **given)
    out, err = await process.communicate(typed.encode())
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def login(folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    given = {"policy": str(folder / "lab.yaml"), "sessions": str(folder / "sessions.db")}
    process = await _start("login:serve", **given, socket=str(folder / "api.sock"))
    try:
        await until(lambda: process.returncode is not None or _open(port), "a login server")
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), SOON)


def _open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


async def test_the_login_server_alone_grants_sessions_in_the_shared_store(tmp_path: Path) -> None:
    port, moved = free_port(), free_port()
    policy = tmp_path / "lab.yaml"
    policy.write_text(POLICY.format(port=port, conditions="terms"), "utf-8")
    async with login(tmp_path, port) as process:
        browser = Browser(port, "127.0.0.2")
        assert (await browser.sign_in()).status == 303
        assert "You are online" in (await browser.get("/status?lang=en")).text
        assert (tmp_path / "api.sock").is_socket()
        policy.write_text(POLICY.format(port=moved, conditions="terms"), "utf-8")
        await until(lambda: _open(moved), "the login server at its new place")
        assert (await Browser(moved, "127.0.0.2").get("/status")).status == 200
        assert not _open(port)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), SOON) == 0
    records = Records(tmp_path / "portal.db")
    assert [one.client for one in acceptances(records)] == ["127.0.0.2"]
    records.close()
    assert (tmp_path / "sessions.db").exists()


def _voucher_in(path: Path) -> str:
    code = vouchers.new_code()
    digest = vouchers.digest(code)
    assert digest is not None
    with contextlib.closing(Records(path)) as records:
        records.add_vouchers([digest], lifetime=60, devices=1, valid=None, note="", at=moment())
    return code


async def test_records_that_are_put_in_the_place_of_others_hold_at_once(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "portal.db"
    policy = tmp_path / "lab.yaml"
    policy.write_text(POLICY.format(port=port, conditions="voucher"), "utf-8")
    old, new = _voucher_in(path), _voucher_in(tmp_path / "backup.db")
    async with login(tmp_path, port):
        (tmp_path / "backup.db").replace(path)
        assert (await Browser(port, "127.0.0.2").sign_in(code=new)).status == 303
        assert (await Browser(port, "127.0.0.3").sign_in(code=old)).status == 403
        status, out, err = await _run(
            "voucher:show", policy="", sessions=str(tmp_path / "sessions.db"), json="yes"
        )
        assert (status, err, json.loads(out)[0]["used"]) == (0, "", 1)


class _Tunnelled(Browser):
    """A browser that reaches the login server in a tunnel of the explicit proxy's."""

    proxy = 0

    def _connection(self) -> http.client.HTTPConnection:
        source = (self.address, 0)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.proxy, timeout=SOON, source_address=source, context=trusting_all()
        )
        connection.set_tunnel("127.0.0.1", self.port)
        return connection


async def test_in_a_tunnel_of_the_proxys_no_client_is_taken_for_another_by_the_login_server_alone(
    tmp_path: Path,
) -> None:
    port = free_port()
    cert, key = certificate(tmp_path, places=True)
    policy = (
        f"login_server: {{listen: 127.0.0.1:{port}, certificate: {cert}, key: {key},"
        " conditions: terms}\n"
    )
    (tmp_path / "lab.yaml").write_text(policy, "utf-8")
    async with login(tmp_path, port) as process:
        async with portal(tmp_path, "capport run", policy) as (proxy, _, _):
            for address in ("127.0.0.2", "127.0.0.3"):
                browser = _Tunnelled(port, address, encrypted=True)
                browser.proxy = proxy
                for path in ("/", "/status", "/api/captive-portal"):
                    page = await browser.get(path, Accept_Language="en")
                    assert page.status == 403
                    assert "Please open this page without the proxy" in page.text
                direct = Browser(port, address, encrypted=True)
                assert (await direct.get("/status")).status == 303
            with contextlib.closing(open_store(str(tmp_path / "sessions.db"))) as store:
                assert not list(store.sessions())
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
    assert said.count("A request from 127.0.0.1 comes through the proxy") == 1


@pytest.mark.parametrize(
    ("policy", "says"),
    [("login_url: https://login.example.net/\n", "no login_server"), ("{", "lab.yaml:1")],
)
async def test_a_policy_with_nothing_to_serve_is_an_error(
    tmp_path: Path, policy: str, says: str
) -> None:
    (tmp_path / "lab.yaml").write_text(policy, "utf-8")
    given = {"policy": str(tmp_path / "lab.yaml"), "sessions": str(tmp_path / "s.db")}
    status, _, error = await _run("login:serve", **given, socket="")
    assert (status, says in error, "Traceback" in error) == (1, True, False)
