"""The certificate's status is stapled (RFC 6066 section 8): asked for, kept, dropped in time."""

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.ocsp import OCSPCertStatus

import requires
from capport.login import server
from capport.web import stapling
from capport.web.stapling import AT_LEAST, AT_MOST, BACK_OFF, Stapler
from conftest import SOON
from login.authority import (
    Issued,
    Responder,
    Says,
    Signer,
    an_authority,
    issued,
    now,
    responder,
    s_client,
    until_stapled,
)
from login.house import Clock, house, policy, until

HOUR = timedelta(hours=1)


@pytest.fixture
def authority() -> Signer:
    return an_authority()


@pytest.fixture
def ocsp(authority: Signer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Responder]:
    monkeypatch.setattr(stapling, "PATIENCE", SOON)  # who is not heard is asked again much later
    with responder(Says(authority)) as one:
        one.issuer = authority.certificate
        yield one


def _issued(folder: Path, ocsp: Responder, authority: Signer, *, demands: bool = False) -> Issued:
    made = issued(folder, authority, ocsp.url, demands_staple=demands)
    ocsp.certificate = made.certificate
    return made


class Times:
    """A wall clock and a steady one."""

    def __init__(self) -> None:
        self.wall, self.steady = Clock(now().timestamp()), Clock()

    def pass_(self, seconds: float) -> None:
        self.wall.at += seconds
        self.steady.at += seconds


def _stapler(made: Issued, times: Times) -> Stapler:
    return Stapler("cert.pem", made.chain.read_bytes(), times.wall, times.steady)


async def test_what_the_responder_says_is_stapled_until_it_is_over(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    times = Times()
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    assert (one.response(), one.is_due()) == (b"", True)
    await one.refresh()
    assert one.response()
    assert not one.is_due()
    times.pass_(1900)
    assert one.is_due()
    assert one.response()
    times.pass_(1800)
    assert one.response() == b""


async def test_a_clock_that_is_set_back_makes_no_response_last_longer(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    times = Times()
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    await one.refresh()
    times.wall.at -= 366 * 86400
    assert one.response()
    times.pass_(1900)
    assert one.is_due()
    times.pass_(1800)
    assert one.response() == b""


async def test_one_that_holds_for_long_is_asked_for_each_day(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    ocsp.answer = Says(authority, until=timedelta(days=30))
    times = Times()
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    await one.refresh()
    times.pass_(AT_MOST - 10)
    assert not one.is_due()
    times.pass_(20)
    assert one.is_due()


@pytest.mark.parametrize("answer", [None, b"", b"nonsense", b"x" * 100_000])
async def test_without_an_answer_the_one_before_stays_and_each_wait_is_longer(
    tmp_path: Path,
    ocsp: Responder,
    authority: Signer,
    answer: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ocsp.answer = Says(authority, until=timedelta(days=2))
    times = Times()
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    await one.refresh()
    kept, ocsp.answer = one.response(), answer
    wait = AT_LEAST
    times.pass_(86401)
    for _ in range(8):
        assert one.is_due()
        await one.refresh()
        times.steady.at += wait - 1
        assert not one.is_due()
        times.steady.at += 2
        wait = min(wait * 2, BACK_OFF)
    assert one.response() == kept
    warned = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert [line.name for line in warned] == ["capport.web.stapling"]
    assert "from before stays" in caplog.text
    ocsp.answer = Says(authority, until=timedelta(days=3))
    await one.refresh()
    assert one.response() != kept


async def test_a_responder_that_says_nothing_is_not_waited_for(
    tmp_path: Path, authority: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stapling, "PATIENCE", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    made = issued(tmp_path, authority, f"http://127.0.0.1:{port}/")
    async with listening, asyncio.timeout(SOON):
        one = _stapler(made, Times())
        await one.refresh()
    assert one.response() == b""


async def test_a_revoked_certificate_has_nothing_stapled_from_that_moment(
    tmp_path: Path, ocsp: Responder, authority: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    one = _stapler(_issued(tmp_path, ocsp, authority), Times())
    await one.refresh()
    ocsp.answer = Says(authority, OCSPCertStatus.REVOKED)
    await one.refresh()
    assert one.response() == b""
    assert "the certificate is revoked" in caplog.text


async def test_a_response_from_what_is_the_future_here_is_not_believed_yet(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    times = Times()
    wall, times.wall.at = times.wall.at, 1e6  # a router without a battery: January 1970
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    await one.refresh()
    assert one.response() == b""
    times.wall.at = wall
    times.steady.at += AT_LEAST + 1
    assert one.is_due()
    await one.refresh()
    assert one.response()


def test_a_certificate_that_demands_what_cannot_be_draws_one_warning(
    tmp_path: Path, authority: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    _stapler(issued(tmp_path, authority, None), Times())
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]
    _stapler(issued(tmp_path, authority, None, demands_staple=True), Times())
    [line] = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert "RFC 7633" in line.getMessage()
    assert "names no OCSP responder" in line.getMessage()


def _curl(port: int, authority: Signer, folder: Path) -> int:
    trusted = folder / "ca.pem"
    trusted.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    command = ["curl", "-sS", "--cert-status", "--cacert", str(trusted), "--max-time", "60"]
    command += ["-o", str(folder / "page"), "--noproxy", "*", f"https://localhost:{port}/"]
    command[1:1] = ["--connect-to", f"localhost:{port}:127.0.0.1:{port}"]
    return subprocess.run(command, capture_output=True, timeout=90, check=False).returncode


@requires.tool("openssl", "curl")
async def test_openssl_and_curl_are_told_that_it_is_good(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    made = _issued(tmp_path, ocsp, authority, demands=True)
    async with house(policy(certificate=str(made.chain), key=str(made.key))) as h:
        said = await until_stapled(h.port)
        assert "Cert Status: good" in said
        assert await asyncio.to_thread(_curl, h.port, authority, tmp_path) == 0
        assert b"<!DOCTYPE html>" in (tmp_path / "page").read_bytes()[:20]
    assert len(ocsp.asked) == 1  # once, however many clients ask


@requires.tool("openssl", "curl")
async def test_where_there_is_none_nothing_is_stapled_and_all_else_goes_on(
    tmp_path: Path, ocsp: Responder, authority: Signer
) -> None:
    ocsp.answer = Says(authority, OCSPCertStatus.REVOKED)
    made = _issued(tmp_path, ocsp, authority)
    async with house(policy(certificate=str(made.chain), key=str(made.key))) as h:
        await until(lambda: ocsp.asked, "a question")
        assert "OCSP response: no response sent" in await asyncio.to_thread(s_client, h.port)
        # CURLE_SSL_INVALIDCERTSTATUS: --cert-status takes none for a bad one.
        assert await asyncio.to_thread(_curl, h.port, authority, tmp_path) == 91
        assert (await h.browser().get("/")).status == 200


async def test_no_fault_in_reading_an_answer_reaches_who_shows_the_certificate(
    tmp_path: Path,
    ocsp: Responder,
    authority: Signer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise ArithmeticError("date value out of range")

    times = Times()
    one = _stapler(_issued(tmp_path, ocsp, authority), times)
    with monkeypatch.context() as patched:
        patched.setattr(stapling, "believed", fails)
        await one.refresh()
    assert "ArithmeticError('date value out of range'); nothing is stapled" in caplog.text
    assert not one.is_due()  # it waits, as after any other
    times.pass_(AT_LEAST + 1)
    assert one.is_due()
    await one.refresh()
    assert one.response()


@requires.tool("openssl")
async def test_a_renewed_certificate_is_stapled_from_its_first_connection(
    tmp_path: Path, ocsp: Responder, authority: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RENEWED", 0.05)
    made = _issued(tmp_path, ocsp, authority)
    async with house(policy(certificate=str(made.chain), key=str(made.key))) as h:
        digits = f"{made.certificate.serial_number:X}"
        serial = f"Serial Number: {'0' * (len(digits) % 2)}{digits}"  # OpenSSL shows whole octets
        assert serial in await until_stapled(h.port)
        _issued(tmp_path, ocsp, authority)

        async def renewed() -> bool:
            said = await asyncio.to_thread(s_client, h.port)
            assert "OCSP Response Status: successful" in said
            return serial not in said

        await until(renewed, "the renewed certificate")
