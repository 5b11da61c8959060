"""The addresses that a policy's client rules concern, as ranges that do not overlap."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby

from capport.core.client import Address
from capport.core.policy import Access, ClientRules


def ranges(clients: ClientRules, access: Access) -> list[tuple[Address, Address]]:
    """The ranges (first, last) of addresses to which the first rule that matches gives `access`.

    A set of the kernel cannot hold a network and another one inside it. So this function works out
    which rule comes first for each address. It uses a stack, because two networks are either apart
    or one is inside the other.
    """
    found: list[tuple[Address, Address]] = []
    networks = [(n, number, a) for n, number, a in clients.subjects() if not isinstance(n, str)]
    networks.sort(key=lambda rule: (rule[0].version, int(rule[0][0]), rule[0].prefixlen))
    for version, group in groupby(networks, key=lambda rule: rule[0].version):
        make = IPv4Address if version == 4 else IPv6Address
        spans = [(int(n[0]), int(n[-1]), number, said is access) for n, number, said in group]
        found += [(make(first), make(last)) for first, last in _first_rules(spans)]
    return found


def _first_rules(spans: Iterable[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
    """The parts of the wanted spans that no earlier rule covers.

    A span is (first, last, number of its rule, whether it is wanted).
    """
    wanted: list[tuple[int, int]] = []
    inside: list[tuple[int, int, bool]] = []  # the last address, and the rule that applies up to it
    cursor = 0

    def reach(last: int) -> None:
        """Adds the addresses from `cursor` to `last`, if the innermost rule wants them."""
        nonlocal cursor
        if inside and inside[-1][2] and cursor <= last:
            if wanted and wanted[-1][1] + 1 == cursor:
                wanted[-1] = (wanted[-1][0], last)
            else:
                wanted.append((cursor, last))
        cursor = last + 1

    def leave(until: int | None) -> None:
        """Ends the spans that end before `until`; all of them for None."""
        while inside and (until is None or inside[-1][0] < until):
            reach(inside[-1][0])
            inside.pop()

    for first, last, *rule in spans:
        leave(first)
        reach(first - 1)
        number, is_wanted = min(rule, [*inside[-1][1:]]) if inside else rule
        inside.append((last, number, bool(is_wanted)))
    leave(None)
    return wanted
