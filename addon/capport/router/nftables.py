"""Loads the router's rules into the kernel, removes them, lists them, and changes their sets.

`ruleset.py` has the rules' text; `known_clients.py` decides which clients are in their sets.
"""

import fcntl
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

from capport.core.client import Address
from capport.core.policy import Policy
from capport.linux.libnftables import Nftables
from capport.router import membership
from capport.router.dns_rules import STARS_PORT
from capport.router.ruleset import PROXY_PORTS as PROXY_PORTS
from capport.router.ruleset import TABLE as TABLE
from capport.router.ruleset import (
    dropped,
    garden_names,
    garden_networks,
    router_of,
    ruleset,
    sets_of_names,
)

ENDED = "ended"
"""The chain that `down` adds before it deletes the table: so `restorer.py` does not restore it."""

TOGETHER = 500  # elements that one command takes

FORGET_LEARNED = tuple(f"flush set {TABLE} learned{version}" for version in (4, 6))
"""Commands that clear the learned addresses: those of known MACs that are in no pair yet."""

# An address, a network, a MAC or a port, or some of them together. Nothing in it ends a command.
_ELEMENT = re.compile(r"[0-9a-zA-Z.:/-]+(?: \. [0-9a-zA-Z.:/-]+)*", re.ASCII)
_COMMENT = re.compile(r"capport \S+, proxy ports ([0-9 ]+), (un)?tracked")
_TABLE_HANDLE, _TABLE_USERDATA = 4, 6  # NFTA_TABLE_* of linux/netfilter/nf_tables.h
_LEGACY = {"ip_tables_names": "iptables-legacy", "ip6_tables_names": "ip6tables-legacy"}
_SIOCGIFHWADDR = 0x8927  # netdevice(7)
_ARPHRD_ETHER = 1


def up(
    policy: Policy,
    *,
    rules: Nftables,
    proxy_ports: Sequence[int] = PROXY_PORTS,
    elements: str = "",
    only_replace: bool = False,
) -> None:
    """Loads the policy's rules in place of any earlier ones, in one transaction.

    `elements` are further commands of that transaction, which add all known clients, so that they
    lose no packet. With `only_replace` it fails if no table is loaded: another process may remove
    it at any time. Raises RulesError, with the earlier rules still in force, ValueError if the
    policy has no `router`, and OSError if the kernel cannot be asked.
    """
    ethernet = _is_ethernet(router_of(policy).client_interface)
    tracked = others_may_track(rules)
    text = ruleset(policy, proxy_ports=proxy_ports, ethernet=ethernet, tracked=tracked)
    if only_replace:
        text = text.removeprefix(f"table {TABLE}\n")  # without a table, its deletion fails
    rules.run(text + _kept(policy, rules) + elements)


def down(*, rules: Nftables) -> None:
    """Removes the table, if there is one. Raises RulesError."""
    rules.run(f"table {TABLE}\nadd chain {TABLE} {ENDED}\ndelete table {TABLE}\n")


def show(*, rules: Nftables) -> str | None:
    """The loaded table as nft(8) prints it; None if there is none."""
    return rules.listing(f"list table {TABLE}") or None


@dataclass(frozen=True, slots=True)
class InForce:
    """The loaded table, and what it was made for, as its comment says."""

    handle: int
    """The kernel's number for it; a table that replaces it has another number."""
    proxy_ports: tuple[int, ...]
    tracked: bool
    """Whether conntrack sees known clients' packets."""


def in_force() -> InForce | None:
    """What is in force; None if our table is not loaded."""
    loaded = membership.table() or {}
    found = _COMMENT.search(loaded.get(_TABLE_USERDATA, b"").decode(errors="replace"))
    if found is None:
        return None
    ports = tuple(map(int, found[1].split()))
    return InForce(int.from_bytes(loaded[_TABLE_HANDLE]), ports, found[2] is None)


def others_may_track(rules: Nftables) -> bool:
    """Whether other tables have rules that may need conntrack, for NAT or for connection states.

    Any chain at a hook counts, to be safe: a chain may use conntrack, and we cannot tell.
    """
    for item in rules.ask("list chains"):
        chain = item.get("chain", {})
        if "hook" in chain and not chain["table"].startswith("capport"):
            return True
    return any(tables for _, tables in legacy_tables())


def legacy_tables() -> Iterator[tuple[str, list[str]]]:
    """The command of each iptables-legacy, and the tables that it has in the kernel."""
    for name, command in _LEGACY.items():
        with suppress(OSError):  # not built in
            yield command, Path("/proc/thread-self/net", name).read_text().split()


def update_names(
    policy: Policy, name: str, addresses: Iterable[Address], ttl: float, rules: Nftables
) -> None:
    """Puts the `addresses` of `name` into its sets (`sets_of_names`) for `ttl` seconds.

    Raises RulesError, with `missing` set if our table is not loaded.
    """
    sets = sorted({to for known, to in sets_of_names(policy) if known == name})
    elements = [(to.format(at.version), str(at), ttl) for at in addresses for to in sets]
    if commands := [*renew_all(elements)]:
        rules.run("\n".join(commands) + "\n")


def to_stars(policy: Policy) -> str:
    """Lines for resolver-unknown.conf: they send questions below `*.example.org` to `stars`.

    Only dnsmasq's option `server` has a pattern that excludes `example.org` itself.
    """
    names = [name for name, _ in garden_names(policy) if name.startswith("*.")]
    return "".join(f"server=/{n}/127.0.0.1#{STARS_PORT}\n" for n in dict.fromkeys(names))


def stars(policy: Policy) -> str:
    """The whole of resolver-stars.conf; empty if no `*.example.org` needs it.

    The dnsmasq with this file adds each address to the garden's sets when it resolves a name below
    the star, because we cannot look these names up in advance. Its option `nftset` would also add
    `example.org` itself, so clients must not reach this resolver with that name (`to_stars`).
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
    # Without a cache, so that each question of a client renews the addresses in the sets.
    asks = ["no-resolv", "no-hosts", "server=127.0.0.1", "cache-size=0"]
    return "".join(f"{line}\n" for line in (*own, *asks, *lines))


type _Timed = tuple[str, str, float]
"""A set, an element of it, and the seconds after which the kernel removes the element."""


def add_all(elements: Iterable[_Timed]) -> Iterator[str]:
    """Commands that put elements into sets that lack them. Raises ValueError.

    They are few, because libnftables takes 5 KiB for each.
    """
    for to, mine in _by_set(elements):
        yield _add(to, mine)


def renew_all(elements: Iterable[_Timed]) -> Iterator[str]:
    """Commands that put elements into sets, whether or not they are there. Raises ValueError.

    Before Linux 6.12, an element that is added again keeps its old timeout. So it is deleted first.
    """
    for to, mine in _by_set(elements):
        yield _add(to, mine)
        yield f"delete element {TABLE} {to} {{ {', '.join(mine)} }}"
        yield _add(to, mine)


def remove_all(elements: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Commands that remove elements, there or not, each from its set. Raises ValueError."""
    for out_of, mine in _by_set((out_of, element, 0.0) for out_of, element in elements):
        there = f"element {TABLE} {out_of} {{ {', '.join(mine)} }}"
        yield f"add {there}"
        yield f"delete {there}"


def _add(to: str, elements: Mapping[str, float]) -> str:
    timed = (f"{e} timeout {max(1, round(left * 1000))}ms" for e, left in elements.items())
    return f"add element {TABLE} {to} {{ {', '.join(timed)} }}"


def _by_set(elements: Iterable[_Timed]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """The elements of each set, at most TOGETHER at a time.

    Raises ValueError for a text that is no element, because it might be more commands.
    """
    found: dict[str, dict[str, float]] = {}
    for name, element, seconds in elements:
        if not _ELEMENT.fullmatch(element):
            raise ValueError(f"{element!r} is no element of a set")
        found.setdefault(name, {})[element] = seconds
    for name, mine in found.items():
        for some in batched(mine.items(), TOGETHER):
            yield name, dict(some)


def _kept(policy: Policy, rules: Nftables) -> str:
    """Commands that add the present elements to the new sets, each for the time it has left."""
    sets = [to.format(version) for _, to in sets_of_names(policy) for version in (4, 6)]
    sets += [f"garden{version}_{ports}" for ports in garden_networks(policy) for version in (4, 6)]
    sets += [name for known in (False, True) for name, _, _ in dropped(policy, known=known)]
    kept = (
        (to, e.text, e.left) for to in dict.fromkeys(sets) for e in membership.elements(rules, to)
    )
    return "".join(f"{add}\n" for add in add_all(kept))


def _is_ethernet(interface: str) -> bool:
    """Whether the interface has MAC addresses; assumes so if it does not exist yet."""
    request = struct.pack("=16s240x", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, request)
        except OSError:
            return True
    return struct.unpack_from("=H", answer, 16) == (_ARPHRD_ETHER,)
