"""What the pages say, in each language."""

import string
from collections.abc import Iterator, Mapping
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.negotiation import Language
from capport.core.policy import Conditions
from capport.login.words import WORDS


@pytest.mark.parametrize("language", list(Language))
def test_every_language_says_everything_and_fills_in_the_same(language: Language) -> None:
    for name in WORDS[Language.ENGLISH].__slots__:
        ours, english = getattr(WORDS[language], name), getattr(WORDS[Language.ENGLISH], name)
        assert type(ours) is type(english), name
        if isinstance(english, Mapping):
            assert ours.keys() == english.keys(), name
        for text, original in zip(_texts(ours), _texts(english), strict=True):
            assert text.strip(), name
            assert _fields(text) == _fields(original), name
    assert WORDS[language].lead.keys() == WORDS[language].more.keys() == set(Conditions)
    assert WORDS[language].language is language


def _texts(words: object) -> Iterator[str]:
    """Each text in a text, a list or a table of texts, in the order of the names."""
    match words:
        case str():
            yield words
        case list():
            yield from chain.from_iterable(map(_texts, words))
        case dict():
            yield from chain.from_iterable(_texts(words[name]) for name in sorted(words))


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
def test_a_short_wait_is_shown_to_the_second(language: Language, seconds: float, said: str) -> None:
    assert WORDS[language].wait(seconds).replace("\N{NO-BREAK SPACE}", " ") == said


@given(st.floats(0.01, 3600))
def test_nobody_is_told_to_wait_for_less_than_they_have_to(seconds: float) -> None:
    units = {"second": 1, "minute": 60, "hour": 3600}
    number, unit = WORDS[Language.ENGLISH].wait(seconds).split("\N{NO-BREAK SPACE}")
    shown = int(number) * units[unit.removesuffix("s")]
    assert seconds - 0.5 <= shown < seconds + (61 if shown > 60 else 1)
