"""Which media type and which language a client gets."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.negotiation import (
    LONGEST,
    Language,
    MediaType,
    preferred_language,
    preferred_media_type,
)

HTML, PROBLEM, TEXT = MediaType.HTML, MediaType.PROBLEM, MediaType.TEXT
EN, DE, FR, ES = Language.ENGLISH, Language.GERMAN, Language.FRENCH, Language.SPANISH

CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", HTML),
        ("*/*", HTML),  # curl, wget
        (CHROMIUM, HTML),
        ("text/html", HTML),
        ("application/json", PROBLEM),
        ("application/problem+json", PROBLEM),
        ("application/*+json", PROBLEM),
        ("application/captive+json", PROBLEM),
        ("application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*", PROBLEM),
        ("application/json, text/plain, */*", PROBLEM),  # axios
        ("application/json, text/javascript, */*; q=0.01", PROBLEM),  # jQuery
        ("APPLICATION/JSON", PROBLEM),
        ("application/json;charset=utf-8", PROBLEM),
        ("application/*", PROBLEM),
        ("text/plain", TEXT),
        ("text/plain, */*", TEXT),
        ("text/plain;q=0.2, application/json;q=0.1", TEXT),
        ("text/*", HTML),
        ("text/*, application/json;q=0.5", HTML),
        ("text/html;q=0.4, text/*;q=0.8", TEXT),  # the more specific range weighs text/html
        ("text/html, application/json", HTML),  # equal: we choose
        ("text/html;q=0.9, application/json", PROBLEM),
        ("application/json;q=0.9, text/html", HTML),
        ("application/problem+json;q=0, application/json, text/plain;q=0.1", TEXT),
        ("text/html;q=0, */*", PROBLEM),
        ("text/html;q=0, application/json;q=0, */*;q=0.1", TEXT),
        ("*/*;q=0", HTML),  # no form will do, but there must be an answer
        ("application/json;q=0", HTML),
        ("image/png", HTML),
        ("image/*, audio/mpeg", HTML),
        ("application/xml, application/jsonx, application/x-json+", HTML),
        ("text/html;q=0.1, application/json;q=abc", HTML),  # a weight that is not a number
        ("text/html;q=0.1, application/json;q=-1", HTML),
        ("text/html;q=0.1, application/json;q=1.5", HTML),
        ("text/html;q=0.1, application/json;q=nan", HTML),
        ("text/html;q=0.1, application/json;q=1e-1", HTML),
        ("text/html;q=0.1, application/json;q=", HTML),
        ("text/html;q=0.1, application/json;Q=0.5", PROBLEM),
        ("text/html;q=0.1, application/json ; q = .5", PROBLEM),
        ("text/html;q=0.1, application/json;q=0.5;ext=1", PROBLEM),
        ('text/html;q=0.1, text/plain;note="a, application/json;q=1";q=0.5', TEXT),
        ('text/plain, text/html;q=0.5;x=", application/json', TEXT),  # quotes that do not end
        (",,;q=1,/,;;,=", HTML),
        (" , text/plain , ", TEXT),
    ],
)
def test_the_media_type_is_the_one_the_client_prefers(accept: str, media_type: MediaType) -> None:
    assert preferred_media_type(accept) is media_type


@pytest.mark.parametrize(
    ("accept_language", "language"),
    [
        ("", EN),
        ("*", EN),
        ("de", DE),
        ("DE-at", DE),
        ("de-Latn-DE-1996", DE),
        ("de_DE", DE),
        ("fr-CA, fr;q=0.9, en;q=0.8", FR),
        ("es-419,es;q=0.9", ES),
        ("en-US,en;q=0.9,de;q=0.8", EN),
        ("zh-TW, zh;q=0.9, de;q=0.1", DE),
        ("zh, ja", EN),
        ("de;q=0.5, fr;q=0.7", FR),
        ("fr, de", FR),  # equal: the client's order
        ("de, fr", DE),
        ("*, de;q=0.1", DE),  # RFC 4647 section 3.4: skipped if others follow
        ("en;q=0, *", DE),
        ("en;q=0", DE),
        ("en;q=0, de;q=0, fr;q=0, es;q=0", EN),
        ("de-AT, de;q=0", EN),  # we only have de, which they do not want
        ("de;q=0, fr;q=0.1", FR),
        ("deutsch, deu, d, x-de, i-de, french", EN),
        ("de;q=x, es;q=0.1", ES),
        (",;-,q=1,--", EN),
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}, fr", FR),
    ],
)
def test_the_language_is_the_one_the_client_prefers(
    accept_language: str, language: Language
) -> None:
    assert preferred_language(accept_language) is language


NAMES = st.sampled_from(["text/html", "text/plain", "application/json", "*/*", "de", "en-GB", "*"])
PARAMETERS = st.sampled_from(["", ";q=0", ";q=1", ";q=0.5", ";q", '"', ";"])
ANY_FIELD = st.one_of(
    st.text(),
    st.text(alphabet='texplainhmjsoq=01.;,/*+-"\\ \t', max_size=200),
    st.lists(st.tuples(NAMES, PARAMETERS).map("".join)).map(",".join),
)


@given(ANY_FIELD)
def test_whatever_is_sent_there_is_an_answer(field: str) -> None:
    assert preferred_media_type(field) in MediaType
    assert preferred_language(field) in Language


WEIGHTS = st.integers(0, 1000)


@st.composite
def weighted(draw: st.DrawFn, names: list[str]) -> tuple[dict[str, int], str]:
    """Each of `names` with a weight of its own, in thousandths, in any order, among others."""
    size = len(names)
    drawn = draw(st.lists(WEIGHTS, min_size=size, max_size=size, unique=True))
    weights = dict(zip(names, drawn, strict=True))
    others = draw(st.lists(st.sampled_from(["image/png", "ja-JP;q=0.3", "x", ""]), max_size=3))
    items = [f"{name};q={weight / 1000:.3f}" for name, weight in weights.items()]
    return weights, ",".join(draw(st.permutations(items + others)))


@given(weighted(["text/html", "application/json", "text/plain"]))
def test_the_form_with_the_greatest_weight_wins_in_any_order(
    case: tuple[dict[str, int], str],
) -> None:
    weights, field = case
    best = max(weights, key=weights.__getitem__)
    assert preferred_media_type(field) is MediaType(PROBLEM if best == "application/json" else best)


@given(weighted(["en", "de", "fr", "es"]))
def test_the_language_with_the_greatest_weight_wins_in_any_order(
    case: tuple[dict[str, int], str],
) -> None:
    weights, field = case
    assert preferred_language(field) is Language(max(weights, key=weights.__getitem__))


@given(st.sampled_from(MediaType), st.permutations(["*/*", "text/*;q=0.9", "application/*;q=0.9"]))
def test_a_form_with_weight_0_is_not_given_while_another_will_do(
    refused: MediaType, others: list[str]
) -> None:
    assert preferred_media_type(",".join([f"{refused};q=0", *others])) is not refused


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/*, application/json", PROBLEM),  # the one that is named
        ("text/html;q=0.5, text/*, */*", TEXT),  # the one whose type is
        ("image/x+json, text/plain;q=0.5", TEXT),
        ("application/json; q=0.1, text/plain;q=0.5", TEXT),
        ("text/plain;format=flowed, application/json", PROBLEM),  # no q is 1
        ('text/plain"x"', HTML),  # which is no media type
    ],
)
def test_the_most_specific_range_decides_between_equals(accept: str, media_type: MediaType) -> None:
    assert preferred_media_type(accept) is media_type


def test_a_language_that_is_refused_in_one_country_is_not_asked_for() -> None:
    assert preferred_language("de-AT;q=0") is EN


def test_a_header_is_read_only_so_far() -> None:
    assert LONGEST == 1000
    padding = "x/y," * (LONGEST // 4)
    assert preferred_media_type(padding + "text/plain") is HTML
    assert preferred_media_type("text/plain," + padding) is TEXT
    # What the cut divides is not taken for something shorter either.
    across = "text/plain".rjust(LONGEST, ",")
    assert preferred_media_type(across) is TEXT
    assert preferred_media_type(across + "ful") is HTML
    assert preferred_media_type("a" * 10 * LONGEST) is HTML


@pytest.mark.parametrize("unit", ["a,", '"', '\\"', '"\\', ";q=", "a;", "*/*;q=.1,", " ", "="])
def test_a_megabyte_costs_no_more_than_its_beginning(unit: str) -> None:
    field = unit * (1_000_000 // len(unit))
    began = time.thread_time()
    for start in range(50):  # different strings, so none is in the cache
        preferred_media_type(field[start:])
        preferred_language(field[start:])
    assert time.thread_time() - began < 5  # 0.1 s
