"""RFC 8910, how a device finds the API: the part that concerns a server."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.captivity import PATH, reads_captivity
from login.house import house


@pytest.mark.rfc(8910, "2", "MAY do content negotiation")
@pytest.mark.parametrize(
    "accept",
    [
        "application/captive+json",  # as RFC 8908 registers it
        "application/capport+json",  # as RFC 8910 section 2 calls it
        "text/html, application/captive+json;q=0.5",
        "APPLICATION/CAPTIVE+JSON ; q=1",
    ],
)
async def test_2_a_client_that_asks_for_the_document_gets_it(accept: str) -> None:
    async with house() as h:
        page = await h.browser().get(PATH, Accept=accept)
        assert page.headers["Content-Type"] == "application/captive+json"
        assert json.loads(page.body)["captive"] is True


@pytest.mark.rfc(
    8910,
    "2",
    "SHOULD redirect the client to the value associated with user-portal-url",
)
@pytest.mark.parametrize(
    "accept",
    [None, "*/*", "text/html,*/*;q=0.8", "application/json", "application/captive+json;q=0", ""],
)
async def test_2_a_client_that_does_not_is_sent_to_the_login_server(accept: str | None) -> None:
    async with house() as h:
        headers = {} if accept is None else {"Accept": accept}
        page = await h.browser().get(PATH, **headers)
        assert page.status == 302
        assert page.location is not None
        assert page.location.startswith("http://127.0.0.1:8511/?state=")


@pytest.mark.rfc(
    8910,
    "2",
    "SHOULD include an appropriate Vary header field or set Cache-Control to private",
)
@pytest.mark.parametrize("accept", ["application/captive+json", "*/*"])
async def test_2_no_cache_answers_the_one_with_the_others_answer(accept: str) -> None:
    async with house() as h:
        page = await h.browser().get(PATH, Accept=accept)
        assert "Accept" in page.headers["Vary"]
        assert "private" in page.headers["Cache-Control"]
        assert "no-store" in page.headers["Cache-Control"]


@pytest.mark.rfc(8910, "2", "the URI MUST be that of the captive portal API endpoint")
async def test_2_the_uri_is_the_apis_and_not_the_login_page() -> None:
    async with house() as h:
        page = await h.browser().get("/", Accept="application/captive+json")
        assert page.headers.get_content_type() == "text/html"


@pytest.mark.rfc(8910, "2", "MAY do content negotiation")
@given(st.text(max_size=200))
def test_2_any_accept_field_may_come(accept: str) -> None:
    said = reads_captivity(accept)
    assert said is False or "application/cap" in accept.lower()


@pytest.mark.rfc(8910, "2", "MAY do content negotiation")
@given(st.integers(0, 3), st.sampled_from(["captive", "capport"]))
def test_2_weight_nought_is_no(noughts: int, name: str) -> None:
    weight = "0" + ("." + "0" * noughts if noughts else "")
    assert not reads_captivity(f"application/{name}+json;q={weight}")
    assert reads_captivity(f"application/{name}+json;q={weight}" + "1") or not noughts
