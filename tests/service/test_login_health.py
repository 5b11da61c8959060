"""Which answer counts as the login server's: no client is sent to a stranger on its port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from capport.core.captivity import MEDIA_TYPE
from capport.core.client import Address
from capport.core.place import Host, Place
from capport.core.policy import Login, LoginServer, Policy
from capport.proxy.resolver import SystemResolver
from capport.service import login_health
from capport.service.login_health import answer, is_ours
from conftest import SOON
from login.certificates import certificate
from login.house import LOOPBACK, house, policy

FOUND = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
MENTIONED = FOUND.replace(b"text/html", b"text/html; not=" + MEDIA_TYPE.encode())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an answer is expected, waits for it."""
    monkeypatch.setattr(login_health, "PATIENCE", SOON)


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncIterator[int]:
    """A server that gives `answer` to every client; its port."""

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(say, str(LOOPBACK), 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def at(port: int, *, embedded: bool, behind: int | None = None) -> Policy:
    place = Place(LOOPBACK, port)
    server = LoginServer((Place(LOOPBACK, behind or port),)) if embedded else None
    url = f"http://{place}/"
    return replace(policy(), login_server=server, login_url=url, login_place=place)


async def answers(wanted: Policy, *, elsewhere: bool = False) -> bool:
    ours = is_ours(wanted, wanted.login_place, lambda: elsewhere)
    login = wanted.login_for(None)
    try:
        return await answer(login, SystemResolver(), ours=ours) == LOOPBACK
    except OSError:
        return False


async def test_the_embedded_login_server_answers() -> None:
    async with house() as h:
        assert await answers(at(h.port, embedded=True))


@pytest.mark.parametrize(
    "answer",
    [
        FOUND,
        MENTIONED,
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0\r\n",
        b"",
    ],
)
async def test_a_stranger_on_its_port_does_not_answer_for_it(answer: bytes) -> None:
    async with stranger(answer) as port:
        assert not await answers(at(port, embedded=True))


async def test_a_head_without_end_does_not_answer_for_it() -> None:
    async with stranger(FOUND.replace(b"\r\n\r\n", b"\r\nA: " + b"a" * (1 << 18))) as port:
        assert not await answers(at(port, embedded=True))


@pytest.mark.parametrize("answer", [FOUND, b"HTTP/1.0 404 Not Found\n\n", b"HTTP/1.1 302 F\r\n"])
async def test_any_answer_of_an_external_login_server_counts(answer: bytes) -> None:
    async with stranger(answer) as port:
        assert await answers(at(port, embedded=False))


async def test_a_redirect_of_a_server_in_front_of_the_embedded_one_counts_too() -> None:
    async with stranger(b"HTTP/1.1 301 Moved\r\n\r\n") as port:
        assert await answers(at(port, embedded=True, behind=port + 1))


async def test_an_answer_of_another_process_on_the_port_of_the_embedded_one_counts_too() -> None:
    async with stranger(FOUND) as port:
        assert await answers(at(port, embedded=True), elsewhere=True)


@pytest.mark.parametrize("embedded", [True, False])
async def test_a_port_without_a_server_does_not_answer(embedded: bool) -> None:
    with socket.socket() as nobody:
        nobody.bind((str(LOOPBACK), 0))
        assert not await answers(at(nobody.getsockname()[1], embedded=embedded))


class _HostsFile(SystemResolver):
    """Makes every name resolve to 127.0.0.1."""

    async def resolve(self, host: Host) -> list[Address]:
        return [LOOPBACK]


@pytest.mark.parametrize(
    ("trusted", "name", "days", "why"),
    [
        (True, "login.example.net", 1, None),
        (False, "login.example.net", 1, "does not trust its certificate: self-signed"),
        (True, "login.example.org", 1, "does not trust its certificate: Hostname mismatch"),
        (True, "login.example.net", -1, "does not trust its certificate: certificate has expired"),
    ],
)
async def test_a_certificate_counts_as_a_client_would_check_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    name: str,
    days: int,
    why: str | None,
) -> None:
    """Chromium shows no sign-in tab if the 302 leads to a certificate that it does not trust."""
    shown, key = certificate(tmp_path, name, days=days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    async with house(policy(certificate=str(shown), key=str(key))) as h:
        place = Place("login.example.net", h.port)
        asked = answer(Login(f"https://{place}/", place), _HostsFile(), ours=True)
        if why is None:
            assert await asked == LOOPBACK
        else:
            with pytest.raises(OSError, match=why):
                await asked


async def test_while_the_check_itself_fails_no_login_server_counts_as_answering() -> None:
    answering: dict[Place, Address] = {Place(LOOPBACK, 1): LOOPBACK}

    def fails() -> Policy:
        raise KeyError("an unforeseen fault")

    with pytest.raises(KeyError):
        await login_health.follow(fails, answering, SystemResolver(), lambda: False)
    assert answering == {}
