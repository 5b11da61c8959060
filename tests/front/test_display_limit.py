"""How many refusals are shown."""

from ipaddress import ip_address

from capport.core.client import Client
from capport.front import display_limit
from capport.front.display_limit import DisplayLimit


def client(number: int) -> Client:
    return Client(ip_address(f"192.0.2.{number}"))


def shown(of: DisplayLimit, who: Client, count: int, now: float) -> int:
    return sum(of.may_show(who, now) for _ in range(count))


def test_one_client_gets_a_quarter_and_all_together_the_whole() -> None:
    it = DisplayLimit(20)
    assert [shown(it, client(number), 1000, 0.0) for number in range(6)] == [25, 25, 25, 25, 0, 0]
    assert shown(it, client(0), 1000, 1.0) == 5
    assert shown(it, client(7), 1000, 1.0) == 15  # of the 20 in each second


def test_a_person_who_clicks_once_a_second_sees_everything() -> None:
    it = DisplayLimit(20)
    assert all(shown(it, client(1), 5, float(second)) == 5 for second in range(600))
    assert not it.take_hidden()


def test_with_a_limit_of_0_nothing_is_shown_and_nothing_counted() -> None:
    it = DisplayLimit(0)
    assert shown(it, client(1), 1000, 0.0) == 0
    assert not it.take_hidden()


def test_a_watched_client_has_a_limit_of_its_own() -> None:
    for a_second in (0, 1, 20):
        it, who = DisplayLimit(a_second), client(1)
        at_once = sum(it.may_show(who, 0.0, watched=True) for _ in range(1000))
        later = sum(it.may_show(who, 1.0, watched=True) for _ in range(1000))
        assert (at_once, later) == (
            display_limit.WATCHED.count,
            display_limit.WATCHED.count / display_limit.BURST,
        )
        assert shown(it, client(2), 1000, 1.0) == a_second * display_limit.BURST // 4


def test_what_is_not_shown_is_counted_for_each_client_within_bounds() -> None:
    it = DisplayLimit(1)
    assert shown(it, client(1), 11, 0.0) == 1
    assert it.take_hidden() == {"192.0.2.1": 10}
    assert not it.take_hidden()
    for number in range(display_limit.CLIENTS + 1000):
        who = Client(ip_address("2001:db8::") + number)
        shown(it, who, 2, 0.0)
    hidden = it.take_hidden()
    assert len(hidden) <= display_limit.CLIENTS + 1
    assert hidden.total() > display_limit.CLIENTS
