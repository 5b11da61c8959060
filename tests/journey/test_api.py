"""RFC 8908 in the lab: a device gets a URL by DHCP, asks it, and learns that it may sign in."""

import json
from typing import Any

import pytest

import requires
from capport.core.captivity import MEDIA_TYPE
from journey.conftest import LOGIN, Street
from lab.network import Client

pytestmark = pytest.mark.lab


def captivity(street: Street, client: Client | None = None) -> dict[str, Any]:
    """The document at the URL that came with the lease (RFC 8910 section 2.1)."""
    lease = (client or street.client).lease
    assert lease is not None
    assert lease.captive_portal is not None
    answer = street.ask(lease.captive_portal, f"Accept: {MEDIA_TYPE}", client=client)
    assert (answer.status, answer.fields["content-type"]) == (200, MEDIA_TYPE)
    assert "private" in answer.fields["cache-control"]
    document: dict[str, Any] = json.loads(answer.body)
    return document


@pytest.mark.rfc(
    8908,
    "6",
    "the client SHOULD query the API server again to verify that it is no longer captive",
)
def test_a_device_learns_when_it_is_captive_and_when_it_no_longer_is(street: Street) -> None:
    before = captivity(street)
    assert before["captive"] is True
    assert "seconds-remaining" not in before
    page = street.ask(before["user-portal-url"])
    assert (page.status, "Terms of use" in page.body) == (200, True)
    street.grant(None, "--for", "1h")
    after = captivity(street)
    assert after["captive"] is False
    assert 3500 < after["seconds-remaining"] <= 3600
    assert after["can-extend-session"] is True
    assert captivity(street, street.lab.clients[1])["captive"] is True
    street.revoke()
    assert captivity(street)["captive"] is True


@pytest.mark.rfc(8908, "5", "what agents in the field need (not in the RFC)")
def test_asked_again_it_says_the_same(street: Street) -> None:
    """Otherwise a device would think that it has changed networks."""
    assert captivity(street) == captivity(street)


@pytest.mark.rfc(
    8908,
    "7",
    "the API server MUST present a valid certificate on which the client can perform "
    "revocation checks",
)
@pytest.mark.rfc(8910, "2", "the URI SHOULD NOT contain an IP address literal")
@requires.tool("curl")
def test_it_is_asked_by_name_and_its_certificate_holds(street: Street) -> None:
    """RFC 8908 section 4.1, RFC 8910 section 2; without either a system falls back to checks."""
    lease = street.client.lease
    assert lease is not None
    assert lease.captive_portal is not None
    assert lease.captive_portal.startswith(f"https://{LOGIN}/")
    fields = ("-H", f"Accept: {MEDIA_TYPE}", lease.captive_portal)
    trusting = street.client.curl("--cacert", str(street.certificate), *fields)
    assert trusting.stdout.endswith("\n200")
    assert "certificate" in street.client.curl(*fields).stderr
