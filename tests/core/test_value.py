"""A value is a key of a map, and has no room for fields that it does not declare."""

import pytest

from capport.core.value import value


@value
class Pair:
    one: int
    other: int


def test_equal_values_are_one_key() -> None:
    assert {Pair(1, 2): "a"}[Pair(1, 2)] == "a"


def test_a_value_has_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        Pair(1, 2).third = 3  # type: ignore[attr-defined]
