"""Which clients are in the kernel's sets, by address and by MAC, and when each is looked at."""

import pytest

from capport.core.client import ClientId, parse_address, parse_mac
from capport.router import nftables
from capport.router.elements import IDLE_LEAD, Element, Elements

ADA, MAC = parse_address("192.0.2.7"), parse_mac("02:00:00:00:00:07")
LATER = parse_address("2001:db8::7")


def element(until: float, *, idle: bool = False) -> Element:
    return Element(ADA, MAC, until, ClientId(MAC), until, idle)


def test_an_end_is_looked_at_once_when_it_has_come() -> None:
    elements = Elements()
    elements.file(element(60.0))
    assert [*elements.ended(59.9)] == []
    assert elements.next_look == 60.0
    assert [one.key for one in elements.ended(60.0)] == [ADA]
    assert [*elements.ended(1000.0)] == []


def test_where_traffic_may_put_it_off_it_is_looked_at_before_too() -> None:
    elements = Elements()
    elements.file(element(60.0, idle=True))
    assert [one.key for one in elements.ended(60.0 - IDLE_LEAD)] == [ADA]
    assert [*elements.ended(59.9)] == []
    assert [one.key for one in elements.ended(60.0)] == [ADA]


def test_traffic_puts_the_end_of_an_idle_element_off() -> None:
    elements = Elements()
    for second in range(1000):
        elements.file(element(600.0 + second, idle=True))
    assert len([*elements]) == 1
    assert [*elements.ended(1598.0)] == []
    assert [one.key for one in elements.ended(1599.0)] == [ADA]


def test_what_ends_earlier_than_it_was_to_is_looked_at_earlier() -> None:
    elements = Elements()
    for until in (600.0, 60.0):
        elements.file(element(until))
    assert [one.key for one in elements.ended(60.0)] == [ADA]
    elements.forget(element(60.0))
    assert [*elements.ended(600.0)] == []


def test_a_mac_has_the_addresses_that_are_in_the_sets() -> None:
    elements = Elements()
    one, other = element(60.0), Element(LATER, MAC, 60.0)
    for each in (one, other, Element(MAC, MAC, 60.0)):
        elements.file(each)
    assert elements.addresses(MAC) == (ADA, LATER)
    elements.forget(one)
    elements.forget(other)
    assert elements.addresses(MAC) == ()
    assert MAC in elements


@pytest.mark.parametrize(
    "text",
    [
        "02:00:00:00:00:07 timeout 1s }; flush ruleset; #",
        "192.0.2.7, 192.0.2.8",
        "192.0.2.7\nflush ruleset",
        "192.0.2.7 . ",
        "",
    ],
)
def test_a_text_that_is_no_element_never_becomes_part_of_a_command(text: str) -> None:
    with pytest.raises(ValueError, match="is no element of a set"):
        [*nftables.renew_all([("known4", text, 1.0)])]
    with pytest.raises(ValueError, match="is no element of a set"):
        [*nftables.remove_all([("known4", text)])]


@pytest.mark.parametrize(
    "text", ["192.0.2.7", "192.0.2.0/24", "2001:db8::7 . 02:00:00:00:00:07", "192.0.2.1-192.0.2.9"]
)
def test_an_element_of_any_of_the_sets_does(text: str) -> None:
    commands = [*nftables.renew_all([("known4", text, 1.0)])]
    assert len(commands) == 3
    assert all(f"{{ {text} " in command for command in commands)
