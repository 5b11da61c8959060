"""What the document of RFC 8908 says of a client, and who asks for it."""

from typing import Any

import pytest

from capport.core.captivity import ASKED_FOR_AS, MEDIA_TYPE, Captivity, captivity, reads_captivity
from capport.core.client import ClientId
from capport.core.policy import Access, ClientRule
from capport.core.session import Session

OPEN = Session(ClientId("192.0.2.7"), granted=900.0, expires=1060.0)
OVER = Session(ClientId("192.0.2.7"), granted=900.0, expires=1000.0)
KNOWN = ClientRule(Access.KNOWN, "lab.yaml:9")
BLOCKED = ClientRule(Access.BLOCKED, "lab.yaml:11")
LACKS = "it has a MAC that is not known now, and a rule may block it"


@pytest.mark.parametrize(
    ("rule", "session", "lacks_mac", "said"),
    [
        (None, None, False, Captivity(True, "it has no session")),
        (None, OVER, False, Captivity(True, "its session is over")),
        (None, OPEN, False, Captivity(False, "it is known for 60 s more", 60, has_session=True)),
        (KNOWN, None, False, Captivity(False, "it is known at lab.yaml:9")),
        (KNOWN, OPEN, False, Captivity(False, "it is known at lab.yaml:9")),
        (BLOCKED, OPEN, False, Captivity(True, "it is blocked at lab.yaml:11")),
        (KNOWN, OPEN, True, Captivity(True, LACKS)),
        (None, OPEN, True, Captivity(True, LACKS)),
    ],
)
def test_the_policys_word_comes_first_then_the_session(
    rule: ClientRule | None, session: Session | None, lacks_mac: bool, said: Captivity
) -> None:
    assert captivity(rule, session, 1000.0, lacks_mac=lacks_mac) == said
    assert (said.seconds_remaining is None) is not said.has_session


def test_a_mac_is_not_lacking_unless_that_is_said() -> None:
    assert captivity(KNOWN, None, 1000.0) == Captivity(False, "it is known at lab.yaml:9", None)


HTTPS = "https://login.example.net/"


@pytest.mark.parametrize(
    ("of", "given", "document"),
    [
        (Captivity(True, ""), {}, {"captive": True}),
        (
            Captivity(True, ""),
            {"user_portal_url": HTTPS, "venue_info_url": "https://venue.example.org/"},
            {
                "captive": True,
                "user-portal-url": HTTPS,
                "venue-info-url": "https://venue.example.org/",
            },
        ),
        (
            Captivity(True, ""),
            {"user_portal_url": "http://a.example/", "venue_info_url": "http://b.example/"},
            {"captive": True},
        ),
        (
            Captivity(False, "", 60, has_session=True),
            {"can_extend": False},
            {"captive": False, "can-extend-session": False, "seconds-remaining": 60},
        ),
        (
            Captivity(False, "", 0, has_session=True),
            {},
            {"captive": False, "seconds-remaining": 0},
        ),
        (Captivity(False, ""), {"can_extend": True}, {"captive": False}),
    ],
)
def test_the_document_has_what_is_known_and_over_tls(
    of: Captivity, given: dict[str, Any], document: dict[str, object]
) -> None:
    assert of.document(**given) == document
    assert list(of.document(**given)) == list(document)


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
