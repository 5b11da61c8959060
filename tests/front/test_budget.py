"""How many refusals are shown."""

from ipaddress import ip_address

from capport.core.client import Client
from capport.front import budget
from capport.front.budget import Budget


def client(number: int) -> Client:
    return Client(ip_address(f"192.0.2.{number}"))


def shown(of: Budget, who: Client, count: int, now: float) -> int:
    return sum(of.may_show(who, now) for _ in range(count))


def test_one_client_gets_a_quarter_and_all_together_the_whole() -> None:
    it = Budget(20)
    assert [shown(it, client(number), 1000, 0.0) for number in range(6)] == [25, 25, 25, 25, 0, 0]
    assert shown(it, client(0), 1000, 1.0) == 5
    assert shown(it, client(7), 1000, 1.0) == 15  # of the 20 of a second


def test_a_person_who_clicks_once_a_second_sees_everything() -> None:
    it = Budget(20)
    assert all(shown(it, client(1), 5, float(second)) == 5 for second in range(600))
    assert not it.take_hidden()


def test_without_a_budget_nothing_is_shown_and_nothing_counted() -> None:
    it = Budget(0)
    assert shown(it, client(1), 1000, 0.0) == 0
    assert not it.take_hidden()


def test_a_watched_client_has_a_budget_of_its_own() -> None:
    for a_second in (0, 1, 20):
        it, who = Budget(a_second), client(1)
        at_once = sum(it.may_show(who, 0.0, watched=True) for _ in range(1000))
        later = sum(it.may_show(who, 1.0, watched=True) for _ in range(1000))
        assert (at_once, later) == (budget.WATCHED.count, budget.WATCHED.count / budget.BURST)
        assert shown(it, client(2), 1000, 1.0) == a_second * budget.BURST // 4


def test_what_is_not_shown_is_counted_for_each_client_within_bounds() -> None:
    it = Budget(1)
    assert shown(it, client(1), 11, 0.0) == 1
    assert it.take_hidden() == {"192.0.2.1": 10}
    assert not it.take_hidden()
    for number in range(budget.CLIENTS + 1000):
        who = Client(ip_address("2001:db8::") + number)
        shown(it, who, 2, 0.0)
    hidden = it.take_hidden()
    assert len(hidden) <= budget.CLIENTS + 1
    assert hidden.total() > budget.CLIENTS
