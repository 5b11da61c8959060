"""Deadlines: each key falls due once, at the instant that was set last."""

import math

from hypothesis import given
from hypothesis import strategies as st

from capport.core.deadlines import Deadlines

KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 20)),
        st.tuples(st.just("drop"), KEYS, st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
    )
)


@given(STEPS)
def test_what_falls_due_is_what_a_dict_of_instants_says(steps: list[tuple[str, str, int]]) -> None:
    deadlines, model = Deadlines[str](), dict[str, int]()
    for step, key, at in steps:
        if step == "set":
            deadlines.set(key, at)
            model[key] = at
        elif step == "drop":
            deadlines.drop(key)
            model.pop(key, None)
        else:
            due = {key for key, instant in model.items() if instant <= at}
            found = list(deadlines.due(at))
            assert sorted(found) == sorted(due)
            model = {key: instant for key, instant in model.items() if key not in due}
        assert deadlines.next <= min(model.values(), default=math.inf)


def test_what_is_due_comes_the_earliest_first() -> None:
    deadlines = Deadlines[str]()
    for key, at in (("b", 2), ("a", 1), ("c", 3)):
        deadlines.set(key, at)
    assert list(deadlines.due(2)) == ["a", "b"]
    assert deadlines.next == 3


def test_a_key_that_is_dropped_or_moved_to_later_is_not_due_before() -> None:
    deadlines = Deadlines[str]()
    for key in "ab":
        deadlines.set(key, 1)
    deadlines.drop("a")
    deadlines.set("b", 5)
    assert list(deadlines.due(4)) == []
    assert list(deadlines.due(5)) == ["b"]


def test_keys_of_one_instant_need_not_be_comparable() -> None:
    deadlines, keys = Deadlines[object](), [object(), object()]
    for key in keys:
        deadlines.set(key, 1)
    assert list(deadlines.due(1)) == keys


def test_what_is_set_while_it_is_read_is_read_again() -> None:
    deadlines = Deadlines[str]()
    deadlines.set("a", 1)
    seen = []
    for key in deadlines.due(5):
        seen.append(key)
        if len(seen) < 3:
            deadlines.set(key, 4)
    assert seen == ["a", "a", "a"]


def test_a_key_that_is_moved_for_ever_keeps_the_heap_small() -> None:
    deadlines = Deadlines[str]()
    deadlines.set("b", 2)
    for at in range(10_000, 0, -1):
        deadlines.set("a", at)
    assert len(deadlines) < 100
    assert list(deadlines.due(1)) == ["a"]
    assert list(deadlines.due(2)) == ["b"]


def test_a_key_that_is_put_off_or_dropped_and_set_again_has_one_entry() -> None:
    deadlines = Deadlines[str]()
    for at in range(1000):
        deadlines.set("a", 1000 + at)
        deadlines.drop("a")
        deadlines.set("a", 1001 + at)
        assert len(deadlines) == 1
    assert list(deadlines.due(1999)) == []
    assert list(deadlines.due(2000)) == ["a"]
    assert len(deadlines) == 0
