"""RFC 8908, the Captive Portal API: one test for each MUST and SHOULD that is the server's."""

import json
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core import explanation
from capport.core.captivity import PATH, captivity
from capport.core.client import Address, ClientId, Mac
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Conditions, Policy, Sessions
from capport.core.session import Session
from capport.core.standing import Standing, standing
from capport.linux import Neighbours
from login.certificates import certificate
from login.house import House, at, house, policy

ACCEPT = "application/captive+json"


def _https(folder: Path) -> Policy:
    cert, key = certificate(folder)
    changed = policy(certificate=str(cert), key=str(key))
    return replace(
        changed,
        login_url="https://login.example.net/?state={state}",
        login_place=Place("login.example.net", 443),
    )


async def _document(h: House, address: str = "127.0.0.2") -> dict[str, Any]:
    page = await h.browser(address).get(PATH, Accept=ACCEPT)
    assert page.status == 200, page.text
    document = json.loads(page.body)
    assert isinstance(document, dict)
    return document


@pytest.mark.rfc(
    8908, "4", "the same IP addresses are visible to both the API server and the enforcement device"
)
async def test_4_the_answer_is_the_askers_own_and_nobody_elses() -> None:
    async with house() as h:
        await h.browser("127.0.0.2").sign_in()
        assert (await _document(h, "127.0.0.2"))["captive"] is False
        assert (await _document(h, "127.0.0.3"))["captive"] is True


@pytest.mark.rfc(8908, "5", "what agents in the field need (not in the RFC)")
async def test_5_repeated_queries_are_answered_alike(tmp_path: Path) -> None:
    async with house(_https(tmp_path)) as h:
        assert await _document(h) == await _document(h)


@pytest.mark.rfc(8908, "4", "MUST be accessed over HTTP using an https URI")
async def test_4_the_api_is_served_over_tls(tmp_path: Path) -> None:
    async with house(_https(tmp_path)) as h:
        assert h.encrypted
        assert (await _document(h))["captive"] is True


@pytest.mark.rfc(
    8908,
    "6",
    "the client SHOULD query the API server again to verify that it is no longer captive",
)
async def test_6_every_change_of_state_shows_in_the_next_answer() -> None:
    async with house() as h:
        assert (await _document(h))["captive"] is True
        session = h.gate.grant(ClientId("127.0.0.2"), lifetime=60)
        assert await _document(h) == {
            "captive": False,
            "can-extend-session": True,
            "seconds-remaining": 60,
        }
        h.clock.at += 59.5
        assert (await _document(h))["seconds-remaining"] == 0
        h.clock.at += 0.5
        assert (await _document(h))["captive"] is True
        h.gate.grant(session.client, lifetime=60)
        h.gate.revoke(session.client)
        assert (await _document(h))["captive"] is True


@pytest.mark.rfc(
    8908,
    "5",
    "seconds-remaining SHOULD be included if the client is not captive and the session is "
    "time-limited",
)
async def test_5_the_seconds_are_until_the_session_ends_whatever_the_client_does() -> None:
    async with house(replace(policy(), sessions=Sessions(lifetime=7200, idle=1200))) as h:
        await h.browser().sign_in()
        assert (await _document(h))["seconds-remaining"] == 7200
        h.clock.at += 1199
        assert (await _document(h))["seconds-remaining"] == 6001


@pytest.mark.rfc(
    8908,
    "5",
    "can-extend-session: user-portal-url allows the user to extend a session",
)
@pytest.mark.parametrize(
    ("conditions", "after", "can"),
    [
        (Conditions.TERMS, 0, False),  # accepting them again gains no time that one would notice
        (Conditions.TERMS, 60, True),
        (Conditions.PASSWORD, 0, False),
        (Conditions.VOUCHER, 0, True),
    ],
)
async def test_5_a_session_can_be_extended_where_the_portal_has_a_way_to(
    conditions: Conditions, after: float, *, can: bool
) -> None:
    async with house(policy(conditions=conditions)) as h:
        h.gate.grant(ClientId("127.0.0.2"))
        h.clock.at += after
        assert (await _document(h))["can-extend-session"] is can
        status = await h.browser().get("/status")
        assert ("/?more=1" in status.links) is can


@pytest.mark.rfc(8908, "5", "servers MUST mark this media type as their Content-Type header")
async def test_5_the_media_type_is_captive_json() -> None:
    async with house() as h:
        page = await h.browser().get(PATH, Accept=ACCEPT)
        assert page.headers["Content-Type"] == "application/captive+json"
        json.loads(page.body.decode("utf-8"))


@pytest.mark.rfc(
    8908,
    "5",
    "SHOULD set the Cache-Control header to private or a more restrictive value",
)
async def test_5_cache_control_is_private_or_more_restrictive() -> None:
    async with house() as h:
        page = await h.browser().get(PATH, Accept=ACCEPT)
        assert "private" in page.headers["Cache-Control"]
        assert "public" not in page.headers["Cache-Control"]


@pytest.mark.rfc(8908, "5", "user-portal-url MUST be accessed over TLS")
async def test_5_the_portal_urls_are_https_and_where_the_conditions_are(tmp_path: Path) -> None:
    async with house(_https(tmp_path)) as h:
        document = await _document(h)
        url = document["user-portal-url"]
        prefix = "https://login.example.net/?state="
        assert url.startswith(prefix)
        state = h.context.states.read(url.removeprefix(prefix))
        assert state.client.address == at("127.0.0.2").address


@pytest.mark.rfc(8908, "5", "user-portal-url MUST be accessed over TLS")
async def test_5_a_portal_url_that_is_not_over_tls_is_not_told() -> None:
    async with house() as h:
        assert "user-portal-url" not in await _document(h)


@pytest.mark.rfc(8908, "5", "venue-info-url SHOULD be accessed over TLS")
async def test_5_the_venue_url_is_the_policys(tmp_path: Path) -> None:
    https = _https(tmp_path)
    assert https.login_server is not None
    url = "https://venue.example.org/today"
    listening = replace(https.login_server, venue_info_url=url)
    async with house(replace(https, login_server=listening)) as h:
        assert (await _document(h))["venue-info-url"] == url
        h.gate.grant(ClientId("127.0.0.2"), lifetime=60)
        assert (await _document(h))["venue-info-url"] == url
        h.change_policy(login_server=replace(listening, venue_info_url=None))
        assert "venue-info-url" not in await _document(h)


@pytest.mark.rfc(
    8908,
    "5",
    "bytes-remaining SHOULD be omitted when the session is not byte-limited",
)
async def test_5_bytes_remaining_is_left_out_if_no_bytes_are_counted(tmp_path: Path) -> None:
    async with house(_https(tmp_path)) as h:
        assert "bytes-remaining" not in await _document(h)
        h.gate.grant(ClientId("127.0.0.2"), lifetime=60)
        assert "bytes-remaining" not in await _document(h)


def stands(
    access: Access | None = None, session: Session | None = None, now: float = 0.0
) -> Standing:
    rules = ClientRules()
    if access is not None:
        rules.section(access, "lab.yaml")
        rules.add(at("192.0.2.7").address, 7)
    return standing(at("192.0.2.7"), replace(policy(), clients=rules), session, now)


@pytest.mark.rfc(8908, "5", "venue-info-url SHOULD be accessed over TLS")
@pytest.mark.parametrize("url", ["http://example.org/", "HTTP://example.org/", "", None])
def test_5_a_venue_url_that_is_not_over_tls_is_not_told(url: str | None) -> None:
    document = captivity(stands(), venue_info_url=url)
    assert "venue-info-url" not in document
    answer = captivity(stands(), venue_info_url="https://venue.example.org/")
    assert answer["venue-info-url"] == "https://venue.example.org/"


@pytest.mark.rfc(8908, "5", "what agents in the field need (not in the RFC)")
async def test_5_the_document_fits_what_the_smallest_reader_reads(tmp_path: Path) -> None:
    """Android reads 4096 bytes."""
    async with house(_https(tmp_path)) as h:
        page = await h.browser().get(PATH, Accept=ACCEPT)
        assert len(page.body) <= 4096


@pytest.mark.rfc(8908, "5", "captive MUST be included")
@pytest.mark.parametrize("access", list(Access))
def test_5_what_the_policy_says_of_a_client_comes_first(access: Access) -> None:
    session = Session(ClientId("192.0.2.7"), granted=0.0, expires=60.0)
    said = captivity(stands(access, session, 1.0), can_extend=True)
    assert said == {"captive": access is Access.BLOCKED}


@pytest.mark.rfc(8908, "5", "captive MUST be included")
@pytest.mark.rfc(
    8908,
    "5",
    "seconds-remaining SHOULD be omitted for captive clients or when the session is not "
    "time-limited",
)
@given(
    session=st.none()
    | st.builds(
        Session,
        st.just(ClientId("192.0.2.7")),
        granted=st.floats(0, 100),
        expires=st.floats(0, 200),
        idle=st.none() | st.floats(0.1, 50),
        last_seen=st.floats(0, 200),
    ),
    now=st.floats(0, 300),
    can_extend=st.booleans(),
)
def test_5_every_key_has_its_type_and_its_place(
    session: Session | None, now: float, *, can_extend: bool
) -> None:
    document = captivity(
        stands(None, session, now),
        user_portal_url="https://login.example.net/",
        can_extend=can_extend,
    )
    assert type(document["captive"]) is bool
    assert document["captive"] is not (session is not None and session.is_open(now))
    # SHOULD be there only for a client that is not captive, and whose session ends.
    assert ("seconds-remaining" in document) is not document["captive"]
    assert type(document.get("seconds-remaining", 0)) is int
    assert type(document.get("can-extend-session", True)) is bool
    assert "bytes-remaining" not in document
    assert json.loads(json.dumps(document)) == document


@pytest.mark.rfc(
    8908,
    "5",
    "seconds-remaining SHOULD be omitted for captive clients or when the session is not "
    "time-limited",
)
async def test_5_a_client_that_a_rule_knows_is_not_captive_and_has_no_end() -> None:
    async with house() as h:
        rules = h.gate.policy.clients
        rules.section(Access.KNOWN, "lab.yaml")
        rules.add(at("127.0.0.2").address, 7)
        assert await _document(h) == {"captive": False}


@pytest.mark.rfc(
    8908, "4", "the same IP addresses are visible to both the API server and the enforcement device"
)
async def test_4_nothing_a_client_claims_makes_it_another() -> None:
    async with house() as h:
        await h.browser("127.0.0.2").sign_in()
        page = await h.browser("127.0.0.3").get(
            f"{PATH}?client=127.0.0.2", Accept=ACCEPT, X_Forwarded_For="127.0.0.2"
        )
        assert json.loads(page.body)["captive"] is True


class _Flushed(Neighbours):
    """A neighbour table that was flushed: all clients are on the link, and none has a MAC."""

    def is_on_link(self, address: Address) -> bool:
        return True


async def test_the_answers_of_the_portal_are_the_gates_where_a_rule_may_block_by_a_mac() -> None:
    async with house() as h:
        await h.browser().sign_in()
        rules = h.gate.policy.clients
        for access, subject in (
            (Access.BLOCKED, Mac("02:00:00:00:00:07")),
            (Access.KNOWN, ip_network(at("127.0.0.3").address)),
        ):
            rules.section(access, "lab.yaml")
            rules.add(subject, 7)
        for neighbours, captive in ((Neighbours(), False), (_Flushed(), True)):
            h.gate.neighbours = neighbours
            for address in ("127.0.0.2", "127.0.0.3"):  # by its session, and by a rule
                assert (h.gate.known(h.client(address)) is None) == captive
                assert (await _document(h, address))["captive"] == captive
                url = explanation.parse_url("http://www.example.org/")
                found = h.gate.explain_url(h.client(address), url)
                said = explanation.document(found, h.gate.policy)
                assert said["status"] == (511 if captive else None)
                assert ("has a MAC that is not known now" in str(said["because"])) == captive
