"""The addresses that a policy's client rules concern, as ranges that do not overlap."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from itertools import batched, groupby
from operator import itemgetter

from capport.core.client import Address
from capport.core.policy import ClientRules
from capport.core.standing import Kind, settled


def ranges(clients: ClientRules, kind: Kind) -> list[tuple[Address, Address]]:
    """The ranges (first, last) of addresses that are `kind`, as the first client rule settles it.

    A set of the kernel cannot hold a network and another one inside it. So this function works out
    which rule comes first for each address. Two networks are either apart, or one is inside the
    other.
    """
    found: list[tuple[Address, Address]] = []
    networks = sorted(
        (n.version, int(n.network_address), n.prefixlen, int(n.broadcast_address), number, one)
        for n, number, one in settled(clients)
        if not isinstance(n, str)
    )
    for version, group in groupby(networks, key=itemgetter(0)):
        make = IPv4Address if version == 4 else IPv6Address
        spans = ((first, last, number, one is kind) for _, first, _, last, number, one in group)
        found += [(make(first), make(last)) for first, last in _first_rules(spans)]
    return found


def _first_rules(spans: Iterable[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
    """The parts of the wanted spans that no earlier rule covers.

    A span is (first, last, number of its rule, whether it is wanted). It changes something where
    its own rule, or that of the span around it if that comes first, wants what the one around it
    did not, or the reverse. Where two changes meet, nothing changes.
    """
    changes: set[int] = set()
    around: list[tuple[int, int, bool]] = []  # the last address, and the rule that applies up to it
    for first, last, number, is_wanted in spans:
        while around and around[-1][0] < first:
            around.pop()
        outer = around[-1][1:] if around else (number, False)
        rule = min(outer, (number, is_wanted)) if around else (number, is_wanted)
        if rule[1] is not outer[1]:
            changes ^= {first, last + 1}
        around.append((last, *rule))
    return [(first, after - 1) for first, after in batched(sorted(changes), 2)]
