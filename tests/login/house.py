"""A real login server on loopback, the gate behind it, and browsers with an address each."""

import asyncio
import http.client
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from ipaddress import ip_address
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlencode, urljoin, urlsplit

import pytest

from capport.core.client import Address, Client
from capport.core.place import Place
from capport.core.policy import Conditions, LoginServer, Policy
from capport.core.session import Session
from capport.gate import Gate
from capport.login.login_context import LoginContext
from capport.service.login_pages import LoginPages
from capport.stores.memory import MemoryStore
from capport.web import login_listener
from capport.web.context import WebContext
from capport.web.login_listener import LoginListener
from capport.web.records import Records
from conftest import SOON
from ports import free_port as free_port
from proxy.hellos import trusting_all

LOOPBACK = ip_address("127.0.0.1")


@dataclass
class Clock:
    """A boot clock that stands still until a test moves it."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def policy(*, file: Path | None = None, **login_server: Any) -> Policy:
    """A policy with a login server on loopback, on any port."""
    return Policy(
        network="Example Café",
        login_url="http://127.0.0.1:8511/?state={state}",
        login_place=Place(LOOPBACK, 8511),
        login_server=LoginServer((Place(LOOPBACK, 0),), **login_server),
        file=str(file) if file else None,
    )


@dataclass
class House:
    """The login server and what is behind it."""

    gate: Gate
    context: WebContext
    login: LoginContext
    listener: LoginListener
    clock: Clock
    encrypted: bool

    @property
    def port(self) -> int:
        return self.listener.places[0].port

    def browser(self, address: str = "127.0.0.2") -> "Browser":
        """A browser on a device with `address`, in 127.0.0.0/8."""
        return Browser(self.port, address, encrypted=self.encrypted)

    def client(self, address: str = "127.0.0.2") -> Client:
        return Client(ip_address(address))

    def session(self, address: str = "127.0.0.2") -> Session | None:
        return self.gate.store.find(self.client(address).ids, self.clock())

    def change_policy(self, **changes: Any) -> None:
        self.gate.policy = replace(self.gate.policy, **changes)

    def ask(self, conditions: Conditions) -> None:
        """Makes the login server ask for other conditions."""
        assert self.gate.policy.login_server
        self.change_policy(
            login_server=replace(self.gate.policy.login_server, conditions=conditions)
        )


@asynccontextmanager
async def house(
    with_policy: Policy | None = None, records: Path | None = None
) -> AsyncIterator[House]:
    """A login server that listens during the block."""
    clock = Clock()
    gate = Gate(with_policy or policy(), MemoryStore(), now=clock)
    context = WebContext(gate, Records(records))
    pages = LoginPages(context)
    listener = LoginListener(context, pages.create)
    await listener.start()
    listening = gate.policy.login_server
    encrypted = listening is not None and listening.certificate is not None
    try:
        yield House(gate, context, pages.login, listener, clock, encrypted)
    finally:
        await listener.stop()
        pages.close()
        context.close()


@dataclass
class Page:
    """An answer, and what a browser sees of it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    url: str
    fields: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    action: str | None = None

    def __post_init__(self) -> None:
        if self.headers.get_content_type() == "text/html":
            _Reader(self).feed(self.text)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def location(self) -> str | None:
        return self.headers["Location"]


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = dict(attrs)
        if tag == "form":
            self.page.action = got.get("action")
        if tag == "input":
            self.page.fields[got.get("name") or ""] = got.get("value") or ""
        if tag == "a":
            self.page.links.append(got.get("href") or "")


class Browser:
    """Sends what a browser would, keeps cookies, and follows nothing by itself."""

    def __init__(self, port: int, address: str, *, encrypted: bool = False) -> None:
        self.port, self.address, self.encrypted = port, address, encrypted
        self.cookies: SimpleCookie = SimpleCookie()

    async def get(self, path: str = "/", **headers: str) -> Page:
        return await self.send("GET", path, **headers)

    async def post(self, path: str, form: dict[str, str], **headers: str) -> Page:
        """Posts a form as a browser sends the login server's own."""
        scheme = "https" if self.encrypted else "http"
        sent = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": f"{scheme}://127.0.0.1:{self.port}",
            "Sec-Fetch-Site": "same-origin",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send("POST", path, urlencode(form), **sent)

    async def follow(self, page: Page) -> Page:
        """Where a redirect leads, which must be on the login server."""
        assert page.location is not None, page.text
        parts = urlsplit(urljoin(page.url, page.location))
        assert parts.port == self.port, page.location
        return await self.get(f"{parts.path}?{parts.query}")

    async def sign_in(self, path: str = "/", **fields: str) -> Page:
        """Opens the sign-in page, fills the form in and sends it."""
        page = await self.get(path)
        assert page.action == "/sign-in", page.text
        return await self.post("/sign-in", page.fields | fields)

    async def send(self, method: str, path: str, body: str | None = None, **headers: str) -> Page:
        return await asyncio.to_thread(self._send, method, path, body, headers)

    def _send(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Page:
        connection = self._connection()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies and "Cookie" not in sent:
            sent["Cookie"] = "; ".join(f"{one.key}={one.value}" for one in self.cookies.values())
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            for cookie in answer.headers.get_all("Set-Cookie", []):
                self.cookies.load(cookie)
            url = f"http://127.0.0.1:{self.port}{path}"
            try:
                got = answer.read()
            except ConnectionError:  # refused before the body was read, which resets what is left
                got = b""
            return Page(answer.status, answer.headers, got, url)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        source = (self.address, 0)
        if not self.encrypted:
            return http.client.HTTPConnection("127.0.0.1", self.port, SOON, source)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=SOON, source_address=source, context=trusting_all()
        )


def at(address: Address | str) -> Client:
    """The client with an address and no MAC."""
    return Client(ip_address(str(address)))


@overload
async def until[T](true: Callable[[], Awaitable[T]], what: str) -> T: ...
@overload
async def until[T](true: Callable[[], T], what: str) -> T: ...
async def until[T](true: Callable[[], T | Awaitable[T]], what: str) -> T:
    """What `true()` returns, once that is true. It counts as false if it raises OSError."""
    deadline = time.monotonic() + SOON
    while True:
        error: OSError | None = None
        try:
            found = true()
            got = await found if inspect.isawaitable(found) else found
            if got:
                return got
        except OSError as raised:
            error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true") from error
        await asyncio.sleep(0.02)


def without_tornados_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off Tornado's own time limits, so that only ours can end a connection."""
    theirs = {"body_timeout": 3600.0, "idle_connection_timeout": 3600.0}
    made = login_listener.Server
    monkeypatch.setattr(
        login_listener, "Server", lambda app, **limits: made(app, **limits | theirs)
    )
