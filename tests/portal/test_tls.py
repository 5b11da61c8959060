"""HTTPS with the operator's certificate, and the one that renews it."""

import asyncio
import hashlib
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from capport.certificate import places_to_check
from capport.core.policy import Policy
from capport.portal import server
from portal.certificates import certificate
from portal.house import House, house, policy


def _policy(folder: Path) -> Policy:
    cert, key = certificate(folder)
    return policy(certificate=str(cert), key=str(key))


def _shown(port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain) as tls,
    ):
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


async def _until_shown(h: House, other_than: str) -> str:
    for _ in range(400):
        if (shown := await asyncio.to_thread(_shown, h.port)) != other_than:
            return shown
        await asyncio.sleep(0.05)
    raise AssertionError("the certificate from before is still shown")


async def test_a_login_over_https_has_a_cookie_for_https_alone(tmp_path: Path) -> None:
    async with house(_policy(tmp_path)) as h:
        browser = h.browser()
        page = await browser.get("/")
        cookie = page.headers["Set-Cookie"]
        assert cookie.startswith("__Host-capport=")
        assert "Secure" in cookie
        assert (await browser.post("/sign-in", page.fields)).status == 303
        assert h.session() is not None


async def test_a_form_sent_from_the_same_name_without_tls_is_refused(tmp_path: Path) -> None:
    async with house(_policy(tmp_path)) as h:
        browser = h.browser()
        page = await browser.get("/")
        origin = f"http://127.0.0.1:{h.port}"
        assert (await browser.post("/sign-in", page.fields, Origin=origin)).status == 403


async def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RENEWED", 0.05)
    async with house(_policy(tmp_path)) as h:
        before = await asyncio.to_thread(_shown, h.port)
        certificate(tmp_path)
        after = await _until_shown(h, before)
        (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n", "utf-8")
        await asyncio.sleep(0.3)
        assert await asyncio.to_thread(_shown, h.port) == after
        certificate(tmp_path)
        await _until_shown(h, after)


async def test_a_certificate_that_cannot_be_used_is_named_at_the_start(tmp_path: Path) -> None:
    bad = _policy(tmp_path)
    (tmp_path / "key.pem").write_text("no key", "utf-8")
    with pytest.raises(OSError, match=r"cert\.pem with .*key\.pem"):
        async with house(bad):
            raise AssertionError("it started")


async def test_a_policy_with_a_certificate_that_cannot_be_used_leaves_the_one_before(
    tmp_path: Path,
) -> None:
    async with house(_policy(tmp_path)) as h:
        before = await asyncio.to_thread(_shown, h.port)
        listening = h.gate.policy.login_server
        assert listening is not None
        h.change_policy(login_server=replace(listening, key=str(tmp_path / "none.pem")))
        with pytest.raises(OSError, match=r"none\.pem|No such file"):
            await h.server.follow()
        assert await asyncio.to_thread(_shown, h.port) == before


def test_where_a_certificate_is_checked_is_read_from_it(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, places=True)
    assert [str(place) for place in places_to_check(cert.read_bytes())] == [
        "ocsp.example.org:80",
        "ca.example.org:8080",
        "crl.example.org:80",
    ]
    with pytest.raises(ValueError, match="PEM"):
        places_to_check(b"")
