"""A record that routers share is read only if each of its members is what the format wants."""

from typing import Any

import pytest

from capport.stores import record_json
from capport.stores.record_json import WHOLE, RecordError


def loaded(text: str | bytes, largest: int = 100) -> dict[str, Any]:
    return record_json.load(text, version=2, largest=largest)


@pytest.mark.parametrize(
    "text",
    ['{"v": 1, "a": "é"}', '{"v": 2, "a": "é"}', '{"v": 1, "a": "é"}'.encode()],
)
def test_an_object_of_this_format_or_an_earlier_one_is_read(text: str | bytes) -> None:
    assert loaded(text)["a"] == "é"


def test_a_record_may_be_as_long_as_the_bound() -> None:
    text = '{"v": 1}'
    assert loaded(text, largest=len(text)) == {"v": 1}
    with pytest.raises(RecordError, match=r"^8 characters long: at most 7 are allowed$"):
        loaded(text, largest=len(text) - 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "^not JSON: Expecting property name"),
        (b'{"v": 1, "a": "\xff"}', "^not JSON: 'utf-8' codec"),
        ('{"v": 1}'.encode("utf-16"), "^not JSON: "),
        ('{"v": 1}'.encode("utf-32-le"), "^not JSON: "),
        ("[1]", "^not a JSON object$"),
        ("{}", "^v: not a whole number from 1 to "),
        ('{"v": 0}', "^v: not a whole number from 1 to "),
        ('{"v": 3}', "^format 3, written by a newer capport; this one knows format 2$"),
    ],
)
def test_what_is_no_object_of_a_format_that_is_known_is_refused(
    text: str | bytes, says: str
) -> None:
    with pytest.raises(RecordError, match=says):
        loaded(text)


def test_lists_within_lists_do_not_exhaust_the_stack() -> None:
    with pytest.raises(RecordError, match="not JSON: "):
        loaded("[" * 100_000, largest=100_000)


@pytest.mark.parametrize("value", [0, 1, WHOLE - 1])
def test_a_whole_number_is_exact_in_every_languages_json(value: int) -> None:
    assert record_json.number({"n": value}, "n") == value
    assert WHOLE == 2**53


@pytest.mark.parametrize("found", [{}, *({"n": it} for it in (-1, WHOLE, True, 1.0, "1", None))])
def test_what_is_no_whole_number_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=r"^n: not a whole number from 0 to 9007199254740991$"):
        record_json.number(found, "n")


def test_an_object_has_as_many_members_as_it_may() -> None:
    assert record_json.members({"o": {"a": 1, "b": 2}}, "o", 2) == {"a": 1, "b": 2}
    none: tuple[object, ...] = (None, ["a"], {"a": 1, "b": 2, "c": 3})
    for value in none:
        with pytest.raises(RecordError, match=r"^o: not an object with at most 2 members$"):
            record_json.members({"o": value}, "o", 2)


def test_a_text_is_as_long_as_it_may_be_and_utf_8_can_carry_it() -> None:
    assert record_json.text({"t": "né"}, "t", 2) == "né"
    for value in (None, 1, "née", "\ud800"):
        with pytest.raises(RecordError, match=r"^t: not a text of at most 2 characters$"):
            record_json.text({"t": value}, "t", 2)


@pytest.mark.parametrize(
    "client", ["02:00:00:00:00:07", "192.0.2.7", "02:00:00:00:00:07@2001:db8::7"]
)
def test_a_clients_id_is_read(client: str) -> None:
    assert record_json.client_of(client) == client


@pytest.mark.parametrize(
    "found", ["02-00-00-00-00-07", "2001:DB8::7", "::ffff:192.0.2.7", "phone", "", None, 7]
)
def test_what_is_no_id_of_a_client_in_its_one_spelling_is_refused(found: object) -> None:
    with pytest.raises(RecordError, match=r"^client: neither a MAC nor an address nor both: "):
        record_json.client_of(found)


def test_an_id_that_is_refused_is_quoted_up_to_60_characters() -> None:
    with pytest.raises(RecordError) as refused:
        record_json.client_of("x" * 100)
    assert str(refused.value).endswith(": 'x" + "x" * 58)
