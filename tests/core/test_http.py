"""RFC 9110: tokens, default ports, credentials and the Date field."""

import pytest

from capport.core.http import (
    COPIES,
    CREDENTIALS,
    DEFAULT_PORTS,
    cookies_in,
    date_fields,
    default_port,
    is_token,
)


@pytest.mark.parametrize("text", ["GET", "m-search", "X_1", "!#$%&'*+-.^_`|~0"])
def test_rfc9110_5_6_2_a_token_is_known(text: str) -> None:
    assert is_token(text)


@pytest.mark.parametrize("text", ["", "GET ", "a b", "a\n", "é", "a:b", "a/b", '"', "(", "\x7f"])
def test_rfc9110_5_6_2_what_is_no_token_is_known(text: str) -> None:
    assert not is_token(text)


def test_rfc9110_4_2_two_schemes_have_a_port() -> None:
    assert DEFAULT_PORTS == {"http": 80, "https": 443}


def test_rfc9110_4_2_a_url_without_a_port_has_its_schemes() -> None:
    assert (default_port("http"), default_port("https"), default_port("ws")) == (80, 443, 80)


def test_rfc6585_7_4_three_fields_have_credentials() -> None:
    assert CREDENTIALS == (b"cookie", b"authorization", b"proxy-authorization")


@pytest.mark.parametrize(
    ("field", "count"), [(b"", 0), (b"a=1", 1), (b"a=1; b=2", 2), (b"a=1; ;", 1), (b"a b", 1)]
)
def test_rfc6265_4_2_1_cookies_are_counted(field: bytes, count: int) -> None:
    assert cookies_in(field) == count


def test_rfc9110_6_6_1_a_clock_that_is_not_set_gives_no_date() -> None:
    assert date_fields(1735689599) == ()
    assert date_fields(1735689600) == (("Date", "Wed, 01 Jan 2025 00:00:00 GMT"),)
    assert date_fields(1735689601) == (("Date", "Wed, 01 Jan 2025 00:00:01 GMT"),)


def test_rfc4918_9_8_copy_and_move_have_a_destination() -> None:
    assert {"COPY", "MOVE"} == COPIES
