"""Which addresses a policy's client rules say something of, as spans that do not overlap."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby

from capport.core.client import Address
from capport.core.policy import Access, ClientRules


def ranges(clients: ClientRules, access: Access) -> list[tuple[Address, Address]]:
    """First and last of the addresses of which the first rule by address says `access`.

    A set cannot hold two networks one in the other, so the first rule's word is worked out here.
    Networks are apart or one inside the other, hence a stack.
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
    """What is left of the spans that are wanted: (first, last, place in the order, wanted)."""
    wanted: list[tuple[int, int]] = []
    inside: list[tuple[int, int, bool]] = []  # last, and the rule that decides up to there
    cursor = 0

    def reach(last: int) -> None:
        nonlocal cursor
        if inside and inside[-1][2] and cursor <= last:
            if wanted and wanted[-1][1] + 1 == cursor:
                wanted[-1] = (wanted[-1][0], last)
            else:
                wanted.append((cursor, last))
        cursor = last + 1

    def leave(until: int | None) -> None:
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
