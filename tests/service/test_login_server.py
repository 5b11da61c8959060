"""The login server inside the addon: the links of 511s lead to it, and it grants access."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from capport.core.client import Client, Peer
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.verdict import NetworkAuthenticationRequired, Pass
from capport.gate import Gate
from capport.service import login_server
from capport.service.login_server import Embedded, may_be_proxy
from capport.stores import StoreError
from capport.stores.memory import MemoryStore
from capport.web.context import WebContext
from capport.web.records import Records, records_beside
from capport.web.vouching import HEADER
from conftest import Origin, StartPortal
from login.house import Browser, Clock, at, policy, until
from ports import free_port

PAGE = "http://www.example.org/news"
ORIGIN = Place("www.example.org", 80)


async def test_from_the_511_to_online_and_the_page_that_was_asked_for(tmp_path: Path) -> None:
    def state_of(client: Client, url: str | None) -> str | None:
        return ours.state(client, url)

    gate = Gate(policy(), MemoryStore(), now=Clock(), state=state_of)
    ours = Embedded(WebContext(gate, Records(tmp_path / "portal.db")), socket=tmp_path / "api.sock")
    await ours.start()
    try:
        client = at("127.0.0.2")
        refused = gate.request(client, HttpRequest(path="/news"), ORIGIN, None, PAGE)
        assert isinstance(refused, NetworkAuthenticationRequired)
        link = urlsplit(refused.login_url)
        assert "example" not in link.query
        assert "127.0.0.2" not in link.query
        browser = Browser(ours.listener.places[0].port, "127.0.0.2")
        welcome = await browser.follow(await browser.sign_in(f"/?{link.query}"))
        assert PAGE in welcome.links
        assert isinstance(gate.request(client, HttpRequest(), ORIGIN, None, PAGE), Pass)
        assert (tmp_path / "api.sock").is_socket()
    finally:
        await ours.stop()
    assert not (tmp_path / "api.sock").exists()


async def test_a_proxied_client_is_named_by_the_addon(tmp_path: Path) -> None:
    gate = Gate(policy(), MemoryStore(), now=Clock())
    login_server = Embedded(WebContext(gate, Records(None)))
    await login_server.start()
    try:
        browser = Browser(login_server.listener.places[0].port, "127.0.0.1")
        signed = {HEADER: login_server.sign(Peer(ip_address("2001:db8::7")))}
        page = await browser.get("/", **signed)
        assert (await browser.post("/sign-in", page.fields, **signed)).status == 303
        assert [one.client for one in gate.store.sessions()] == ["2001:db8::7"]
    finally:
        await login_server.stop()


async def test_a_client_of_a_proxy_elsewhere_is_named_by_the_addon_or_by_nobody() -> None:
    gate = Gate(policy(), MemoryStore(), now=Clock())
    login_server = Embedded(WebContext(gate, Records(None), may_be_proxy=may_be_proxy))
    await login_server.start()
    try:
        browser = Browser(login_server.listener.places[0].port, "127.0.0.1")
        refused = await browser.get("/")
        assert (refused.status, "cannot be distinguished" in refused.text) == (403, True)
        assert (await browser.get("/style.css")).status == 200  # which that page has, too
        signed = {HEADER: login_server.sign(Peer(ip_address("192.0.2.7")))}
        page = await browser.get("/", **signed)
        assert (await browser.post("/sign-in", page.fields)).status == 403
        assert (await browser.post("/sign-in", page.fields, **signed)).status == 303
        assert [one.client for one in gate.store.sessions()] == ["192.0.2.7"]
        itself = Browser(browser.port, "127.0.0.2")
        assert (await itself.get("/")).status == 200
    finally:
        await login_server.stop()


@pytest.mark.parametrize(
    ("store", "records"),
    [
        (":memory:", None),
        ("/var/lib/capport/sessions.db", Path("/var/lib/capport/portal.db")),
        ("sqlite:///var/lib/capport/sessions.db", Path("/var/lib/capport/portal.db")),
        ("sessions.db", Path("portal.db")),
        ("redis://192.0.2.1/0?file=/var/lib/capport/s.db", Path("/var/lib/capport/portal.db")),
    ],
)
def test_the_records_are_beside_the_sessions(store: str, records: Path | None) -> None:
    assert records_beside(store) == records


def test_a_store_elsewhere_has_no_place_for_records() -> None:
    with pytest.raises(StoreError):
        records_beside("postgres://192.0.2.1/db")


class FailingBook:
    """Records whose first two looks raise an unexpected exception."""

    fault = None

    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> bool:
        self.looks += 1
        if self.looks < 3:
            raise ValueError("nobody has thought of this")
        return True

    def close(self) -> None:
        """Nothing is open."""


async def test_sharing_the_records_goes_on_after_whatever_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(login_server, "LOOK", 0.01)
    records, book = Records(None), FailingBook()
    monkeypatch.setattr(records, "book", book)
    ours = Embedded(WebContext(Gate(policy(), MemoryStore(), now=Clock()), records))
    await ours.start()
    try:
        await until(lambda: book.looks > 3, "more looks")
    finally:
        await ours.stop()
    assert caplog.text.count("Sharing the records failed; it continues") == 1


async def test_of_two_processes_with_one_store_one_has_the_api_and_then_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_server, "AGAIN", 0.05)
    without = replace(policy(), login_server=None, login_url="https://login.example.net/")
    both = [
        Embedded(
            WebContext(Gate(without, MemoryStore(), now=Clock()), Records(tmp_path / "portal.db")),
            socket=tmp_path / "api.sock",
        )
        for _ in range(2)
    ]
    for one in both:
        await one.start()
    await both[0].stop()
    try:
        reader, writer = await until(
            lambda: asyncio.open_unix_connection(tmp_path / "api.sock"), "the other's socket"
        )
        writer.write(b"GET /api/v1/sessions HTTP/1.0\r\n\r\n")
        assert b'{"sessions": []}' in await reader.read()
        writer.close()
    finally:
        await both[1].stop()
    assert not (tmp_path / "api.sock").exists()


@pytest.mark.parametrize("elsewhere", [None, Path.touch, Path.mkdir])
async def test_only_our_login_server_learns_which_client_asks(
    portal: StartPortal, origin: Origin, tmp_path: Path, elsewhere: Callable[[Path], None] | None
) -> None:
    """Through an upstream proxy too; but no other server, even if our key cannot be read."""
    if elsewhere:
        (tmp_path / "login").mkdir()
        elsewhere(tmp_path / "login" / "return.pem")
    at = f"127.0.0.1:{origin.port}"
    policy = f"login_url: http://{at}/\nlogin_server: {{listen: '127.0.0.1:{free_port()}'}}\n"
    async with portal(policy) as it:
        await it.ask(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (at.encode(), at.encode()))
    (head,) = (head for head in origin.heads if head.startswith(b"GET"))
    assert (HEADER.encode() in head) is (elsewhere is None)
