"""RFC 9110: tokens, default ports and the Date field."""

import pytest

from capport.core.http import default_port, is_token


@pytest.mark.parametrize("text", ["GET", "m-search", "X_1", "!#$%&'*+-.^_`|~0"])
def test_rfc9110_5_6_2_a_token_is_known(text: str) -> None:
    assert is_token(text)


@pytest.mark.parametrize("text", ["", "GET ", "a b", "a\n", "é", "a:b", "a/b", '"', "(", "\x7f"])
def test_rfc9110_5_6_2_what_is_no_token_is_known(text: str) -> None:
    assert not is_token(text)


def test_rfc9110_4_2_a_url_without_a_port_has_its_schemes() -> None:
    assert (default_port("http"), default_port("https")) == (80, 443)
