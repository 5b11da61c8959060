"""Guests of an explicit proxy, each with an address in 127.0.0.0/8."""

import asyncio
import http.client
from urllib.parse import urlsplit

from conftest import SOON
from login.house import Browser, Page
from proxy.hellos import trusting_all


class Guest(Browser):
    """A browser with a proxy: to a login server with TLS, it asks for a tunnel (CONNECT)."""

    def __init__(
        self, proxy: int, login: int, address: str = "127.0.0.2", *, encrypted: bool = True
    ) -> None:
        super().__init__(login, address, encrypted=encrypted)
        self.proxy = proxy

    async def visit(self, url: str, **fields: str) -> Page:
        """The answer to a GET of an http URL elsewhere, without the login server's cookies."""
        return await asyncio.to_thread(self._visit, url, fields)

    async def sign_in_for(self, url: str, **fields: str) -> Page:
        """Is refused `url`, follows the link, meets the conditions; the page after that."""
        return await self.follow(await self.sign_in(self.link_in(await self.visit(url)), **fields))

    def link_in(self, page: Page) -> str:
        """Where a 511's one link leads, which must be to the login server: path and state."""
        assert page.status == 511, page.text
        (link,) = page.links
        parts = urlsplit(link)
        assert parts.port == self.port, link
        return f"{parts.path}?{parts.query}"

    def _visit(self, url: str, fields: dict[str, str]) -> Page:
        connection = self._to_proxy()
        try:
            connection.request("GET", url, headers={"Connection": "close", **fields})
            answer = connection.getresponse()
            return Page(answer.status, answer.headers, answer.read(), url)
        finally:
            connection.close()

    def _send(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Page:
        # RFC 9112 section 3.2.2: a proxy gets the whole URL, except inside a tunnel.
        whole = path if self.encrypted else f"http://127.0.0.1:{self.port}{path}"
        page = super()._send(method, whole, body, {"Host": f"127.0.0.1:{self.port}", **headers})
        page.url = f"http://127.0.0.1:{self.port}{path}"
        return page

    def _connection(self) -> http.client.HTTPConnection:
        if not self.encrypted:
            return self._to_proxy()
        source = (self.address, 0)
        tunnel = http.client.HTTPSConnection(
            "127.0.0.1", self.proxy, timeout=SOON, source_address=source, context=trusting_all()
        )
        tunnel.set_tunnel("127.0.0.1", self.port)
        return tunnel

    def _to_proxy(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.proxy, SOON, (self.address, 0))
