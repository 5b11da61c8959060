"""The login server's small parts: vouchers, passwords, the throttle, the words, the theme."""

import os
import re
import string
import unicodedata
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import Client, Mac
from capport.core.negotiation import Language
from capport.login import passwords, vouchers
from capport.login.theme import LARGEST, Theme
from capport.login.throttle import FOR_ALL, FREE, LONGEST, SIGN_INS, Often, Throttle
from capport.login.words import WORDS

ADA, EVE = Client(IPv4Address("192.0.2.7")), Client(IPv4Address("192.0.2.8"))


# -- vouchers --------------------------------------------------------------------------------------


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
        assert sheet.count(words.sheet_devices.format(count=2)) == 7
        assert re.findall(rf"{words.sheet_number[:2]}\S* (\d)", sheet) == list("3456789")
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


# -- passwords -------------------------------------------------------------------------------------


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


def test_a_password_that_no_browser_could_send_is_none() -> None:
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


@given(st.floats(0.01, 3600))
def test_nobody_is_told_to_wait_for_less_than_they_have_to(seconds: float) -> None:
    units = {"second": 1, "minute": 60, "hour": 3600}
    number, unit = WORDS[Language.ENGLISH].wait(seconds).split("\N{NO-BREAK SPACE}")
    told = int(number) * units[unit.removesuffix("s")]
    assert seconds - 0.5 <= told < seconds + (61 if told > 60 else 1)


# -- the throttle ----------------------------------------------------------------------------------


def test_after_ten_wrong_ones_the_wait_doubles() -> None:
    throttle, now, waits = Throttle(), 0.0, []
    for _ in range(FREE):
        assert throttle.attempt(ADA, now) == 0
    for _ in range(11):
        wait = throttle.attempt(ADA, now)
        waits.append(wait)
        now += wait
        assert throttle.attempt(ADA, now) == 0
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, LONGEST]
    assert throttle.attempt(EVE, now) == 0


def test_a_right_one_does_not_pay_for_the_wrong_ones_before() -> None:
    throttle = Throttle()
    for _ in range(FREE - 1):
        throttle.attempt(ADA, 0.0)
    for _ in range(5):
        assert throttle.attempt(ADA, 0.0) == 0
        throttle.forgive(ADA)
    assert throttle.attempt(ADA, 0.0) == 0
    assert throttle.attempt(ADA, 0.0) > 0


def test_whoever_makes_up_addresses_meets_the_limit_for_all() -> None:
    throttle = Throttle()
    clients = [Client(ip_address(f"10.0.{n // 256}.{n % 256}")) for n in range(300)]
    waits = []
    for client in clients:
        waits.append(throttle.for_all(1.0))
        throttle.attempt(client, 1.0)
    assert waits.count(0) == FOR_ALL
    assert set(waits) == {0, 60}
    assert throttle.for_all(60.9) > 0
    assert throttle.for_all(61.1) == 0


def at(address: str, mac: str | None = None) -> Client:
    return Client(IPv6Address(address), Mac(mac) if mac else None)


def test_all_addresses_of_one_ipv6_network_are_one_client_where_there_is_no_mac() -> None:
    throttle = Throttle()
    for n in range(FREE):
        assert throttle.attempt(at(f"2001:db8::{n:x}"), 0.0) == 0
    assert throttle.attempt(at("2001:db8::ffff"), 0.0) > 0
    assert throttle.attempt(at("2001:db8:0:1::1"), 0.0) == 0


def test_one_device_that_guesses_holds_up_no_other_of_its_network() -> None:
    throttle = Throttle()
    for n in range(FREE):
        assert throttle.attempt(at(f"2001:db8::{n:x}", "02:00:00:00:00:07"), 0.0) == 0
    assert throttle.attempt(at("2001:db8::aaaa", "02:00:00:00:00:07"), 0.0) > 0
    assert throttle.attempt(at("2001:db8::bbbb", "02:00:00:00:00:08"), 0.0) == 0


def test_a_device_signs_in_only_so_often_by_all_the_addresses_of_its_own() -> None:
    """RFC 8981: without a MAC it is known by its /64."""
    often = Often()
    waits = [
        often.spend(Client(IPv6Address(f"2001:db8::{n:x}")), 0.0) for n in range(SIGN_INS.count + 1)
    ]
    assert waits[:-1] == [0] * SIGN_INS.count
    assert waits[-1] > 0
    assert often.spend(Client(IPv6Address("2001:db8:0:1::1")), 0.0) == 0


# -- words and theme -------------------------------------------------------------------------------


@pytest.mark.parametrize("language", list(Language))
def test_every_language_says_everything_and_fills_in_the_same(language: Language) -> None:
    for name in WORDS[Language.ENGLISH].__slots__:
        ours, english = getattr(WORDS[language], name), getattr(WORDS[Language.ENGLISH], name)
        if isinstance(english, str):
            assert ours.strip()
            assert _fields(ours) == _fields(english), name
    assert WORDS[language].by.keys() == WORDS[Language.ENGLISH].by.keys()
    assert WORDS[language].language is language


def _fields(text: str) -> set[str | None]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "less than a minute"),
        (59, "less than a minute"),
        (60, "1 minute"),
        (3600, "1 hour"),
        (3660, "1 hour 1 minute"),
        (2 * 3600 + 59 * 60 + 59, "2 hours 59 minutes"),
        (86400, "1 day"),
        (86400 + 120, "1 day"),
        (7 * 86400 + 3600, "7 days 1 hour"),
    ],
)
def test_time_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert WORDS[Language.ENGLISH].time(seconds).replace("\N{NO-BREAK SPACE}", " ") == said


@pytest.mark.parametrize(
    ("language", "seconds", "said"),
    [
        (Language.ENGLISH, 0, "1 second"),
        (Language.ENGLISH, 1.4, "1 second"),
        (Language.ENGLISH, 30, "30 seconds"),
        (Language.ENGLISH, 59.4, "59 seconds"),
        (Language.ENGLISH, 59.6, "1 minute"),
        (Language.ENGLISH, 120, "2 minutes"),
        (Language.GERMAN, 1, "1 Sekunde"),
        (Language.GERMAN, 2, "2 Sekunden"),
        (Language.FRENCH, 1, "1 seconde"),
        (Language.FRENCH, 2, "2 secondes"),
        (Language.SPANISH, 1, "1 segundo"),
        (Language.SPANISH, 2, "2 segundos"),
    ],
)
def test_a_short_wait_is_said_to_the_second(language: Language, seconds: float, said: str) -> None:
    assert WORDS[language].wait(seconds).replace("\N{NO-BREAK SPACE}", " ") == said


def test_terms_for_the_language_come_before_those_for_all(tmp_path: Path) -> None:
    (tmp_path / "terms.md").write_text("all", "utf-8")
    (tmp_path / "terms.de.html").write_text("<p>deutsch", "utf-8")
    theme = Theme(tmp_path)
    german, french = theme.terms(Language.GERMAN), theme.terms(Language.FRENCH)
    assert german is not None
    assert french is not None
    assert (german.html, french.html) == ("<p>deutsch", "<p>all</p>\n")
    assert german.version != french.version


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_an_error_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "theme.css")
    with pytest.raises(OSError, match=r"theme\.css is not a regular file"):
        Theme(tmp_path).style()


def test_a_file_too_large_for_a_login_page_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "theme.css").write_bytes(b" " * (LARGEST + 1))
    with pytest.raises(OSError, match=r"theme\.css"):
        Theme(tmp_path).style()


def test_our_terms_are_there_in_every_language() -> None:
    versions = {Theme(None).own_terms(language).version for language in Language}
    assert len(versions) == len(Language)
