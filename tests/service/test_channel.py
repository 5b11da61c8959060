"""What the first process and a worker send each other."""

import json
import pickle
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.service.channel import Channel, pair

items = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=3)


@given(sent=st.lists(st.lists(items, min_size=1, max_size=4), max_size=5))
def test_what_is_sent_is_read_in_order_and_the_end_after_it(sent: list[list[object]]) -> None:
    one, other = map(Channel, pair())
    for message in sent:
        assert one.send(*message)
    one.close()
    assert list(other.messages()) == sent
    assert other.is_closed
    assert not other.send("anything")
    other.close()


def test_an_object_of_any_size_comes_along() -> None:
    end, its_end = pair()
    first, worker = Channel(end), Channel(its_end, unpickles=True)
    large = {"rules": ["x" * 1000] * 10_000}
    assert first.send("use", pickled=pickle.dumps(large))
    assert first.send("listen", [0])
    assert list(worker.messages()) == [["use", large], ["listen", [0]]]
    first.close()
    worker.close()


def test_the_first_process_takes_no_object_from_a_worker() -> None:
    end, its_end = pair()
    first, worker = Channel(end), Channel(its_end, unpickles=True)
    assert worker.send("alive", pickled=pickle.dumps("an object"))
    assert list(first.messages()) == [["alive"]]
    first.close()
    worker.close()


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b"1", b"\xff", b"[" * 60_000, b"[NaN]", b"[1e999]"]
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    end, other = pair()
    other.send(data)
    first = Channel(end)
    with pytest.raises(ValueError):  # noqa: PT011 - of json, of UTF-8, or ours
        list(first.messages())
    first.close()
    other.close()


def test_a_process_that_does_not_read_holds_nobody_up() -> None:
    end, other = pair()
    first = Channel(end)
    sent = 0
    while first.send("use", "x" * 10_000):
        sent += 1
    assert sent > 10
    assert json.loads(other.recv(1 << 16))[0] == "use"
    first.close()
    other.close()


def test_a_closed_channel_is_seen_by_the_other_end() -> None:
    end, other = pair()
    first = Channel(end)
    socket.socket.close(other)
    assert list(first.messages()) == []
    assert first.is_closed
    first.close()
