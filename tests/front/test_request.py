"""Which heads the front reads by itself, and what it reads in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.cost import FIELDS
from capport.core.place import Place
from capport.front.request import read

HEAD = b"GET /a?b HTTP/1.1\r\nHost: outside.example.com\r\n%s\r\n"


def with_fields(fields: bytes) -> bytes:
    return HEAD % fields


@pytest.mark.parametrize(
    ("fields", "keeps_open", "declared", "is_chunked"),
    [
        (b"", True, 0, False),
        (b"Connection: keep-alive\r\n", True, 0, False),
        (b"Connection: x\r\nCONNECTION:y , Close\r\n", False, 0, False),
        (b"Content-Length: 0\r\n", True, 0, False),
        (b"Content-Length: 1000000000\r\n", False, 1_000_000_000, False),
        (b"Transfer-Encoding: chunked\r\n", False, 0, True),
    ],
)
def test_rfc9112_6_a_head_says_whether_more_comes(
    fields: bytes, keeps_open: bool, declared: int, is_chunked: bool
) -> None:
    found = read(with_fields(fields), explicit=False)
    assert found
    assert (found.keeps_open, found.declared, found.is_chunked) == (
        keeps_open,
        declared,
        is_chunked,
    )


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 9999999999999999\r\n",
        b"Host: outside.example.com\r\n",
        b"hOST: www.example.org\r\n",
        b"X : y\r\n",
        b" folded\r\n",
        b"X: y\r\n folded\r\n",
        b"X: y \r\n",
        b"X: a\x00b\r\n",
        b"X: a\rb\r\n",
        b"X: a\nY: b\r\n",
        b": y\r\n",
        b"X\r\n",
        b"X(: y\r\n",
        b"X: y\r\n" * FIELDS,
    ],
)
def test_rfc9112_11_a_head_that_can_be_read_in_two_ways_is_left_to_h11(fields: bytes) -> None:
    assert read(with_fields(fields), explicit=False) is None


@pytest.mark.parametrize(
    ("line", "host", "place"),
    [
        ("GET / HTTP/1.1", "outside.example.com", "outside.example.com:80"),
        ("GET / HTTP/1.0", "Outside.Example.com.:8080", "outside.example.com:8080"),
        ("GET / HTTP/1.1", "[2001:DB8::1]", "[2001:db8::1]:80"),
        ("GET http://www.example.org/x HTTP/1.1", "www.example.org:80", "www.example.org:80"),
        ("GET http://www.example.org/x HTTP/1.1", "outside.example.com", None),
        ("GET https://www.example.org/x HTTP/1.1", "www.example.org", None),
        ("GET HTTP://www.example.org/x HTTP/1.1", "www.example.org", None),
        ("GET http://www.example.org HTTP/1.1", "www.example.org", None),
        ("GET http://www.example.org?x/ HTTP/1.1", "www.example.org", None),
        ("GET http://u@www.example.org/ HTTP/1.1", "www.example.org", None),
        ("GET * HTTP/1.1", "www.example.org", None),
        ("GET www.example.org HTTP/1.1", "www.example.org", None),
        ("GET / HTTP/1.1", "u@www.example.org", None),
        ("GET / HTTP/1.1", "www.example.org:0", None),
        ("GET / HTTP/1.1", "127.1", None),
        ("GET / HTTP/1.1", "", None),
        ("GET / HTTP/1.1", "b\xfccher.example", None),
        ("GET / HTTP/1.1", "x" * 2000, None),
        ("GET / HTTP/2.0", "www.example.org", None),
        ("get / HTTP/1.1", "www.example.org", None),
        ("GET /\x80 HTTP/1.1", "www.example.org", None),
        ("CONNECT www.example.org:443 HTTP/1.1", "www.example.org:443", "www.example.org:443"),
        ("CONNECT www.example.org:443 HTTP/1.1", "www.example.org", "www.example.org:443"),
        ("CONNECT www.example.org:443 HTTP/1.1", "www.example.org:80", None),
        ("CONNECT www.example.org HTTP/1.1", "www.example.org", None),
        ("CONNECT / HTTP/1.1", "www.example.org", None),
    ],
)
def test_rfc9112_3_2_the_target_and_the_host_field_name_one_place(
    line: str, host: str, place: str | None
) -> None:
    head = f"{line}\r\nHost: {host}\r\n\r\n".encode("latin-1")
    found = read(head, explicit=True)
    assert (str(found.claim) if found else None) == place
    if line.startswith("CONNECT"):
        assert read(head, explicit=False) is None


def test_what_a_report_and_a_reply_need_is_read() -> None:
    found = read(
        with_fields(
            b"cookie: a=b; c=d;\r\nCookie: e\r\nAuthorization: Basic x\r\n"
            b"Proxy-Authorization: y\r\nAccept: text/html\r\nAccept: */*\r\n"
            b"Accept-Language:de\r\nUser-Agent: \xe4\r\n"
        ),
        explicit=False,
    )
    assert found
    assert (found.cookies, found.authorizations) == (3, 2)
    assert (found.asked.accept, found.asked.accept_language) == ("text/html, */*", "de")
    assert (found.user_agent, found.url) == ("\xe4", "http://outside.example.com/a?b")
    assert found.claim == Place("outside.example.com", 80)
    assert found.case.fields[:2] == (("host", 23), ("cookie", 15))


@given(st.binary(max_size=300), st.integers(0, 60), st.integers(0, 8))
def test_no_bytes_make_it_raise(junk: bytes, at: int, cut: int) -> None:
    head = with_fields(b"Content-Length: 5\r\n")
    read(head[:at] + junk + head[at + cut :], explicit=False)
    read(junk, explicit=True)
