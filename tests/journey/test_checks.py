"""Connectivity checks in the lab: each system says "sign in", and "online" after the sign-in."""

import asyncio
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capport.core.place import Place
from capport.core.policy import LoginServer, Probes
from capport.service import login_health
from conftest import SOON, StartPortal
from journey.conftest import LOGIN, Street
from journey.guests import Guest
from journey.systems import CHECKS, Check, Finding
from login.certificates import certificate
from login.house import LOOPBACK, Page, house, policy, until
from ports import free_port

pytestmark = pytest.mark.lab

SIGN_IN = re.compile(rf"https://{re.escape(LOGIN)}/\?state=[A-Za-z0-9_-]{{40,}}")
each = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.system)


@each
def test_an_unknown_client_is_told_to_sign_in(street: Street, check: Check) -> None:
    answer = street.ask_until(check.compatible, check.url)
    assert check.model(answer) is Finding.SIGN_IN
    assert answer.fields["cache-control"] == "no-store"
    assert not {"set-cookie", "x-networkmanager-status", "x-connman-status"} & set(answer.fields)
    if check.compatible == 302:
        where = answer.fields["location"]
        assert SIGN_IN.fullmatch(where), where
    else:
        assert "location" not in answer.fields
        (where,) = re.findall(r'<a href="([^"]+)"', answer.body)
    page = street.ask(where)
    assert (page.status, "Terms of use" in page.body) == (200, True)


def test_a_known_client_gets_the_vendors_own_answer(street: Street) -> None:
    street.grant()
    before = len(street.requests())
    findings = {check.system: check.model(street.ask(check.url)) for check in CHECKS}
    assert findings == {check.system: Finding.ONLINE for check in CHECKS}
    asked = [f"http://{one['host']}{one['path']}" for one in street.requests()[before:]]
    assert asked == [check.url for check in CHECKS]


def test_the_check_over_https_fails_until_then(street: Street) -> None:
    """Android and ChromeOS wait for this check too, so the portal never answers it."""
    url = "https://www.google.com/generate_204"
    refused = street.client.curl("-k", url)
    assert (refused.stdout.strip(), "access denied" in refused.stderr) == ("000", True)
    street.grant()
    assert street.client.curl("-k", url).stdout.strip() == "204"


@pytest.fixture
def strict(street: Street) -> Iterator[Street]:
    """The street with `probes: strict`, put back afterwards."""
    file = street.lab.policy_file
    before = file.read_text()

    def changed(text: str, status: int) -> None:
        file.write_text(text)
        street.ask_until(status, CHECKS[0].url)

    changed(before + f"probes: {Probes.STRICT}\n", 511)
    yield street
    changed(before, 302)


def test_strict_is_511_for_every_one_of_them(strict: Street) -> None:
    """What that means for each system, and why it is not the default."""
    answers = {check.system: strict.ask(check.url) for check in CHECKS}
    assert {answer.status for answer in answers.values()} == {511}
    lost = {c.system for c in CHECKS if c.model(answers[c.system]) is not Finding.SIGN_IN}
    assert lost == {check.system for check in CHECKS if check.compatible == 302} - {
        "Chromium",
        "Tailscale",
    }


async def test_no_302_while_the_login_server_does_not_answer(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect that leads nowhere hides the portal from Chromium; a 511 does not."""
    monkeypatch.setattr(login_health, "INTERVAL", 0.05)
    monkeypatch.setattr(login_health, "AGAIN", 0.05)
    port = free_port()
    url = "http://connectivitycheck.gstatic.com/generate_204"
    async with portal(f"login_url: http://127.0.0.1:{port}/\n") as it:
        guest = Guest(it.port, port)
        assert (await guest.visit(url)).status == 511
        up = replace(policy(), login_server=LoginServer((Place(LOOPBACK, port),)))
        async with house(up):
            answer = await becomes(guest, url, 302)
            assert answer.location == f"http://127.0.0.1:{port}/"
        assert (await becomes(guest, url, 511)).location is None


async def test_a_wide_garden_does_not_hide_the_portal(portal: StartPortal) -> None:
    async with (
        house() as h,
        portal(f"login_url: http://127.0.0.1:{h.port}/\nwalled_garden: ['*.gstatic.com']\n") as it,
    ):
        guest = Guest(it.port, h.port)
        answer = await becomes(guest, "http://connectivitycheck.gstatic.com/generate_204", 302)
        assert answer.location == f"http://127.0.0.1:{h.port}/"
        assert (await guest.visit("http://fonts.gstatic.com/")).status not in (302, 511)


async def test_no_302_to_a_certificate_that_this_machine_does_not_trust(
    portal: StartPortal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such a 302 hides the portal from Chromium. It comes once the machine trusts it."""
    monkeypatch.setattr(login_health, "INTERVAL", 0.05)
    monkeypatch.setattr(login_health, "AGAIN", 0.05)
    shown, key = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    url = "http://connectivitycheck.gstatic.com/generate_204"
    async with (
        house(policy(certificate=str(shown), key=str(key))) as h,
        portal(f"login_url: https://localhost:{h.port}/\n") as it,
    ):
        guest = Guest(it.port, h.port)
        await until(lambda: "does not trust its certificate" in caplog.text, "a question")
        assert (await guest.visit(url)).status == 511
        shutil.copy(shown, tmp_path / "trusted.pem")
        answer = await becomes(guest, url, 302)
        assert answer.location == f"https://localhost:{h.port}/"


async def becomes(guest: Guest, url: str, status: int) -> Page:
    """The answer with `status`, which comes before long."""
    async with asyncio.timeout(SOON):
        while (answer := await guest.visit(url)).status != status:
            await asyncio.sleep(0.05)
    return answer
