"""What the portal answers to a client that is not let through."""

import json
import re
import time
from base64 import b64encode
from dataclasses import asdict, replace
from hashlib import sha256
from html.parser import HTMLParser

import html5lib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.negotiation import Language
from capport.core.phrases import PHRASES
from capport.core.policy import Rate
from capport.core.reply import Asked, Reply, reply_to
from capport.core.verdict import (
    Closed,
    HeaderFieldsTooLarge,
    Imitated,
    NetworkAuthenticationRequired,
    PreconditionRequired,
    Refusal,
    SignIn,
    TooManyRequests,
    Unavailable,
)

LOGIN = "https://login.example.net/?state=abc&n=1"
REQUIRED = NetworkAuthenticationRequired("it has no session", LOGIN, 10, "Lab Wi-Fi")
BLOCKED = replace(REQUIRED, blocked=True)
SIGN_IN = SignIn("a connectivity check", LOGIN)
REFUSALS: list[Refusal] = [
    REQUIRED,
    replace(REQUIRED, refresh=None, network=None),
    replace(REQUIRED, refresh=0),
    BLOCKED,
    HeaderFieldsTooLarge("too large", "cookie"),
    HeaderFieldsTooLarge("too large", "no token\r\n"),
    HeaderFieldsTooLarge("too large"),
    TooManyRequests("too many", 30, Rate(600, 60.0)),
    TooManyRequests("too many", 1),
    PreconditionRequired("no precondition", "PUT"),
]
EVERY: list[Refusal] = [*REFUSALS, SIGN_IN, replace(SIGN_IN, body=False)]
MEDIA_TYPES = ["text/html", "application/problem+json", "text/plain"]
LANGUAGES = ["en", "de", "fr", "es"]


def fields_of(reply: Reply) -> dict[str, str]:
    names = [name.lower() for name, _ in reply.fields]
    assert len(names) == len(set(names)), "a field that is there twice"
    return {name.lower(): value for name, value in reply.fields}


def page_of(verdict: Refusal, language: str = "en") -> str:
    reply = reply_to(verdict, Asked(accept="text/html", accept_language=language))
    assert fields_of(reply)["content-type"] == "text/html; charset=utf-8"
    return reply.body.decode()


def problem_of(verdict: Refusal, language: str = "en") -> dict[str, object]:
    reply = reply_to(verdict, Asked(accept="application/json", accept_language=language))
    assert fields_of(reply)["content-type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert isinstance(problem, dict)
    return problem


def line_of(verdict: Refusal, language: str = "en") -> str:
    reply = reply_to(verdict, Asked(accept="text/plain", accept_language=language))
    assert fields_of(reply)["content-type"] == "text/plain; charset=utf-8"
    return reply.body.decode()


class Page(HTMLParser):
    """A page's elements with their attributes, and the text of each, by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.text[tag] = self.text.get(tag, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def refresh(self) -> list[str | None]:
        return [meta["content"] for meta in self.all("meta") if meta.get("http-equiv") == "refresh"]


every_verdict = pytest.mark.parametrize("verdict", EVERY, ids=repr)
every_refusal = pytest.mark.parametrize("verdict", REFUSALS, ids=repr)
every_media_type = pytest.mark.parametrize("media_type", MEDIA_TYPES)
every_language = pytest.mark.parametrize("language", LANGUAGES)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="10; url=https://login.example.net/?state=abc&amp;n=1">
<title>Sign in to Lab Wi-Fi</title>
<style></style>
</head>
<body>
<main>
<h1>Sign in to <span>Lab Wi-Fi</span></h1>
<p>You need to sign in before you can use this network.</p>
<p>This answer comes from the network you are using, not from the site you asked for.</p>
<p><a href="https://login.example.net/?state=abc&amp;n=1">Go to the sign-in page</a></p>
<p class="faint">login.example.net<br>You will be taken there in 10 seconds.</p>
</main>
<footer lang="en">511 Network Authentication Required</footer>
</body>
</html>
"""
TO_A_BLOCKED_CLIENT = """<h1>This device is not allowed on this network</h1>
<p>Please ask the operator of this network.</p>
<p>This answer comes from the network you are using, not from the site you asked for.</p>
<p class="faint"><a href="https://login.example.net/?state=abc&amp;n=1">login.example.net</a>\
</p>
</main>"""
TO_A_CHECK = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Sign in to this network</title></head>
<body><p><a href="https://login.example.net/?state=abc&amp;n=1">\
Go to the sign-in page</a></p></body>
</html>
"""


def test_a_page_is_this_to_the_letter() -> None:
    style = re.compile("(?<=<style>).*(?=</style>)", re.DOTALL)
    assert style.sub("", page_of(REQUIRED)) == PAGE
    assert f"<main>\n{TO_A_BLOCKED_CLIENT}" in page_of(BLOCKED)
    assert "<title>This device is not allowed on this network</title>" in page_of(BLOCKED)
    assert page_of(SIGN_IN) == TO_A_CHECK
    now = page_of(replace(REQUIRED, refresh=0))
    assert "login.example.net<br>You are being taken there" in now


def test_a_problem_is_this_to_the_letter() -> None:
    assert problem_of(REQUIRED) == {
        "type": "about:blank",
        "title": "Network Authentication Required",
        "status": 511,
        "detail": f"Sign in at {LOGIN} to use the network “Lab Wi-Fi”. This answer comes from the"
        " network you are using, not from the site you asked for.",
        "login_url": LOGIN,
    }
    assert problem_of(BLOCKED)["detail"] == (
        f"This device is not allowed on this network ({LOGIN}). Please ask the operator of this"
        " network. This answer comes from the network you are using, not from the site you"
        " asked for."
    )


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (
            HeaderFieldsTooLarge("", "cookie"),
            "431 Request Header Fields Too Large: The header field “cookie” of this request is too"
            " large. Send it again with less in its header fields.",
        ),
        (
            HeaderFieldsTooLarge("", "no token"),
            "431 Request Header Fields Too Large: A header field of this request is too large."
            " Send it again with less in its header fields.",
        ),
        (
            HeaderFieldsTooLarge(""),
            "431 Request Header Fields Too Large: The header fields of this request are too large,"
            " taken together. Send it again with less in its header fields.",
        ),
        (
            TooManyRequests("", 30, Rate(600, 60.0)),
            "429 Too Many Requests: This device has sent too many requests."
            " This network allows 600 requests in 60 seconds. Try again in 30 seconds.",
        ),
        (
            TooManyRequests("", 1),
            "429 Too Many Requests: This device has sent too many requests. Try again in 1 second.",
        ),
        (
            PreconditionRequired("", "PUT"),
            "428 Precondition Required: This request has to be conditional, so that it cannot undo"
            " a change made in the meantime. GET the resource, then send the request again with"
            " If-Match and the ETag you got, or with If-Unmodified-Since and its Last-Modified;"
            " with If-None-Match: * if the resource must not exist yet; in WebDAV also with If and"
            " the token of a LOCK.",
        ),
        (
            PreconditionRequired("", "MOVE"),
            "428 Precondition Required: This request has to be conditional, so that it cannot undo"
            " a change made in the meantime. Send it again with Overwrite: F, if nothing may be at"
            " the destination yet, or with If and the ETag or the lock token of the destination.",
        ),
    ],
)
def test_a_line_is_this_to_the_letter(verdict: Refusal, line: str) -> None:
    assert line_of(verdict) == f"{line}\n"


@pytest.mark.parametrize(("length", "shown"), [(60, "a" * 60), (61, "a" * 60 + "…")])
def test_sixty_characters_of_a_field_name_are_shown(length: int, shown: str) -> None:
    assert f" “{shown}” " in line_of(HeaderFieldsTooLarge("", "a" * length))


def test_a_problem_ends_with_a_newline() -> None:
    assert reply_to(REQUIRED, Asked(accept="application/json")).body.endswith(b"}\n")


@pytest.mark.parametrize(
    ("verdict", "line", "more"),
    [
        (Closed("a:1 is closed"), "502 Bad Gateway: a:1 is closed", {}),
        (
            Unavailable("it raised"),
            "503 Service Unavailable: the captive portal is recovering from a fault",
            {"retry-after": "1"},
        ),
    ],
)
def test_a_fault_is_a_line_of_english(verdict: Refusal, line: str, more: dict[str, str]) -> None:
    reply = reply_to(verdict, Asked(accept="text/html", accept_language="de"))
    assert reply.body.decode() == f"{line}\n"
    assert (reply.status, reply.reason) == (int(line[:3]), line[4 : line.index(":")])
    fields = fields_of(reply)
    assert fields.pop("content-type") == "text/plain; charset=utf-8"
    assert fields == more | {
        "content-length": str(len(reply.body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


@pytest.mark.parametrize(("status", "sent"), [(200, 200), (None, 502)])
def test_another_kind_of_portal_is_imitated_to_the_letter(status: int | None, sent: int) -> None:
    verdict = Imitated("it has no session", status, (("Server", "x"),), b"hello")
    reply = reply_to(verdict, Asked())
    assert reply.status == sent
    assert reply.fields == (("Server", "x"), ("Content-Length", "5"))
    assert reply.body == b"hello"


def test_requests_with_the_same_reply_have_the_same_shape() -> None:
    german = Asked("GET", "text/html", "de")
    assert german.shape == "text/html de body"
    assert Asked("POST", "text/html, a/b;q=0.1", "de-AT").shape == german.shape
    assert Asked("HEAD", "text/html", "de").shape == "text/html de no body"
    assert repr(german) == "Asked(method='GET', accept='text/html', accept_language='de')"


def test_what_is_not_said_of_a_request_is_the_usual() -> None:
    assert Asked() == Asked("GET", accept="", accept_language="")


def test_every_language_has_each_phrase_and_fills_in_the_same() -> None:
    english = asdict(PHRASES[Language.ENGLISH])
    for language in Language:
        phrases = asdict(PHRASES[language])
        assert all(phrases.values())
        for name, text in phrases.items():
            filled_in = sorted(re.findall("{.*?}", text))
            assert filled_in == sorted(re.findall("{.*?}", english[name]))


@pytest.mark.parametrize(
    ("verdict", "status", "reason"),
    [
        (REQUIRED, 511, "Network Authentication Required"),
        (SIGN_IN, 302, "Found"),
        (HeaderFieldsTooLarge(""), 431, "Request Header Fields Too Large"),
        (TooManyRequests("", 5), 429, "Too Many Requests"),
        (PreconditionRequired("", "PUT"), 428, "Precondition Required"),
    ],
)
def test_each_verdict_has_its_status(verdict: Refusal, status: int, reason: str) -> None:
    reply = reply_to(verdict, Asked())
    assert (reply.status, reply.reason) == (status, reason)


@every_verdict
@every_media_type
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT", "PROPFIND", "head", "X"])
def test_content_length_is_exact(verdict: Refusal, media_type: str, method: str) -> None:
    reply = reply_to(verdict, Asked(method, media_type))
    assert fields_of(reply)["content-length"] == str(len(reply.body))


@every_verdict
@every_media_type
def test_head_gets_the_fields_of_get_and_no_body(verdict: Refusal, media_type: str) -> None:
    get = reply_to(verdict, Asked("GET", media_type))
    assert reply_to(verdict, Asked("HEAD", media_type)) == replace(get, body=b"")


@every_verdict
@every_media_type
def test_no_field_is_sent_but_these(verdict: Refusal, media_type: str) -> None:
    """So no Set-Cookie, challenge, validator, CORS, HSTS, Server or X-NetworkManager-Status."""
    expected = {
        "content-type",
        "content-length",
        "content-language",
        "cache-control",
        "vary",
        "x-content-type-options",
        "referrer-policy",
    }
    if media_type == "text/html":
        expected |= {"content-security-policy"}
    if isinstance(verdict, TooManyRequests):
        expected |= {"retry-after"}
    if isinstance(verdict, SignIn):
        expected = expected - {"vary"} | {"location", "content-security-policy"}
        if not verdict.body:
            expected -= {"content-type", "content-language", "content-security-policy"}
    fields = fields_of(reply_to(verdict, Asked(accept=media_type)))
    assert set(fields) == expected
    assert fields["cache-control"] == "no-store"
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["referrer-policy"] == "no-referrer"
    assert all(re.fullmatch(r"[!-~]+(?: [!-~]+)*", value) for value in fields.values())


@every_refusal
@every_media_type
@every_language
def test_what_was_negotiated_is_said(verdict: Refusal, media_type: str, language: str) -> None:
    fields = fields_of(reply_to(verdict, Asked(accept=media_type, accept_language=language)))
    assert fields["content-type"].partition(";")[0] == media_type
    assert fields["content-language"] == language
    assert fields["vary"] == "Accept-Language, Accept"


@every_refusal
def test_each_language_says_it_in_its_own_words(verdict: Refusal) -> None:
    for say in (page_of, line_of, lambda v, lang: str(problem_of(v, lang)["detail"])):
        said = {say(verdict, language) for language in LANGUAGES}
        assert len(said) == len(LANGUAGES)
        assert not any(re.search(r"[{}]", text.partition("<style>")[0]) for text in said)


@every_verdict
@every_language
def test_a_page_is_valid_html5(verdict: Refusal, language: str) -> None:
    reply = reply_to(verdict, Asked(accept_language=language))
    if not reply.body:
        return
    assert reply.body.startswith(b"<!DOCTYPE html>\n")
    html5lib.HTMLParser(strict=True).parse(reply.body.decode())  # raises on the first parse error
    page = Page(reply.body.decode())
    assert page.all("html") == [{"lang": "en" if isinstance(verdict, SignIn) else language}]
    assert {"charset": "utf-8"} in page.all("meta")
    assert len(page.all("title")) == 1
    assert page.text["title"].strip()


@every_refusal
@every_language
def test_a_page_loads_nothing_and_asks_for_nothing(verdict: Refusal, language: str) -> None:
    page = Page(page_of(verdict, language))
    tags = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "p",
        "a",
        "br",
        "footer",
        "span",
    }
    assert {tag for tag, _ in page.elements} <= tags
    attributes = {(tag, name) for tag, found in page.elements for name in found}
    assert attributes <= {
        ("html", "lang"),
        ("footer", "lang"),
        ("p", "class"),
        ("a", "href"),
        *(("meta", name) for name in ("charset", "name", "content", "http-equiv")),
    }
    assert not re.search(r"url\(|@import|@font-face|image|//", page.text["style"])


@every_refusal
def test_a_page_has_the_landmarks_of_a_screen_reader(verdict: Refusal) -> None:
    page = Page(page_of(verdict))
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert page.text["h1"] == page.text["title"]
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in page.all("meta")


def test_the_content_security_policy_lets_in_the_style_and_nothing_else() -> None:
    fields = fields_of(reply_to(REQUIRED, Asked()))
    style = Page(page_of(REQUIRED)).text["style"]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert dict(part.split(" ", 1) for part in fields["content-security-policy"].split("; ")) == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of `#rgb` or `#rrggbb`."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_its_colours_can_be_told_apart(scheme: int) -> None:
    palette = re.findall(r":root\{([^}]*)\}", Page(page_of(REQUIRED)).text["style"])[scheme]
    colours = dict(re.findall(r"--([\w-]+):(#\w+)", palette))
    pairs = [("ink", "card"), ("faint", "card"), ("faint", "back"), ("on-act", "act")]
    for one, other in pairs:
        bright, dim = sorted(map(luminance, (colours[one], colours[other])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (one, other)


@pytest.mark.parametrize(
    ("refresh", "content", "said"),
    [
        (10, f"10; url={LOGIN}", "You will be taken there in 10 seconds."),
        (1, f"1; url={LOGIN}", "You will be taken there in 1 second."),
        (0, f"0; url={LOGIN}", "You are being taken there now."),
    ],
)
def test_a_browser_follows_the_link_after_refresh_seconds(
    refresh: int, content: str, said: str
) -> None:
    page = Page(page_of(replace(REQUIRED, refresh=refresh)))
    assert page.refresh == [content]
    assert said in page.text["main"]


def test_without_refresh_there_is_only_the_link() -> None:
    page = Page(page_of(replace(REQUIRED, refresh=None)))
    assert page.refresh == []
    assert page.all("a") == [{"href": LOGIN}]
    assert "taken there" not in page.text["main"]


@every_language
def test_a_blocked_client_is_told_that_it_is_not_allowed(language: str) -> None:
    page, line = Page(page_of(BLOCKED, language)), line_of(BLOCKED, language)
    detail = str(problem_of(BLOCKED, language)["detail"])
    heading = page.text["h1"]
    assert heading != Page(page_of(REQUIRED, language)).text["h1"]
    assert detail.startswith(f"{heading} ({LOGIN}). ")
    assert detail in line
    # RFC 6585 section 6: a link SHOULD be there.
    assert (page.all("a"), page.text["a"]) == ([{"href": LOGIN}], "login.example.net")


def test_it_is_not_told_to_sign_in() -> None:
    assert Page(page_of(BLOCKED)).refresh == []
    assert "This device is not allowed on this network" in page_of(BLOCKED)
    assert not re.search("sign.in", page_of(BLOCKED), re.IGNORECASE)


@pytest.mark.parametrize("network", ["n", "Café & Söhne <3", "{network}", "anmelden"])
def test_the_networks_name_stays_together_in_the_heading(network: str) -> None:
    page = Page(page_of(replace(REQUIRED, network=network), "de"))
    assert page.text["span"] == network
    assert page.text["h1"] == page.text["title"] == f"Bei {network} anmelden"


@every_language
def test_the_network_is_named_and_so_is_where_the_link_leads(language: str) -> None:
    page = Page(page_of(REQUIRED, language))
    assert "Lab Wi-Fi" in page.text["title"]
    assert "login.example.net" in page.text["main"]
    assert "Lab Wi-Fi" in line_of(REQUIRED, language)
    assert "Lab Wi-Fi" in str(problem_of(REQUIRED, language)["detail"])
    assert LOGIN in line_of(REQUIRED, language)
    assert "None" not in page_of(replace(REQUIRED, network=None, refresh=None), language)


@pytest.mark.parametrize("network", [None, ""])
def test_a_network_without_a_name_is_this_network(network: str | None) -> None:
    nameless = replace(REQUIRED, network=network)
    page = Page(page_of(nameless))
    assert page.text["h1"] == page.text["title"] == "Sign in to this network"
    assert f"Sign in at {LOGIN} to use this network." in line_of(nameless)


def test_it_says_that_it_is_not_the_origin() -> None:
    said = "comes from the network you are using, not from the site you asked for"
    assert said in page_of(REQUIRED)
    assert said in line_of(REQUIRED)
    assert said in str(problem_of(REQUIRED)["detail"])


@every_refusal
@every_language
def test_a_problem_has_the_members_of_rfc_9457(verdict: Refusal, language: str) -> None:
    problem, reply = problem_of(verdict, language), reply_to(verdict, Asked())
    assert (problem["type"], problem["title"]) == ("about:blank", reply.reason)
    assert problem["status"] == reply.status
    assert isinstance(problem["detail"], str)
    rest = set(problem) - {"type", "title", "status", "detail"}
    assert rest == ({"login_url"} if reply.status == 511 else set())
    assert problem.get("login_url", LOGIN) == LOGIN


@every_refusal
@every_language
def test_plain_text_is_one_line_with_the_status(verdict: Refusal, language: str) -> None:
    line, reply = line_of(verdict, language), reply_to(verdict, Asked())
    assert line.splitlines() == [line.removesuffix("\n")]
    assert line.startswith(f"{reply.status} {reply.reason}: ")


HOSTILE = "</title></style><script>alert(1)</script>\"'&lt;\r\n\r\n{0}{url}\u2028%s"


@every_language
def test_a_name_or_url_with_markup_in_it_stays_text(language: str) -> None:
    url = "https://login.example.net/?\"'><script>x</script>&amp;"
    page = Page(page_of(replace(REQUIRED, network=HOSTILE, login_url=url), language))
    plain = Page(page_of(REQUIRED, language))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert HOSTILE.replace("\r\n", "\n") in page.text["h1"].replace("\r\n", "\n")
    assert page.all("a") == [{"href": url}]
    assert page.refresh == [f"10; url={url}"]
    assert len(line_of(replace(REQUIRED, network=HOSTILE), language).splitlines()) == 1
    assert problem_of(replace(REQUIRED, login_url=url))["login_url"] == url


def test_half_a_character_does_not_keep_a_511_from_going_out() -> None:
    for media_type in MEDIA_TYPES:
        reply = reply_to(replace(REQUIRED, network="Lab \ud800"), Asked(accept=media_type))
        assert reply.status == 511
        assert "Lab ?" in reply.body.decode()
        assert fields_of(reply)["content-length"] == str(len(reply.body))


@given(st.text(), st.sampled_from(MEDIA_TYPES), st.sampled_from(LANGUAGES))
def test_any_network_name_fits(network: str, media_type: str, language: str) -> None:
    verdict = replace(REQUIRED, network=network)
    text = reply_to(verdict, Asked("GET", media_type, language)).body.decode()
    if media_type == "text/html":
        assert [tag for tag, _ in Page(text).elements] == [
            tag for tag, _ in Page(page_of(replace(REQUIRED, network=network and "n"))).elements
        ]
    elif media_type == "text/plain":
        assert len(text.splitlines()) == 1
    else:
        assert set(json.loads(text)) == {"type", "title", "status", "detail", "login_url"}


def test_nothing_of_the_request_is_in_the_reply() -> None:
    marker = "reflected4711"
    for verdict in (
        replace(REQUIRED, because=marker),
        replace(SIGN_IN, because=marker),
        HeaderFieldsTooLarge(marker),
        HeaderFieldsTooLarge("", f"{marker} <b>"),
        HeaderFieldsTooLarge("", f"{marker}\r\nSet-Cookie: a=b"),
        HeaderFieldsTooLarge("", f"{marker}é"),
        TooManyRequests(marker, 5),
        PreconditionRequired(marker, marker),
    ):
        for media_type in MEDIA_TYPES:
            asked = Asked(
                marker, f"{media_type}, {marker}/{marker};{marker}", f"{marker}, de;q=0.5"
            )
            assert marker not in repr(reply_to(verdict, asked)), (verdict, media_type)


@given(st.text(min_size=1), st.sampled_from(MEDIA_TYPES))
def test_a_field_name_is_shown_only_if_it_is_one(name: str, media_type: str) -> None:
    reply = reply_to(HeaderFieldsTooLarge("", name), Asked(accept=media_type))
    is_token = re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII)
    unnamed = reply_to(HeaderFieldsTooLarge("", "("), Asked(accept=media_type))
    assert (reply == unnamed) is not bool(is_token)
    if media_type == "text/html":
        html5lib.HTMLParser(strict=True).parse(reply.body.decode())


def test_a_long_field_name_is_cut() -> None:
    assert f"“{'x' * 60}…”" in line_of(HeaderFieldsTooLarge("", "x" * 1_000_000))


# What makes the connectivity checks of systems call a network online.
ONLINE = [
    "NetworkManager is online",
    "success",
    "Success",
    "OK",
    "Microsoft Connect Test",
    "Microsoft NCSI",
    "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>",
    '<meta http-equiv="refresh" content="0;url=https://support.mozilla.org/kb/captive-portal"/>',
]


@every_media_type
@every_language
@pytest.mark.parametrize("network", [None, *ONLINE])
def test_no_reply_starts_like_the_answer_of_an_open_network(
    media_type: str, language: str, network: str | None
) -> None:
    for verdict in (replace(REQUIRED, network=network), SIGN_IN):
        body = reply_to(verdict, Asked(accept=media_type, accept_language=language)).body.decode()
        assert not body.startswith(tuple(ONLINE))
        assert "WISPAccessGatewayParam" not in body
        assert len(body) > 4  # Android takes 200 with less for no network, Chromium 1 for online


def test_a_check_is_led_to_the_login_server() -> None:
    reply = reply_to(SIGN_IN, Asked())
    assert fields_of(reply)["location"] == LOGIN
    assert fields_of(reply)["content-language"] == "en"
    assert Page(reply.body.decode()).all("a") == [{"href": LOGIN}]


def test_connmans_302_has_no_body_and_no_location_in_the_spelling_that_it_follows_itself() -> None:
    reply = reply_to(replace(SIGN_IN, body=False), Asked())
    assert ("location", LOGIN) in reply.fields
    assert reply.body == b""
    assert fields_of(reply)["location"] == LOGIN
    assert fields_of(reply)["content-length"] == "0"


def test_time_is_said_in_words() -> None:
    assert "in 1 second." in line_of(TooManyRequests("", 1))
    assert "600 requests in 1.5 seconds" in line_of(TooManyRequests("", 1, Rate(600, 1.5)))
    assert "in 86400 Sekunden" in line_of(TooManyRequests("", 1, Rate(600, 86400.0)), "de")


def test_two_clients_with_the_same_verdict_share_one_reply() -> None:
    one, other = (
        reply_to(replace(REQUIRED, because=f"{client} has no session"), Asked())
        for client in ("192.0.2.7", "192.0.2.8")
    )
    assert one is other


def test_a_flood_is_answered_at_once_with_or_without_a_token_of_its_own() -> None:
    browser = Asked("GET", "text/html,*/*;q=0.8", "de-DE,de;q=0.9,en;q=0.7")
    began = time.thread_time()
    for number in range(5_000):
        url = f"https://login.example.net/?state={number}"
        reply_to(REQUIRED, browser)
        assert url.encode() in reply_to(replace(REQUIRED, login_url=url), browser).body
    assert time.thread_time() - began < 5  # 0.1 s


def test_each_language_has_its_phrases() -> None:
    assert [language.value for language in Language] == LANGUAGES
