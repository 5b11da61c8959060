"""Which connection has its turn next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from capport.front.turns import Turns

CLIENTS = st.sampled_from("abcde")


@given(st.lists(CLIENTS))
def test_each_client_has_one_thing_done_before_any_has_two_done(
    clients: list[str],
) -> None:
    turns = Turns[str, tuple[str, int]]()
    for number, client in enumerate(clients):
        turns.add(client, (client, number))
    assert len(turns) == len(clients)
    assert all(turns.of(client) == count for client, count in Counter(clients).items())
    taken = [turns.next() for _ in clients]
    assert sorted(taken) == sorted((client, number) for number, client in enumerate(clients))
    done = Counter[str]()
    for client, _ in taken:
        done[client] += 1
        waiting = [other for other in set(clients) if done[other] < clients.count(other)]
        assert all(done[client] <= done[other] + 1 for other in waiting)
    for client in set(clients):  # each client's own is in the order in which it came
        own = [number for who, number in taken if who == client]
        assert own == sorted(own)


@given(st.lists(st.tuples(CLIENTS, st.sampled_from(["add", "next", "drop"]))))
def test_nothing_is_lost_and_nothing_done_twice(steps: list[tuple[str, str]]) -> None:
    turns, left, taken = Turns[str, int](), dict[int, str](), list[int]()
    for number, (client, step) in enumerate(steps):
        if step == "add":
            turns.add(client, number)
            left[number] = client
        elif step == "next" and turns:
            taken.append(turns.next())
            del left[taken[-1]]
        elif step == "drop" and turns.of(client):
            taken.append(turns.drop_oldest(client))
            assert taken[-1] == min(it for it, whose in left.items() if whose == client)
            del left[taken[-1]]
        assert len(turns) == len(left)
    assert len(set(taken)) == len(taken)
