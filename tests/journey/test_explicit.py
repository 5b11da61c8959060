"""The whole way through the explicit proxy, which sees its clients' own addresses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

import requires
from capport.core.client import Peer
from capport.service.login_server import Embedded
from capport.web.vouching import HEADER
from conftest import Origin, Portal, running_portal
from journey.guests import Guest
from login.certificates import certificate
from login.chromium import chromium
from ports import free_port
from proxy.wire import until

ONE, OTHER = "127.0.0.2", "127.0.0.3"


@asynccontextmanager
async def proxy(folder: Path, *, encrypted: bool, refresh: int = 10) -> AsyncIterator[Portal]:
    """A portal with its login server on another port of loopback."""
    port = free_port()
    tls = ""
    if encrypted:
        shown, key = certificate(folder, "login.example.net")
        tls = f"  certificate: {shown}\n  key: {key}\n"
    scheme = "https" if encrypted else "http"
    policy = f"login_url: {scheme}://127.0.0.1:{port}/?state={{state}}\nrefresh: {refresh}\n"
    policy += f"login_server:\n  listen: 127.0.0.1:{port}\n{tls}"
    async with running_portal(folder, policy) as portal:
        yield portal


def guest(portal: Portal, address: str = ONE) -> Guest:
    server = portal.gate.policy.login_server
    assert server is not None
    return Guest(
        portal.port, server.listen[0].port, address, encrypted=server.certificate is not None
    )


def known(portal: Portal) -> list[str]:
    return [session.client for session in portal.gate.store.sessions()]


both = pytest.mark.parametrize("encrypted", [True, False], ids=["tunnel", "plain"])


@both
async def test_two_clients_have_their_own_sessions(
    tmp_path: Path, origin: Origin, encrypted: bool
) -> None:
    page = f"http://127.0.0.1:{origin.port}/news"
    async with proxy(tmp_path, encrypted=encrypted) as portal:
        one, other = guest(portal), guest(portal, OTHER)
        welcome = await one.sign_in_for(page)
        assert page in welcome.links
        assert known(portal) == [ONE]
        assert (await one.visit(page)).status == 200
        assert (await other.visit(page)).status == 511
        assert ONE in (await one.get("/status")).text
        assert (await other.get("/status")).location == "/"
        await other.sign_in_for(page)
        assert sorted(known(portal)) == [ONE, OTHER]
        status = await one.get("/status")
        out = await one.follow(await one.post("/sign-out", status.fields))
        assert "You are signed out" in out.text
        assert known(portal) == [OTHER]
        assert (await one.visit(page)).status == 511
        assert (await other.visit(page)).status == 200


@both
async def test_nobody_signs_in_for_somebody_else(tmp_path: Path, encrypted: bool) -> None:
    """Not even with a field that the addon signed a moment ago, but for another client."""
    async with proxy(tmp_path, encrypted=encrypted) as portal:
        login = portal.keeper.service.login
        assert login is not None
        signed = login.sign(Peer(ip_address(OTHER)))
        for forged in (signed, OTHER, f"v1 {OTHER} 1000.000 {'0' * 64}"):
            claims = {HEADER: forged, "X-Forwarded-For": OTHER, "Forwarded": f"for={OTHER}"}
            one = guest(portal)
            form = await one.get("/", **claims)
            assert (await one.post("/sign-in", form.fields, **claims)).status == 303
            assert known(portal) == [ONE]
            portal.revoke(ONE)


@both
async def test_a_state_is_valid_for_the_client_that_was_refused_and_no_other(
    tmp_path: Path, origin: Origin, encrypted: bool
) -> None:
    page = f"http://127.0.0.1:{origin.port}/my-private-page"
    async with proxy(tmp_path, encrypted=encrypted) as portal:
        one, other = guest(portal), guest(portal, OTHER)
        link = one.link_in(await one.visit(page))
        welcome = await other.follow(await other.sign_in(link))
        assert "my-private-page" not in welcome.text
        assert known(portal) == [OTHER]
        assert (await one.visit(page)).status == 511
        assert page in (await one.follow(await one.sign_in(link))).links


async def test_the_login_server_forgets_which_client_a_connection_was_for(
    tmp_path: Path, origin: Origin
) -> None:
    async with proxy(tmp_path, encrypted=True) as portal:
        await guest(portal).sign_in_for(f"http://127.0.0.1:{origin.port}/")
        embedded = portal.keeper.service.login
        assert isinstance(embedded, Embedded)
        vouched = embedded.context.vouched
        await until(lambda: not vouched)


@pytest.mark.browser
@requires.tool("chromium")
async def test_chromium_is_taken_there_by_itself(tmp_path: Path) -> None:
    """The 511's refresh leads to the login server in a tunnel, and onward; then it signs out."""
    news = b"<!DOCTYPE html><title>News</title><h1>The news</h1>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s"
    at = Origin(answer=answer % (len(news), news))
    async with proxy(tmp_path, encrypted=True, refresh=1) as portal, at.serving() as origin:
        page = f"http://127.0.0.1:{origin.port}/news"
        arguments = (
            f"--proxy-server=http://127.0.0.1:{portal.port}",
            "--proxy-bypass-list=<-loopback>",  # it would go past the proxy
            "--ignore-certificate-errors",
        )
        async with chromium(tmp_path / "profile", arguments=arguments) as tab:
            await tab.open(page)
            assert (511, page) in tab.answers
            await tab.shows("Terms of use")
            await tab.click("form button")
            assert known(portal) == ["127.0.0.1"]
            assert origin.connections == 0
            await tab.click("a.button")
            assert await tab.text() == "The news"
            server = portal.gate.policy.login_server
            assert server is not None
            await tab.open(f"https://127.0.0.1:{server.listen[0].port}/status")
            await tab.click("form[action='/sign-out'] button")
            assert known(portal) == []
            before = len(origin.heads)
            await tab.open(f"{page}?again")
            assert (511, f"{page}?again") in tab.answers
            assert len(origin.heads) == before
