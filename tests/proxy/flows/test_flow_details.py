"""Whatever a client sends, its event is within bounds, as the schema says, and has no secret."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow

from capport.proxy.flows.flow_details import details_of, request_fields
from capport.report.recording import record
from json_schemas import schema_errors

NAMES = (
    *("User-Agent", "Accept", "Referer", "Range", "If-Modified-Since", "If-None-Match", "Cookie"),
    *("Authorization", "Access-Control-Request-Method"),
)
BYTES = st.binary(max_size=300) | st.sampled_from(
    [b"http://a:b@c/d?e#f", b"http://[::1/", b"bytes=9-", b"bytes=" + b"9" * 40 + b"-", b'"x', b";"]
)


def event_of(shown: http.HTTPFlow) -> dict[str, Any]:
    fields = {"time": "2030-01-31T12:00:00.000Z", "event": "refused", "client": "192.0.2.7"}
    event = fields | request_fields(shown) | details_of(shown)
    found: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in event.items() if value is not None})
    )
    return found


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), BYTES), max_size=6),
    BYTES,
    st.sampled_from(["GET", "CONNECT", "OPTIONS", "x"]),
    st.sampled_from([b"http", b"https", b"ftp", b""]),
    st.lists(st.tuples(st.sampled_from(["Retry-After", "Content-Length", "Set-Cookie"]), BYTES)),
)
def test_whatever_a_request_has_its_event_is_as_the_schema_says(
    fields: Any, path: bytes, method: str, scheme: bytes, answer: Any
) -> None:
    shown = tflow.tflow(resp=True)
    assert shown.response
    shown.request.headers = http.Headers([(name.encode(), value) for name, value in fields])
    shown.request.data.path, shown.request.method = path, method
    shown.request.data.scheme = scheme
    shown.response.headers = http.Headers([(name.encode(), value) for name, value in answer])
    event = event_of(shown)
    assert schema_errors("events.schema.json", event) == []
    assert len(json.dumps(event)) < 20_000
    assert len(record([event]).clients) == 1


@pytest.mark.parametrize(
    ("referer", "kept"),
    [
        (b"http://me:s3cret@x.test:81/a?s3cret#s3cret", "http://x.test:81/a"),
        (b"http://s3cret@x.test", "http://x.test"),
        (b"/s3cret", None),
        (b"http://[s3cret", None),
    ],
)
def test_a_referer_has_neither_query_nor_userinfo(referer: bytes, kept: str | None) -> None:
    shown = tflow.tflow()
    shown.request.headers = http.Headers([(b"Referer", referer)])
    assert event_of(shown).get("referer") == kept


def test_a_query_is_a_digest_that_is_the_same_for_the_same_query() -> None:
    shown = [tflow.tflow() for _ in range(3)]
    for one, query in zip(shown, ("a=s3cret", "a=s3cret", "a=other"), strict=True):
        one.request.path = f"/p?{query}#s3cret"
    first, second, other = (event_of(one)["query"] for one in shown)
    assert first == second != other
    assert "s3cret" not in json.dumps(event_of(shown[0]))
