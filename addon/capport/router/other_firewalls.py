"""Finds other tables, such as those of Docker and ufw, that drop packets which ours accepts.

Each chain at a hook decides for itself: a packet passes only if all of them accept it. This module
follows the rules of each other table for a few packets without which no portal works. A match that
it cannot read (a set, an extension of iptables) may match or not, so it tries both; it names a
chain only if every path through the chain ends in a drop.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from capport.linux.libnftables import Nftables
from capport.router.nftables import legacy_tables
from capport.router.ruleset import TABLE

CLOSED = "inet capport_closed"
"""The table of scripts/router/closed.nft, which is there until the rules are in force."""

type _Facts = Mapping[str, str | int]
type _Json = dict[str, Any]

_FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6")}

# What a rule or a chain does with a packet: _LEAVE leaves the chain, _ON goes on to the next rule.
_ACCEPT, _DROP, _LEAVE, _ON = "accept", "drop", "leave", "on"
_VERDICTS = {
    "accept": _ACCEPT,
    "continue": _ON,
    "drop": _DROP,
    "queue": _ACCEPT,
    "reject": _DROP,
    "return": _LEAVE,
}
_MAY_MATCH = ("ct count", "limit", "quota", "xt")

# These find, in our table as nft(8) prints it, the interfaces, and the ports of the proxy and the
# login server.
_WAY = re.compile(r'iifname "([^"]+)" oifname "([^"]+)" goto from_client')
_LET_IN = re.compile(
    r"tcp dport (\{[^}]*\}|\d+) ct status dnat accept"
    r"|fib daddr type local tcp dport (\d+)[^\n]* accept"
)

# iptables' matches as nft(8) prints them: its JSON has only their names.
_STATES = re.compile(r" ct state ([a-z,]+) ")
_PORTS = re.compile(r" (tcp|udp) dport \{ ([0-9, ]+) \} ")


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that must pass at `hook`, and what the message calls it."""

    hook: str
    what: str
    facts: _Facts


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A base chain (nft(8)), at a hook: the chains of its table, and the packets that it drops."""

    table: str
    name: str
    beside: Collection[str]
    dropped: list[Packet]


def in_the_way(rules: Nftables) -> list[str]:
    """A sentence for each chain that drops what our table accepts, with commands that allow it.

    An empty list if our table is not loaded. Raises RulesError.
    """
    ours = rules.outline(f"list table {TABLE}")
    if (way := _WAY.search(ours)) is None:
        return []
    ports = {
        int(port)
        for let_in in _LET_IN.findall(ours)
        for port in re.findall(r"\d+", " ".join(let_in))
    }
    packets = [*_packets(way[1], way[2], ports)]
    dropping = (chain for table in _tables(rules) for chain in _dropping(table, rules, packets))
    return [*map(_sentence, dropping), *_legacy()]


def _packets(clients: str, origins: str, ports: Iterable[int]) -> Iterator[Packet]:
    web: _Facts = {"l4proto": "tcp", "sport": 50_000, "dport": 443, "state": "new"}
    answer: _Facts = {"l4proto": "tcp", "sport": 443, "dport": 50_000, "state": "established"}
    there = {**web, "iifname": clients, "oifname": origins}
    yield Packet("forward", "what known clients send", there)
    back = {**answer, "iifname": origins, "oifname": clients}
    yield Packet("forward", "the answers to them", back)
    for protocol, port in [*(("tcp", port) for port in sorted(ports)), ("udp", 53), ("udp", 67)]:
        source = 68 if port == 67 else 50_000
        facts: _Facts = {"l4proto": protocol, "sport": source, "dport": port}
        here = {**facts, "iifname": clients, "state": "new"}
        yield Packet("input", f"{protocol.upper()} port {port}", here)


def _tables(rules: Nftables) -> Iterator[str]:
    """The other tables that have a filter chain at these hooks."""
    chains = [item["chain"] for item in rules.ask("list chains") if "chain" in item]
    tables = {
        f"{chain['family']} {chain['table']}": None
        for chain in chains
        if chain.get("type") == "filter" and chain.get("hook") in ("forward", "input")
        if chain["family"] in _FAMILIES
    }
    yield from (table for table in tables if table != TABLE)


def _dropping(table: str, rules: Nftables, packets: Iterable[Packet]) -> Iterator[BaseChain]:
    """Each chain of `table` that drops some of `packets`."""
    bases: list[_Json] = []
    chains: dict[str, list[_Json]] = {}
    for item in rules.ask(f"list table {table}"):
        if chain := item.get("chain"):
            chains[chain["name"]] = []
            if chain.get("type") == "filter":
                bases.append(chain)
        elif rule := item.get("rule"):
            chains[rule["chain"]].append(rule)
    extended = any("xt" in said for each in chains.values() for r in each for said in r["expr"])
    printed = _printed(table, rules) if extended else {}

    def drops(base: _Json, packet: Packet, family: str) -> bool:
        if family == "ipv6" and packet.facts["dport"] == 67:
            return False  # port 67 is DHCP for IPv4 only
        ends = _Walk(chains, printed, {**packet.facts, "nfproto": family}).chain(base["name"])
        return {base.get("policy", _ACCEPT) if end == _LEAVE else end for end in ends} == {_DROP}

    for base in bases:
        families = _FAMILIES[base["family"]]
        mine = (packet for packet in packets if packet.hook == base["hook"])
        dropped = [packet for packet in mine if any(drops(base, packet, f) for f in families)]
        if dropped:
            yield BaseChain(table, base["name"], chains, dropped)


def _printed(table: str, rules: Nftables) -> dict[int | None, str]:
    """Each rule as nft(8) prints it, by its handle."""
    lines = (line.rpartition(" # handle ") for line in rules.numbered(f"list table {table}"))
    return {int(handle): f" {text.strip()} " for text, _, handle in lines if handle.isdecimal()}


@dataclass(frozen=True, slots=True)
class _Walk:
    """All paths of one packet through a table's chains."""

    chains: Mapping[str, list[_Json]]
    printed: Mapping[int | None, str]
    facts: _Facts
    been: dict[str, set[str]] = field(default_factory=dict)  # the results of `chain`, by name

    def chain(self, name: str) -> set[str]:
        """The ways in which the packet may end in the chain: by a verdict, or by leaving it."""
        if name not in self.been:
            self.been[name] = self._ends(name)
        return self.been[name]

    def _ends(self, name: str) -> set[str]:
        ends: set[str] = set()
        for rule in self.chains.get(name, ()):
            may = self._rule(rule)
            ends |= may - {_ON}
            if _ON not in may:
                return ends
        return ends | {_LEAVE}

    def _rule(self, rule: _Json) -> set[str]:
        """What the rule may do with the packet; _ON if it may not match."""
        unless: set[str] = set()  # _ON is in it if a match so far may not hold
        for statement in rule["expr"]:
            for kind, said in statement.items():
                if kind in ("jump", "goto"):
                    return unless | self._target(kind, said)
                if kind in _VERDICTS:
                    return unless | {_VERDICTS[kind]}
                if kind == "vmap":
                    return unless | self._vmap(said)
                if kind == "xt" and (said or {}).get("type") == "target":
                    if said["name"] == "REJECT":
                        return unless | {_DROP}
                    continue
                if kind == "match":
                    one = self._match(said)
                elif kind == "xt":
                    one = self._extension(self.printed.get(rule.get("handle"), ""))
                elif kind in _MAY_MATCH:
                    one = None
                else:
                    continue
                if one is False:
                    return {_ON}
                if one is None:
                    unless = {_ON}
        return {_ON}

    def _target(self, kind: str, said: _Json) -> set[str]:
        ends = self.chain(said["target"])
        return {_ON if kind == "jump" and end == _LEAVE else end for end in ends}

    def _vmap(self, said: _Json) -> set[str]:
        """What a map of verdicts may do with the packet, as `_rule` returns it."""
        elements = said["data"].get("set") if isinstance(said["data"], dict) else None
        if elements is None:
            return {_ACCEPT, _ON}  # a named map, which we cannot read: it may accept
        may = {_ON}
        for value, verdict in elements:
            one = self._match({"op": "==", "left": said["key"], "right": value})
            if one is not False:
                then = self._rule({"expr": [verdict]})
                if one:
                    return then
                may |= then
        return may

    def _match(self, said: _Json) -> bool | None:
        """Whether the packet meets a match; None if unknown."""
        mine = self._value(said["left"])
        if mine is False:
            return False
        if mine is None or said["op"] not in ("==", "in", "!="):
            return None
        one = _holds(said["right"], mine)
        return one if one is None or said["op"] != "!=" else not one

    def _value(self, left: Any) -> str | int | bool | None:
        """The packet's value of `left`; None if unknown, False if such a packet has none."""
        if not isinstance(left, dict):
            return None
        if key := left.get("meta", {}).get("key") or left.get("ct", {}).get("key"):
            return self.facts.get({"iif": "iifname", "oif": "oifname"}.get(key, key))
        payload = left.get("payload", {})
        protocol, name = payload.get("protocol"), payload.get("field")
        if protocol in ("ip", "ip6"):
            if self.facts["nfproto"] != {"ip": "ipv4", "ip6": "ipv6"}[protocol]:
                return False
            return self.facts["l4proto"] if name in ("protocol", "nexthdr") else None
        if protocol == "th" or protocol == self.facts["l4proto"]:
            return self.facts.get(name)
        return False if protocol in ("tcp", "udp", "icmp", "icmpv6", "sctp", "dccp") else None

    def _extension(self, printed: str) -> bool | None:
        """Whether the packet meets an iptables match: only states and ports can be read."""
        states = _STATES.search(printed)
        if states and self.facts["state"] not in states[1].split(","):
            return False
        ports = _PORTS.search(printed)
        if ports and ports[1] == self.facts["l4proto"]:
            return None if str(self.facts["dport"]) in ports[2].split(", ") else False
        return False if ports else None


def _holds(right: Any, mine: str | int) -> bool | None:
    """Whether `mine` is among what `right` of a match allows (libnftables-json(5))."""
    if isinstance(right, dict):
        if "set" in right:
            right = right["set"]
        elif "range" in right and isinstance(mine, int):
            low, high = map(int, right["range"])
            return low <= mine <= high
        else:
            return None
    if isinstance(right, list):
        each: list[bool | None] = [_holds(one, mine) for one in right]
        return True if True in each else None if None in each else False
    if isinstance(right, str) and right.startswith("@"):
        return None
    if isinstance(right, str) and right.endswith("*"):
        return str(mine).startswith(right[:-1])
    same: bool = right == mine
    return same


def _sentence(chain: BaseChain) -> str:
    what = " and ".join(packet.what for packet in chain.dropped)
    to_us = " from clients to the router" if chain.dropped[0].hook == "input" else ""
    remedies = " && ".join(_remedies(chain))
    return (
        f"table {chain.table}, chain {chain.name} drops {what}{to_us}, although table {TABLE}"
        f" accepts them; to allow them: {remedies}"
    )


def _remedies(chain: BaseChain) -> Iterator[str]:
    """Commands that let the packets through, given to the program that made the table."""
    if chain.table == CLOSED:
        yield "systemctl restart capport-router"  # it loads the rules, then removes this table
        return
    insert = f"nft insert rule {chain.table} {chain.name}"
    docker = f"{'ip6' if chain.table.startswith('ip6') else 'ip'}tables -I DOCKER-USER"
    ufw = any(name.startswith(("ufw-", "ufw6-")) for name in chain.beside)
    ports: dict[str, list[str]] = {}
    for packet in chain.dropped:
        if packet.hook == "input":
            ports.setdefault(str(packet.facts["l4proto"]), []).append(str(packet.facts["dport"]))
            continue
        new = packet.facts["state"] == "new"
        come, go = packet.facts["iifname"], packet.facts["oifname"]
        if "DOCKER-USER" in chain.beside:
            states = "" if new else " -m conntrack --ctstate RELATED,ESTABLISHED"
            yield f"{docker} -i {come} -o {go}{states} -j ACCEPT"
        elif ufw and new:
            yield f"ufw route allow in on {come} out on {go}"
        else:
            states = "" if new else "ct state established,related "
            yield f'{insert} iifname "{come}" oifname "{go}" {states}accept'
    clients = chain.dropped[0].facts["iifname"]
    for protocol, mine in ports.items():
        if ufw:
            yield f"ufw allow in on {clients} to any port {','.join(mine)} proto {protocol}"
        else:
            yield f'{insert} iifname "{clients}" {protocol} dport {{ {", ".join(mine)} }} accept'


def _legacy() -> Iterator[str]:
    for command, tables in legacy_tables():
        if "filter" in tables:
            yield (
                f"{command} has a table filter, which capport cannot read: its chains FORWARD and"
                f" INPUT may drop clients' packets; list them with `{command} -S`"
            )
