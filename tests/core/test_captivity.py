"""What the document of RFC 8908 says of a client, and which requests ask for it."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from capport.core.captivity import ASKED_FOR_AS, MEDIA_TYPE, PATH, captivity, reads_captivity
from capport.core.client import Client, ClientId
from capport.core.session import Session
from capport.core.standing import Kind, Standing

CLIENT = Client(ip_address("192.0.2.7"))
OPEN = Session(ClientId("192.0.2.7"), granted=900.0, expires=1060.0)
CAPTIVE = Standing(CLIENT, Kind.UNKNOWN, "has no session")
BY_RULE = Standing(CLIENT, Kind.KNOWN, "is known by lab.yaml:9")
BY_SESSION = Standing(CLIENT, Kind.KNOWN, "is known for 60 s more", None, OPEN, 60)


HTTPS = "https://login.example.net/"


@pytest.mark.parametrize(
    ("of", "given", "document"),
    [
        (CAPTIVE, {}, {"captive": True}),
        (
            CAPTIVE,
            {"user_portal_url": HTTPS, "venue_info_url": "https://venue.example.org/"},
            {
                "captive": True,
                "user-portal-url": HTTPS,
                "venue-info-url": "https://venue.example.org/",
            },
        ),
        (
            CAPTIVE,
            {"user_portal_url": "http://a.example/", "venue_info_url": "http://b.example/"},
            {"captive": True},
        ),
        (
            BY_SESSION,
            {"can_extend": False},
            {"captive": False, "can-extend-session": False, "seconds-remaining": 60},
        ),
        (
            replace(BY_SESSION, seconds_remaining=0),
            {},
            {"captive": False, "seconds-remaining": 0},
        ),
        (BY_RULE, {"can_extend": True}, {"captive": False}),
    ],
)
def test_the_document_has_what_is_known_and_over_tls(
    of: Standing, given: dict[str, Any], document: dict[str, object]
) -> None:
    assert captivity(of, **given) == document
    assert list(captivity(of, **given)) == list(document)


@pytest.mark.parametrize(
    ("accept", "reads"),
    [
        ("application/captive+json", True),
        ("application/capport+json", True),
        ("text/html, application/captive+json;q=0.1", True),
        (" Application/Captive+JSON ; Q=1 ", True),
        ("application/captive+json;x=0", True),
        ("application/captive+json;q=0.01", True),
        ("application/captive+json;q=0", False),
        ("application/captive+json;x=1; q = 0.000 ", False),
        ("application/captive+json;q=", False),
        ("application/captive+json;q", False),
        ("application/captive+json;q=0, application/capport+json", True),
        ("*/*", False),
        ("application/*", False),
        ("", False),
        ("a" * 975 + ",application/captive+json", True),  # 1000 characters
        ("a" * 976 + ",application/captive+json", False),
    ],
)
def test_an_agent_names_the_documents_type_itself(accept: str, reads: bool) -> None:
    assert reads_captivity(accept) is reads


def test_the_types_are_those_of_the_rfcs() -> None:
    assert MEDIA_TYPE == "application/captive+json"
    assert {"application/captive+json", "application/capport+json"} == ASKED_FOR_AS


def test_it_is_where_dhcp_and_router_advertisements_of_running_networks_say() -> None:
    assert PATH == "/api/captive-portal"
