"""HTTPS with the operator's certificate, and with a renewed one."""

import asyncio
import hashlib
import os
import socket
import ssl
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from capport.core.place import Place
from capport.core.policy import Policy
from capport.policy.certificate import Chain
from capport.web import login_listener
from conftest import SOON
from login.certificates import certificate
from login.house import LOOPBACK, House, free_port, house, policy, until, without_tornados_limits
from proxy.hellos import trusting_all


def _policy(folder: Path) -> Policy:
    cert, key = certificate(folder)
    return policy(certificate=str(cert), key=str(key))


def _shown(port: int) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), SOON) as plain,
        trusting_all().wrap_socket(plain) as tls,
    ):
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


async def _until_shown(h: House, other_than: str) -> str:
    async def another() -> str:
        shown = await asyncio.to_thread(_shown, h.port)
        return "" if shown == other_than else shown

    return await until(another, "another certificate")


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
    monkeypatch.setattr(login_listener, "RENEWED", 0.05)
    async with house(_policy(tmp_path)) as h:
        before = await asyncio.to_thread(_shown, h.port)
        certificate(tmp_path)
        after = await _until_shown(h, before)
        (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n", "utf-8")
        await asyncio.sleep(0.3)
        assert await asyncio.to_thread(_shown, h.port) == after
        certificate(tmp_path)
        await _until_shown(h, after)


async def test_one_that_openssl_can_read_and_we_cannot_is_not_the_last_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_listener, "RENEWED", 0.05)
    x400_address = bytes.fromhex("3004a3020500")  # RFC 5280 section 4.2.1.6
    async with house(_policy(tmp_path)) as h:
        before = await asyncio.to_thread(_shown, h.port)
        certificate(tmp_path, names=x400_address)
        strange = await _until_shown(h, before)
        certificate(tmp_path)
        await _until_shown(h, strange)


async def test_the_names_in_its_certificate_are_its_own_whatever_login_url_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_listener, "RENEWED", 0.05)
    async with house(_policy(tmp_path)) as h:

        async def status(name: str) -> int:
            return (await h.browser().get("/", Host=f"{name}:{h.port}")).status

        names = ("login.example.net", "LOGIN.example.net", "www.example.net", "other.example.org")
        assert [await status(name) for name in names] == [200, 200, 421, 421]
        before = await asyncio.to_thread(_shown, h.port)
        certificate(tmp_path, "*.example.org")
        await _until_shown(h, before)
        assert [await status(name) for name in names] == [421, 421, 421, 200]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("newest", "spoken"),
    [
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        (ssl.TLSVersion.TLSv1_1, None),
    ],
)
async def test_tls_1_2_is_the_oldest(
    tmp_path: Path, newest: ssl.TLSVersion, spoken: str | None
) -> None:
    context = trusting_all()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest

    def handshake(port: int) -> str | None:
        with (
            socket.create_connection(("127.0.0.1", port), SOON) as plain,
            context.wrap_socket(plain) as tls,
        ):
            assert tls.selected_alpn_protocol() == "http/1.1"
            return tls.version()

    async with house(_policy(tmp_path)) as h:
        if spoken is None:
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(handshake, h.port)
        else:
            assert await asyncio.to_thread(handshake, h.port) == spoken


async def test_a_large_file_arrives_whole_at_a_slow_client(tmp_path: Path) -> None:
    logo = b"<svg xmlns='http://www.w3.org/2000/svg'/>" + b" " * 1_000_000
    (tmp_path / "login").mkdir()
    (tmp_path / "login" / "logo.svg").write_bytes(logo)
    cert, key = certificate(tmp_path)
    with_logo = policy(file=tmp_path / "policy.yaml", certificate=str(cert), key=str(key))

    def read(port: int) -> bytes:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.settimeout(SOON)
            plain.connect(("127.0.0.1", port))
            tls = trusting_all().wrap_socket(plain)
            tls.sendall(b"GET /logo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            time.sleep(0.3)  # the buffers are full, and the server waits
            got = bytearray()
            while part := tls.recv(3000):  # ends with close_notify: anything else raises
                got += part
            tls.close()
            return bytes(got)

    async with house(with_logo) as h:
        assert (await asyncio.to_thread(read, h.port)).endswith(logo)


HELLO = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"  # the first bytes of a ClientHello


@pytest.mark.parametrize("sent", [b"", HELLO, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 500])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_the_handshake_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, *, reset: bool
) -> None:
    monkeypatch.setattr(login_listener, "CONNECTIONS_A_CLIENT", 3)

    def leave(port: int) -> None:
        with socket.socket() as plain:
            plain.bind(("127.0.0.2", 0))
            plain.connect(("127.0.0.1", port))
            plain.sendall(sent)
            if reset:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with house(_policy(tmp_path)) as h:
        for _ in range(12):
            await asyncio.to_thread(leave, h.port)

        async def there_is_a_place() -> bool:
            return (await h.browser("127.0.0.2").get("/")).status == 200

        await until(there_is_a_place, "a place for it")


async def test_a_handshake_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_listener, "PATIENCE", 0.3)
    without_tornados_limits(monkeypatch)
    async with house(_policy(tmp_path)) as h:
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(HELLO)
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_asks_nothing_after_the_handshake_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_listener, "PATIENCE", 0.5)
    without_tornados_limits(monkeypatch)
    async with house(_policy(tmp_path)) as h:
        # On a busy machine the handshake itself can take too long, and be ended.
        reader, writer = await until(
            lambda: asyncio.open_connection("127.0.0.1", h.port, ssl=trusting_all()),
            "a handshake",
        )
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
        writer.close()


async def test_a_key_with_a_password_is_an_error_and_asks_nobody(tmp_path: Path) -> None:
    locked = _policy(tmp_path)
    path = tmp_path / "key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"example"),
        )
    )
    with pytest.raises(OSError, match=r"cert\.pem with .*key\.pem"):
        async with house(locked):
            raise AssertionError("it started")


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
            await h.listener.follow()
        assert await asyncio.to_thread(_shown, h.port) == before


async def test_a_pipe_in_the_place_of_a_certificate_is_an_error_and_holds_nobody_up(
    tmp_path: Path,
) -> None:
    bad = _policy(tmp_path)
    (tmp_path / "cert.pem").unlink()
    os.mkfifo(tmp_path / "cert.pem")
    with pytest.raises(OSError, match=r"is a pipe: name a file: '.*cert\.pem'"):
        async with asyncio.timeout(SOON), house(bad):
            raise AssertionError("it started")


async def test_policies_in_quick_succession_move_it_once(tmp_path: Path) -> None:
    async with house(_policy(tmp_path)) as h:
        listening = h.gate.policy.login_server
        assert listening is not None
        elsewhere = Place(LOOPBACK, free_port())
        h.change_policy(login_server=replace(listening, listen=(elsewhere,)))
        await asyncio.gather(*(h.listener.follow() for _ in range(3)))
        assert h.listener.places == (elsewhere,)
        assert await asyncio.to_thread(_shown, elsewhere.port)


def test_where_a_certificate_is_checked_is_read_from_it(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, places=True)
    assert [str(place) for place in Chain(cert.read_bytes()).places_to_check()] == [
        "ocsp.example.org:80",
        "ca.example.org:8080",
        "crl.example.org:80",
    ]
    with pytest.raises(ValueError, match="PEM"):
        Chain(b"")
