"""RFC 6585 sections 3 to 6, 7.4 and appendix B: what they ask of the response itself."""

import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from capport.core.policy import Rate
from capport.core.reply import Asked, Reply, reply_to
from capport.core.verdict import (
    HeaderFieldsTooLarge,
    NetworkAuthenticationRequired,
    PreconditionRequired,
    Refusal,
    TooManyRequests,
)

LOGIN = "https://login.example.net/"
REQUIRED = NetworkAuthenticationRequired("it has no session", LOGIN, refresh=0)
LIMITED = TooManyRequests("too many", 3600, Rate(50, 3600.0))
FIELD = HeaderFieldsTooLarge("too large", "Example")
FORMS = ["text/html", "application/json", "text/plain"]
LANGUAGES = ["en", "de", "fr", "es"]

every_form = pytest.mark.parametrize("form", FORMS)
every_language = pytest.mark.parametrize("language", LANGUAGES)


def answer(verdict: Refusal, form: str = "text/html", language: str = "en") -> tuple[Reply, str]:
    reply = reply_to(verdict, Asked("GET", form, language))
    return reply, reply.body.decode()


def fields(reply: Reply) -> dict[str, str]:
    return {name.lower(): value for name, value in reply.fields}


def assert_not_storable(verdict: Refusal, status: int) -> None:
    """RFC 9111 section 3, and nothing that made real caches store a response."""
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for form in FORMS:
            reply = reply_to(verdict, Asked(method, form))
            assert reply.status == status
            assert fields(reply)["cache-control"] == "no-store"
            assert fields(reply).keys().isdisjoint({"etag", "last-modified", "expires", "age"})


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.rfc(6585, "3", "SHOULD explain how to resubmit the request successfully")
@every_form
@every_language
def test_3_should_explain_how_to_resubmit_the_request(form: str, language: str) -> None:
    for method in ("PUT", "PATCH", "DELETE", "POST", "PROPPATCH"):
        reply, body = answer(PreconditionRequired("no precondition", method), form, language)
        assert reply.status == 428
        for word in ("GET", "If-Match", "ETag", "If-Unmodified-Since", "If-None-Match: *", "LOCK"):
            assert word in body
    for method in ("COPY", "MOVE"):
        reply, body = answer(PreconditionRequired("no precondition", method), form, language)
        assert reply.status == 428
        for word in ("Overwrite: F", "ETag"):
            assert word in body
        assert re.search(r"\bIf\b(?!-)", body)
        assert "If-Match" not in body


@pytest.mark.rfc(6585, "3", "MUST NOT be stored by a cache")
def test_3_must_not_be_stored_by_a_cache() -> None:
    assert_not_storable(PreconditionRequired("no precondition", "PUT"), 428)


@pytest.mark.rfc(6585, "4", "SHOULD include details explaining the condition")
@every_form
@every_language
def test_4_should_include_details_explaining_the_condition(form: str, language: str) -> None:
    reply, body = answer(LIMITED, form, language)
    assert reply.status == 429
    assert re.search(r"\b50\b.*\b3600\b", body)


@pytest.mark.rfc(6585, "4", "MAY include a Retry-After header")
@every_form
def test_4_may_include_a_retry_after_header_and_does(form: str) -> None:
    assert fields(answer(LIMITED, form)[0])["retry-after"] == "3600"


@pytest.mark.rfc(6585, "4", "MUST NOT be stored by a cache")
def test_4_must_not_be_stored_by_a_cache() -> None:
    assert_not_storable(LIMITED, 429)


@pytest.mark.rfc(6585, "5", "SHOULD specify which header field was too large")
@every_form
@every_language
def test_5_should_specify_which_header_field_was_too_large(form: str, language: str) -> None:
    reply, body = answer(FIELD, form, language)
    assert reply.status == 431
    assert "Example" in body


@pytest.mark.rfc(
    6585,
    "5",
    "both when the set of header fields in total is too large, and when a single header "
    "field is at fault",
)
@every_form
@every_language
def test_5_can_be_used_when_the_fields_in_total_are_too_large(form: str, language: str) -> None:
    reply, body = answer(HeaderFieldsTooLarge("too large"), form, language)
    assert reply.status == 431
    assert body != answer(HeaderFieldsTooLarge("too large", "("), form, language)[1]


@pytest.mark.rfc(6585, "5", "MUST NOT be stored by a cache")
def test_5_must_not_be_stored_by_a_cache() -> None:
    assert_not_storable(FIELD, 431)


@pytest.mark.rfc(
    6585,
    "6",
    "SHOULD contain a link to a resource that allows the user to submit credentials",
)
@every_form
@every_language
def test_6_should_contain_a_link_to_where_to_submit_credentials(form: str, language: str) -> None:
    reply, body = answer(REQUIRED, form, language)
    assert (reply.status, reply.reason) == (511, "Network Authentication Required")
    assert LOGIN in body
    if form == "text/html":
        links = [found["href"] for tag, found in Elements(body).found if tag == "a"]
        assert links == [LOGIN]
        assert urlsplit(LOGIN).scheme  # absolute: it leaves the host that was asked for
        assert urlsplit(LOGIN).netloc


@pytest.mark.rfc(6585, "6", "SHOULD NOT contain a challenge or the login interface itself")
@every_form
def test_6_should_not_contain_a_challenge_or_the_login_interface_itself(form: str) -> None:
    reply, body = answer(REQUIRED, form)
    assert fields(reply).keys().isdisjoint({"www-authenticate", "proxy-authenticate"})
    controls = {"form", "input", "button", "textarea", "select", "script", "iframe", "object"}
    assert controls.isdisjoint(tag for tag, _ in Elements(body).found)


@pytest.mark.rfc(6585, "6", "MUST NOT be stored by a cache")
def test_6_must_not_be_stored_by_a_cache() -> None:
    assert_not_storable(REQUIRED, 511)


@pytest.mark.rfc(6585, "6.1", "the META HTML element redirects the user agent to the login server")
def test_6_1_the_meta_element_redirects_the_user_agent_to_the_login_server() -> None:
    metas = [found for tag, found in Elements(answer(REQUIRED)[1]).found if tag == "meta"]
    assert {"http-equiv": "refresh", "content": f"0; url={LOGIN}"} in metas


@pytest.mark.rfc(
    6585,
    "6.1",
    "non-browser clients will not interpret the response as being from the origin server",
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_6_1_no_client_can_take_it_for_the_origins_success(method: str) -> None:
    for form in FORMS:
        assert reply_to(REQUIRED, Asked(method, form)).status == 511


@pytest.mark.rfc(6585, "7.4", "may be inserting cookies into the original domain's name space")
@every_form
def test_7_4_no_cookie_is_inserted_into_the_origins_name_space(form: str) -> None:
    names = fields(answer(REQUIRED, form)[0]).keys()
    assert names.isdisjoint({"set-cookie", "set-cookie2", "strict-transport-security", "alt-svc"})


@pytest.mark.rfc(6585, "B", "favicon.ico will often stick in the browser's cache")
@pytest.mark.parametrize("accept", ["image/avif,image/webp,*/*;q=0.8", "image/png", ""])
def test_b_a_favicon_is_never_answered_with_an_image(accept: str) -> None:
    reply, _ = answer(REQUIRED, accept)
    assert reply.status == 511
    assert fields(reply)["content-type"].startswith("text/html")
    assert fields(reply)["x-content-type-options"] == "nosniff"


@pytest.mark.rfc(6585, "B", "a portal's response for the p3p.xml file, WebFinger, CORS, OAuth")
@every_form
def test_b_no_other_origin_is_let_in_by_cors(form: str) -> None:
    names = fields(answer(REQUIRED, form)[0])
    assert not [name for name in names if name.startswith("access-control-")]


@pytest.mark.rfc(
    6585,
    "B",
    "since many of these uses follow redirects, this is not a good solution",
)
@every_form
def test_b_it_does_not_redirect(form: str) -> None:
    reply, _ = answer(REQUIRED, form)
    assert fields(reply).keys().isdisjoint({"location", "refresh"})
