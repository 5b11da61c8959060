"""Chromium in a client of the lab: the whole way, and what it leaves in the profile."""

import base64
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import requires
from journey.conftest import LOGIN, Street
from login.chromium import Tab, chromium
from proxy.wire import until

pytestmark = [pytest.mark.browser, pytest.mark.lab, requires.tool("chromium")]

SITE = "http://www.example.com"


@asynccontextmanager
async def guest(street: Street, profile: Path, *arguments: str) -> AsyncIterator[Tab]:
    """Chromium in the first client. It trusts the certificates there are, and no others."""
    trusted = ",".join(map(_pin, (street.certificate, street.lab.folder / "cert.pem")))
    pins = f"--ignore-certificate-errors-spki-list={trusted}"
    within = street.client.namespace.argv()
    async with chromium(profile, within=within, arguments=[pins, *arguments]) as tab:
        yield tab


def _pin(certificate: Path) -> str:
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


async def test_the_whole_way_and_back(street: Street, tmp_path: Path) -> None:
    async with guest(street, tmp_path) as tab:
        await tab.open(f"{SITE}/news?today")
        assert (511, f"{SITE}/news?today") in tab.answers
        assert await tab.run("location.href") == f"{SITE}/news?today"
        await tab.click("a")
        assert await tab.run("location.host") == LOGIN
        assert "Terms of use" in await tab.text()
        await tab.click("form button")
        assert "You are online" in await tab.text()
        assert street.is_known()
        await tab.click("a.button")
        assert await tab.run("location.href") == f"{SITE}/news?today"
        assert "The news" in await tab.text()
        await tab.open(f"https://{LOGIN}/")
        assert "You are online" in await tab.text()
        assert await tab.run("location.pathname") == "/status"
        await tab.click("form[action='/sign-out'] button")
        assert "You are signed out" in await tab.text()
        assert not street.is_known()
        await tab.open(f"{SITE}/weather")
        assert (511, f"{SITE}/weather") in tab.answers
    hosts = {asked["host"] for asked in street.requests()}
    assert LOGIN not in hosts


async def test_an_https_page_opens_the_sign_in_and_then_itself(
    street: Street, tmp_path: Path
) -> None:
    """Alert 49 makes Chromium look for a portal; a later 204 makes it reload the page."""
    async with guest(street, tmp_path) as tab:
        await tab.send("Page.navigate", url="https://www.example.com/news")
        opened = await tab.browser.opened(f"https://{LOGIN}/")
        assert "net::ERR_SSL_PROTOCOL_ERROR" in str(tab.said)
        sign_in = await tab.browser.tab(opened)
        await sign_in.loaded()
        assert "Terms of use" in await sign_in.text()
        await sign_in.click("form button")
        assert "You are online" in await sign_in.text()
        # A connectivity check is no page to go on to.
        assert "gstatic" not in await sign_in.text()
        await tab.shows("The news")


async def test_nothing_of_the_portals_is_kept_under_the_sites_name(
    street: Street, tmp_path: Path
) -> None:
    """RFC 6585 section 6.1 and appendix B: no cache entry, no icon, no cookie."""
    paths = ("/news", "/site.css", "/data.json", "/favicon.ico")
    async with guest(street, tmp_path) as tab:
        await tab.send("Page.setBypassCSP", enabled=True)  # the 511's own, which allows no fetch
        for path in paths:
            await tab.open(SITE + path)
            assert (511, SITE + path) in tab.answers
        for path in paths:
            only = "{cache: 'only-if-cached', mode: 'same-origin'}"
            kept = f"fetch('{path}', {only}).then(r => r.status, e => e.message)"
            assert await tab.run(kept) == "Failed to fetch", path
        await tab.send("Page.setBypassCSP", enabled=False)
        await tab.click("a")
        await tab.click("form button")
        before = len(street.requests())
        await tab.open(f"{SITE}/news")
        got = await tab.run("fetch('/data.json', {cache: 'force-cache'}).then(r => r.json())")
        assert got == {"from": "the origin"}
        # Chromium fetches the icon after the page has loaded.
        await until(lambda: {*paths} <= {asked["path"] for asked in street.requests()[before:]})
        await tab.open(f"https://{LOGIN}/status")  # so that the icon of the site is written down
        cookies = (await tab.send("Network.getAllCookies"))["cookies"]
        assert {cookie["domain"] for cookie in cookies} <= {LOGIN}
    icons = favicons(tmp_path)
    assert icons[f"{SITE}/news"] == {f"{SITE}/favicon.ico"}
    ours = {icon for page, found in icons.items() if LOGIN in page for icon in found}
    assert ours == {f"https://{LOGIN}/mark.svg"}
    assert not any(LOGIN in icon for page in icons if SITE in page for icon in icons[page])


def favicons(profile: Path) -> dict[str, set[str]]:
    """The icons that Chromium has kept for each page."""
    found: dict[str, set[str]] = {}
    with closing(sqlite3.connect(profile / "Default" / "Favicons")) as kept:
        query = "SELECT page_url, url FROM icon_mapping JOIN favicons ON icon_id = favicons.id"
        for page, icon in kept.execute(query):
            found.setdefault(page, set()).add(icon)
    return found


async def test_a_service_worker_keeps_no_511(street: Street, tmp_path: Path) -> None:
    """Appendix B again: the icon cache, which ignores Cache-Control."""
    secure = f"--unsafely-treat-insecure-origin-as-secure={SITE}"
    street.grant()
    async with guest(street, tmp_path, secure) as tab:
        await tab.open(f"{SITE}/news")
        await tab.run(
            "navigator.serviceWorker.register('/worker.js')"
            ".then(() => navigator.serviceWorker.ready).then(() => 1)"
        )
        street.revoke()
        fails = ".then(() => 'done', e => e.name)"
        update = f"navigator.serviceWorker.ready.then(r => r.update()){fails}"
        assert await tab.run(update) == "TypeError"
        register = f"navigator.serviceWorker.register('/worker.js?2', {{scope: '/2/'}}){fails}"
        assert await tab.run(register) == "TypeError"
        add = f"caches.open('site').then(c => c.add('/connecttest.txt')){fails}"
        assert await tab.run(add) == "TypeError"
        street.grant()
        assert await tab.run(add) == "done"
        assert await tab.run(update) == "done"
        kept = "caches.open('site').then(c => c.matchAll()).then(a => a.map(r => r.status))"
        assert await tab.run(kept) == [200, 200]
        count = "navigator.serviceWorker.getRegistrations().then(r => r.length)"
        assert await tab.run(count) == 1
