"""Codes of vouchers, as they are made, typed and printed."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.negotiation import Language
from capport.login import vouchers
from capport.login.words import WORDS


@given(st.data())
def test_a_code_is_known_however_it_is_typed(data: st.DataObject) -> None:
    code = vouchers.new_code()
    typed = "".join(data.draw(st.sampled_from([c, c.lower(), f"{c} ", f" {c}"])) for c in code)
    typed = typed.replace("0", data.draw(st.sampled_from("0oO")))
    typed = typed.replace("1", data.draw(st.sampled_from("1iIlL")))
    assert vouchers.digest(typed[:64]) == vouchers.digest(code) or len(typed) > 64
    assert vouchers.digest(code) is not None


@given(st.text(max_size=80))
def test_any_text_may_be_typed(text: str) -> None:
    letters = unicodedata.normalize("NFKC", text).upper()  # one character may stand for several
    assert vouchers.digest(text) is None or len(letters) >= 16


@pytest.mark.parametrize(
    "between",
    [
        *("", " ", "-", ".", "\t", "\r\n", "_", "/", ":"),
        "\N{EM DASH}",
        "\N{EN DASH}",
        "\N{HYPHEN}",
        "\N{NON-BREAKING HYPHEN}",
        "\N{MINUS SIGN}",
        "\N{SOFT HYPHEN}",
        "\N{NO-BREAK SPACE}",
        "\N{NARROW NO-BREAK SPACE}",
        "\N{ZERO WIDTH SPACE}",
        "\N{ZERO WIDTH NO-BREAK SPACE}",
        "\N{MIDDLE DOT}",
        "\N{IDEOGRAPHIC SPACE}",
    ],
)
def test_a_code_is_whole_whatever_stands_between_its_groups(between: str) -> None:
    written = "7KQ3-M9XD-2HVT-4WPN"
    typed = f"{between}{written.replace('-', between)}{between}"
    assert vouchers.digest(typed) == vouchers.digest(written) is not None


def test_a_code_may_be_typed_in_full_width() -> None:
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "7KQ3-M9XD-2HVT-4WPN")
    assert vouchers.digest(wide) == vouchers.digest("7kq3m9xd2hvt4wpn")


def test_a_letter_that_no_code_has_is_not_left_out() -> None:
    assert vouchers.digest("7KQ3-M9XD-2HVT-4WPNU") is None
    assert vouchers.digest("7KQ3-M9XD-2HVT-4WPÑ") is None


def test_codes_are_random_and_hold_80_bits() -> None:
    codes = {vouchers.new_code() for _ in range(500)}
    assert len(codes) == 500
    assert all(len(code.replace("-", "")) * 5 == 80 for code in codes)
    assert set("".join(codes)) - {"-"} == set(vouchers.ALPHABET)
    assert not set("ILOU") & set(vouchers.ALPHABET)


def test_the_sheet_has_every_code_once() -> None:
    codes = {number: vouchers.new_code() for number in range(3, 10)}
    for words in WORDS.values():
        sheet = vouchers.sheet(
            codes,
            words,
            network="Café",
            place="http://192.0.2.1:8511",
            lifetime=7200,
            devices=2,
            by="2030-01-31 17:05",
        )
        assert all(sheet.count(code) == 1 for code in codes.values())
        assert sheet.count("http://192.0.2.1:8511") == sheet.count("17:05") == 7
        assert sheet.count(words.sheet["devices"].format(count=2)) == 7
        assert re.findall(rf"{words.sheet['number'][:2]}\S* (\d)", sheet) == list("3456789")
        assert max(map(len, sheet.splitlines())) <= 77


def test_a_sheet_of_one_says_no_more_than_is_so() -> None:
    (words, codes) = WORDS[Language.ENGLISH], {1: "7KQ3-M9XD-2HVT-4WPN"}
    place = "http://192.0.2.1:8511"
    sheet = vouchers.sheet(codes, words, network=None, place=place, lifetime=86400, devices=1)
    rule = " ".join(["-"] * 19 + ["+"] + ["-"] * 19)
    assert [line.strip() for line in sheet.splitlines() if line.strip()] == [
        rule,
        "Wi-Fi",
        "7KQ3-M9XD-2HVT-4WPN",
        "Join this network, open",
        "http://192.0.2.1:8511 and enter",
        "the code.",
        "1\N{NO-BREAK SPACE}day from the first use",
        "for 1 device",
        "No. 1",
        rule,
    ]
