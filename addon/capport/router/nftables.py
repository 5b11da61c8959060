"""The router's rules in the kernel: put there, taken away, listed, and asked what they are for.

What they say is in `ruletext.py`, who is in their sets is `known_set.py`'s.
"""

import fcntl
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

from capport.core.client import Address
from capport.core.policy import Policy
from capport.linux.libnftables import Nftables, RulesError
from capport.router.dns_rules import STARS_PORT
from capport.router.ruleset import PROXY_PORTS as PROXY_PORTS
from capport.router.ruleset import TABLE as TABLE
from capport.router.ruleset import garden_names, garden_networks, router_of, ruleset

ENDED = "ended"  # a chain that `down` makes in it at last: whoever watches knows it was meant

TOGETHER = 500  # elements that one command takes

FORGET_LEARNED = tuple(f"flush set {TABLE} learned{version}" for version in (4, 6))
"""Commands that end what a known MAC's packets have let in: its addresses that are in no pair."""

_COMMENT = re.compile(r'comment "capport \S+, proxy ports ([0-9 ]+), (un)?tracked"')
_LEGACY = ("ip_tables_names", "ip6_tables_names")  # of iptables before nftables
_SIOCGIFHWADDR = 0x8927  # netdevice(7)
_ARPHRD_ETHER = 1


def up(
    policy: Policy,
    *,
    proxy_ports: Sequence[int] = PROXY_PORTS,
    elements: str = "",
    again: bool = False,
    rules: Nftables | None = None,
) -> None:
    """Puts the policy's rules in force, in place of any earlier ones, in one transaction.

    `elements` are further commands of that transaction: `KnownSet.commands`, so that nobody who
    is known loses a packet. `again` only in place of earlier ones, which somebody may have taken
    down this instant. Raises RulesError, with the earlier rules still in force, ValueError where
    the policy has no `router`, and OSError without libnftables.
    """
    ethernet = _is_ethernet(router_of(policy).client_interface)
    with _opened(rules) as using:
        tracked = others_may_track(using)
        text = ruleset(policy, proxy_ports=proxy_ports, ethernet=ethernet, tracked=tracked)
        if again:
            text = text.removeprefix(f"table {TABLE}\n")  # without a table, its deletion fails
        using.run(text + _garden_in_force(policy, using) + elements)


def down(*, rules: Nftables | None = None) -> None:
    """Takes the table away without a trace; nothing where there is none. Raises RulesError."""
    with _opened(rules) as using:
        using.run(f"table {TABLE}\nadd chain {TABLE} {ENDED}\ndelete table {TABLE}\n")


def show(*, rules: Nftables | None = None) -> str | None:
    """The table that is in force, in nft's own words; None where there is none."""
    with _opened(rules) as using:
        try:
            return using.run(f"list table {TABLE}")
        except RulesError as error:
            if error.missing:
                return None
            raise


@dataclass(frozen=True, slots=True)
class InForce:
    """What the table in force was made for."""

    proxy_ports: tuple[int, ...]
    tracked: bool
    """Whether conntrack sees known clients' packets."""


def in_force(rules: Nftables) -> InForce | None:
    """What is in force; None where there is no table."""
    try:
        found = _COMMENT.search(rules.outline(f"list table {TABLE}"))
    except RulesError as error:
        if error.missing:
            return None
        raise
    return InForce(tuple(map(int, found[1].split())), found[2] is None) if found else None


def handle(rules: Nftables) -> int | None:
    """The kernel's number for the table: one that has taken its place has another."""
    for item in rules.ask("list tables"):
        table = item.get("table", {})
        if f"{table.get('family')} {table.get('name')}" == TABLE:
            return int(table["handle"])
    return None


def others_may_track(rules: Nftables) -> bool:
    """Whether there are rules beside ours, which may then translate addresses or go by states.

    Whatever hooks in, to be safe: of one chain nobody can tell what the next table does.
    """
    for item in rules.ask("list chains"):
        chain = item.get("chain", {})
        if "hook" in chain and not chain["table"].startswith("capport"):
            return True
    for name in _LEGACY:
        with suppress(OSError):  # not built in
            if Path("/proc/thread-self/net", name).read_text().strip():
                return True
    return False


def update_garden(
    policy: Policy, name: str, addresses: Iterable[Address], ttl: float, rules: Nftables
) -> None:
    """Has the garden's `name` (`*.example.org` with its star) at `addresses` for `ttl` seconds.

    Only its ports beyond 80 and 443, which are mitmproxy's. Raises RulesError, `missing` where the
    rules are not up.
    """
    sets = {ports for known, ports in garden_names(policy) if known == name}
    commands = [
        command
        for address in addresses
        for ports in sorted(sets)
        for command in renew(f"garden{address.version}_{ports}", str(address), ttl)
    ]
    if commands:
        rules.run("\n".join(commands) + "\n")


def to_stars(policy: Policy) -> str:
    """Lines for resolver-unknown.conf: what is below `*.example.org` is asked where `stars` says.

    Of its options `server` alone has a pattern that leaves out the name itself.
    """
    names = [name for name, _ in garden_names(policy) if name.startswith("*.")]
    return "".join(f"server=/{n}/127.0.0.1#{STARS_PORT}\n" for n in dict.fromkeys(names))


def stars(policy: Policy) -> str:
    """The whole of resolver-stars.conf; nothing where no `*.example.org` needs it.

    Its dnsmasq puts addresses into the garden's sets as it resolves names, the one way for a name
    that nobody can look up. `nftset` takes the name itself too, so nobody may ask this one for it.
    """
    table = TABLE.replace(" ", "#")
    lines = [
        f"nftset=/{name.removeprefix('*.')}/"
        + ",".join(f"{v}#{table}#garden{v}_{ports}" for v in (4, 6))
        for name, ports in garden_names(policy)
        if name.startswith("*.")
    ]
    if not lines:
        return ""
    own = [f"port={STARS_PORT}", "listen-address=127.0.0.1", "bind-interfaces"]
    # Without a cache, so that each question of a client's has the addresses kept.
    asks = ["no-resolv", "no-hosts", "server=127.0.0.1", "cache-size=0"]
    return "".join(f"{line}\n" for line in (*own, *asks, *lines))


def renew(to: str, element: str, seconds: float) -> tuple[str, str, str]:
    """Commands that put `element` into set `to` for `seconds`, whether it is in it or not.

    An element that is there keeps its old timeout when it is added again (before Linux 6.12).
    """
    return next(renew_all([(to, element, seconds)]))


def renew_all(elements: Iterable[tuple[str, str, float]]) -> Iterator[tuple[str, str, str]]:
    """The same for many, `(to, element, seconds)`: each command costs libnftables 5 KiB."""
    by_set: dict[str, list[tuple[str, float]]] = {}
    for to, element, seconds in elements:
        by_set.setdefault(to, []).append((element, seconds))
    for to, mine in by_set.items():
        for some in batched(mine, TOGETHER):
            timed = (f"{e} timeout {max(1, round(seconds * 1000))}ms" for e, seconds in some)
            add = f"add element {TABLE} {to} {{ {', '.join(timed)} }}"
            yield add, f"delete element {TABLE} {to} {{ {', '.join(e for e, _ in some)} }}", add


def remove(out_of: str, element: str) -> tuple[str, str]:
    """Commands that leave set `out_of` without `element`, whether it is in it or not."""
    there = f"element {TABLE} {out_of} {{ {element} }}"
    return (f"add {there}", f"delete {there}")


def _garden_in_force(policy: Policy, rules: Nftables) -> str:
    """Commands that keep what the garden's names were found at, for the sets that stay."""
    commands: list[str] = []
    for ports in garden_networks(policy):
        for version in (4, 6):
            name = f"garden{version}_{ports}"
            for element, seconds in listed(rules, name):
                commands += renew(name, str(element), seconds)[:1]
    return "".join(f"{command}\n" for command in commands)


def listed(rules: Nftables, name: str) -> Iterator[tuple[str, float]]:
    """Each element of a set with timeouts, and the seconds it has left; none without the set."""
    for value, element in _elements(rules, name):
        yield value, float(element["expires"])


def counters(rules: Nftables, name: str) -> dict[str, int]:
    """How many packets each element of a set has let through; none without the set."""
    return {v: e["counter"]["packets"] for v, e in _elements(rules, name) if "counter" in e}


def _elements(rules: Nftables, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        answer = rules.ask(f"list set {TABLE} {name}")
    except RulesError as error:
        if error.missing:
            return
        raise
    for item in answer:
        for element in item.get("set", {}).get("elem", ()):
            value = element["elem"]["val"]
            text = " . ".join(value["concat"]) if isinstance(value, dict) else value
            yield text, element["elem"]


def _is_ethernet(interface: str) -> bool:
    """Whether it has MAC addresses. One that is not there yet is taken to."""
    request = struct.pack("=16s240x", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, request)
        except OSError:
            return True
    return struct.unpack_from("=H", answer, 16) == (_ARPHRD_ETHER,)


@contextmanager
def _opened(rules: Nftables | None) -> Iterator[Nftables]:
    if rules is not None:
        yield rules
        return
    own = Nftables()
    try:
        yield own
    finally:
        own.close()
