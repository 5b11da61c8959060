"""A map that strangers fill has a bound."""

from capport.core.bounded_map import BoundedMap


def test_a_full_map_forgets_what_was_set_longest_ago() -> None:
    bounded = BoundedMap[str, int](2)
    for key in "abac":
        bounded[key] = ord(key)
    assert list(bounded) == ["a", "c"]
