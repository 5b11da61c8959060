"""What a request's head says: the page it asks for, its credentials, and how they are handled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.http import Headers, Request

from capport.core.place import Place
from capport.proxy.request_head import credentials_in, redact, restore, url_of

_NAMES = st.sampled_from([b"Cookie", b"cookie", b"Authorization", b"Accept"])
_VALUES = st.text("ab=;, []redacted:12", max_size=30).map(str.encode)


def with_fields(fields: list[tuple[bytes, bytes]]) -> Request:
    request = Request.make("GET", "http://x.test/")
    request.headers = Headers(fields)
    return request


@pytest.mark.parametrize(
    ("cookies", "count"),
    [
        ((b"a=b; c=d", b"e=f"), 3),
        ((b"a=b",), 1),
        ((b"a=b; ;c=d;", b""), 2),
        ((b"",), 0),
        ((b" ; ",), 0),
    ],
)
def test_cookies_are_counted_one_by_one(cookies: tuple[bytes, ...], count: int) -> None:
    request = with_fields([(b"Cookie", value) for value in cookies])
    before = credentials_in(request)
    redact(request)
    assert before == credentials_in(request) == ({"cookie": count} if count else {})


@pytest.mark.parametrize(
    ("authority", "host", "shown"),
    [
        (b"", b"u:s3cret@x.test", (b"", "[redacted]@x.test")),
        (b"u:s3cret@x.test:8080", b"x.test", (b"[redacted]@x.test:8080", "x.test")),
        (b"u@s3cret@x.test", b"\ns3cret@", (b"[redacted]@x.test", "[redacted]@")),
    ],
)
def test_userinfo_is_counted_once_and_not_shown(
    authority: bytes, host: bytes, shown: tuple[bytes, str]
) -> None:
    request = with_fields([(b"host", host)])
    request.data.authority = authority
    redact(request)
    assert (request.data.authority, request.headers["host"]) == shown
    assert credentials_in(request) == {"userinfo": 1}


@pytest.mark.parametrize(
    ("scheme", "claim", "path", "url"),
    [
        ("http", Place("example.org", 80), "/?a", "http://example.org/?a"),
        ("http", Place("example.org", 8080), "/", "http://example.org:8080/"),
        ("https", Place("example.org", 443), "/", "https://example.org/"),
        ("http", Place("example.org", 80), "*", None),
        ("http", None, "/", None),
    ],
)
def test_the_page_asked_for_is_as_a_browser_shows_it(
    scheme: str, claim: Place | None, path: str, url: str | None
) -> None:
    assert url_of(scheme, claim, path) == url


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))
def test_redacting_hides_every_value_keeps_the_count_and_can_be_undone(
    fields: list[tuple[bytes, bytes]],
) -> None:
    request = with_fields(fields)
    headers = request.headers
    shown = {name.lower(): len(value) for name, value in fields}
    taken = redact(request)
    pairs = sum(bool(p.strip()) for n, v in fields if n.lower() == b"cookie" for p in v.split(b";"))
    counted = credentials_in(request)
    assert counted.get("cookie", 0) == pairs
    assert counted.get("authorization", 0) == sum(n == b"Authorization" for n, _ in fields)
    for name, value in headers.fields:
        assert name == b"Accept" or value.startswith(b"[redacted")
    assert set(taken) == set(shown) - {b"accept"}
    restore(headers, taken)
    assert list(headers.fields) == fields
