"""Passwords and the names that they belong to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.login import passwords


def test_a_password_is_kept_as_argon2id_and_checked() -> None:
    kept = passwords.hash_password("correct horse")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.is_password(kept, "correct horse")
    assert not passwords.is_password(kept, "correct horse ")
    assert kept != passwords.hash_password("correct horse")


@pytest.mark.parametrize("given_", ["nobody's", "", "x" * 1000, "\ud800"])
def test_no_password_is_right_for_nobody(given_: str) -> None:
    assert not passwords.is_password(None, given_)


def test_a_password_that_was_kept_wrongly_is_not_right() -> None:
    assert not passwords.is_password("plain", "plain")


@pytest.mark.parametrize("text", ["", "x" * 257])
def test_a_password_has_a_sensible_length(text: str) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        passwords.hash_password(text)


def test_a_password_that_no_browser_could_send_is_refused() -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        passwords.hash_password("Schl\udcfcssel")


@pytest.mark.parametrize(
    ("typed", "as_well"), [("ΐ", "Ϊ\u0301"), ("Ÿ", "Y\u0308"), ("straße", "STRASSE")]
)
def test_a_name_is_the_same_in_either_case_however_it_is_composed(typed: str, as_well: str) -> None:
    assert passwords.normal_name(typed) == passwords.normal_name(as_well) is not None


@given(st.text(max_size=100))
def test_a_name_is_the_same_when_it_is_normalised_again(text: str) -> None:
    name = passwords.normal_name(text)
    assert name is None or name.isprintable()
    if name is not None:
        assert passwords.normal_name(name) == name
