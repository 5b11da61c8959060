"""The rules as text for nft(8): one table that holds unknown clients and lets known ones pass.

This is RFC 6585 section 6.1 in the kernel. A client that is not in the sets of known clients
reaches mitmproxy (TCP 80 and 443, redirected), a resolver on the router (`dns_rules.py`), the
router's DHCP, the login server, and nothing else. The kernel looks each packet up in the sets,
whatever connection it belongs to, so no connection outlives its session.

The walled garden's web ports go to mitmproxy, which decides by the name that the client asks for:
an address alone would open all other sites on the same server. These rules let through the garden's
other ports.

These rules do not change the router's own address translation, nor any table but `inet capport`. If
no other table may need conntrack, known clients' packets are not tracked at all: conntrack costs
more than all these rules. Do not put clients' traffic into a flowtable, because it would bypass
these rules.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network
from typing import TypeGuard

from capport import __version__
from capport.core.client import Address
from capport.core.place import Host, Place
from capport.core.policy import (
    WEB_PORTS,
    KnownHttp,
    KnownTls,
    Network,
    Policy,
    Router,
)
from capport.core.standing import Kind, settled
from capport.router import dns_rules
from capport.router.ranges import ranges

TABLE = "inet capport"
PROXY_PORTS = (8080,)

SET_SIZE = 262_144  # known clients; 100 000 load in 0.9 s
LEASE = "lease"
"""The set with both address families while the sessions that other routers granted are in force.

So one element of it is renewed, and not the elements of 100 000 clients.
"""
LEASED = "leased_"
"""Begins the names of the sets of the clients whose session another router granted."""
PREFIXES = ("", LEASED)
CLIENT_SETS = tuple(
    f"{prefix}{name}" for prefix in PREFIXES for name in ("known4", "known6", "routed4", "routed6")
)
"""The sets of known clients' addresses."""
METER_SIZE = 65_536  # unknown clients that are counted at a time; any more must wait

MARK = 1 << 29
"""The bit of a packet's mark that says that these rules judge the packet (`fence.py`)."""

# Limits for each unknown client. A browser's first page takes about 30 connections and 20 names.
NEW = "limit rate 60/second burst 120 packets"
HELD = "ct count 64"
ECHOES = "limit rate 5/second burst 10 packets"
TIMES = "limit rate 1/second burst 10 packets"
REDIRECTED = "timeout 10m"  # without a packet; by then mitmproxy has closed idle connections
SOLICITATIONS = "limit rate 50/second burst 100 packets"
REFUSALS = "limit rate over 1000/second burst 1000 packets"  # for all unknown clients together

# The length with the UDP header, but without extension fields, which could carry any data
# (RFC 5905 section 7.3).
_NTP = "udp length 56"

# DHCP from a client that has no address yet (RFC 2131 section 4.1).
_NO_ADDRESS = "ip saddr 0.0.0.0 udp sport 68 udp dport 67"

# Drops packets of unknown clients from an address that is not on their side. Our answers to them,
# which quote their own bytes, would leave for that address: the client could send data out.
_ELSEWHERE = "fib saddr . iif oif missing drop"

_NAMED = "flags timeout; size 65536;"  # a set of the addresses that names have

_FAMILIES = ((4, "ip"), (6, "ip6"))
# No packet of these protocols has such a source address.
_NEVER = {"icmp": "ip6 saddr", "ip": "ip6 saddr", "icmpv6": "ip saddr", "ip6": "ip saddr"}


def ruleset(
    policy: Policy,
    *,
    proxy_ports: Sequence[int] = PROXY_PORTS,
    ethernet: bool = True,
    tracked: bool = True,
) -> str:
    """All commands for nft(8) that load the rules in place of the earlier ones.

    `ethernet` is whether the client interface has MAC addresses, `tracked` whether conntrack sees
    known clients' packets. Several proxy ports share the clients by address. Raises ValueError.
    """
    router = router_of(policy)
    if not proxy_ports or any(not 0 < port < 65536 for port in proxy_ports):
        raise ValueError(
            f"{list(proxy_ports)} are not the ports of a proxy: one or more, from 1 to 65535"
        )
    clients, origins = f'"{router.client_interface}"', f'"{router.origin_interface}"'
    return "\n".join(
        [
            f"table {TABLE}",
            f"delete table {TABLE}",
            f"table {TABLE} {{",
            f'comment "capport {__version__}, proxy ports {" ".join(map(str, proxy_ports))},'
            f' {"" if tracked else "un"}tracked"',
            *_sets(policy, ethernet),
            *_known("known", "accept"),
            *([] if tracked else _untracked(policy, clients, origins)),
            *_marked(clients),
            *_to_portal(policy, clients, proxy_ports, ethernet),
            *_input(policy, clients, origins, proxy_ports, ethernet),
            *_forward(policy, clients, origins, ethernet, tracked),
            *_output(policy, clients),
            "}",
            "",
        ]
    )


def _sets(policy: Policy, ethernet: bool) -> Iterator[str]:
    known = ranges(policy.clients, Kind.KNOWN)
    barred = ranges(policy.clients, Kind.BLOCKED)
    gardens = garden_networks(policy)
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        timed = f"flags timeout; size {SET_SIZE};"
        for prefix in PREFIXES:
            yield f"set {prefix}known{version} {{ type {kind} . ether_addr; {timed} counter; }}"
            yield f"set {prefix}routed{version} {{ type {kind}; {timed} counter; }}"
            yield f"set {prefix}return{version} {{ type {kind}; {timed} }}"
        yield f"set learned{version} {{ type {kind}; {_meter()} }}"
        yield f"set redirected{version} {{ type {kind} . inet_service; {_meter()} }}"
        yield from _fixed(f"rules{version}", kind, [r for r in known if r[0].version == version])
        yield from _fixed(f"barred{version}", kind, [r for r in barred if r[0].version == version])
        if conditional(policy):
            hosts = [str(h) for h in conditional(policy) if _is_of(h, version)]
            yield f"set conditional{version} {{ type {kind}; {_NAMED}"
            yield f"elements = {{ {', '.join(sorted(hosts))} }}; }}" if hosts else "}"
        for ports, networks in gardens.items():
            mine = [n for n in networks if n.version == version]
            yield f"set garden{version}_{ports} {{ type {kind}; {_NAMED} timeout 1d; }}"
            yield from _fixed(f"gardens{version}_{ports}", kind, [(n[0], n[-1]) for n in mine])
    ruled = [(s, kind) for s, _, kind in settled(policy.clients) if isinstance(s, str)]
    for prefix in PREFIXES:
        yield f"set {prefix}macs {{ type ether_addr; flags timeout; size {SET_SIZE}; }}"
    yield f"set {LEASE} {{ type nf_proto; flags timeout; }}"
    for name, wanted in (("rule_macs", Kind.KNOWN), ("blocked", Kind.BLOCKED)):
        macs = ", ".join(mac for mac, kind in ruled if kind is wanted)
        yield f"set {name} {{ type ether_addr; {f'elements = {{ {macs} }};' if macs else ''} }}"
    for name, kind, _ in (*dropped(policy, known=False), *dropped(policy, known=True)):
        yield f"set {name} {{ type {kind}; flags timeout; size {METER_SIZE}; }}"
    yield from dns_rules.sets(METER_SIZE)
    for meter in ("fresh", "echoes", "times", "solicitations"):
        yield from (
            f"set {s} {{ type {t}; {_meter()} }}" for s, t, _ in _per_client(meter, ethernet)
        )
    for name, kind, _ in _per_client("held", ethernet):
        yield f"set {name} {{ type {kind}; flags dynamic; size {METER_SIZE}; }}"


def _meter() -> str:
    return f"flags dynamic, timeout; timeout 1m; size {METER_SIZE};"


def _fixed(name: str, kind: str, ranges: Sequence[tuple[Address, Address]]) -> Iterator[str]:
    spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    yield f"set {name} {{ type {kind}; flags interval; auto-merge;"
    yield f"elements = {{ {spans} }}; }}" if spans else "}"


def _known(name: str, verdict: str) -> Iterator[str]:
    """A chain that gives `verdict` to a known client's packets, and returns for all others."""
    yield f"chain {name} {{"
    yield from _in_the_sets(verdict, "return")
    for version, ip in _FAMILIES:
        yield f"{ip} saddr @rules{version} {verdict}"
    # A new address of a known MAC is in no pair yet, but passes from its first packet on. To send
    # the answers, the kernel adds it to the neighbour table, and `KnownClients` then adds the pair.
    for version, ip in _FAMILIES:
        yield f"{ip} saddr @barred{version} return"
        for macs in (*_in_either("ether saddr", "macs"), "ether saddr @rule_macs"):
            yield f"{macs} add @learned{version} {{ {ip} saddr timeout 10s }} {verdict}"
    yield "}"


def _in_the_sets(verdict: str, other: str) -> Iterator[str]:
    """Rules that give `verdict` to packets whose address is in the sets of `KnownClients`.

    They give `other` to packets that no later rule may accept by their address alone.
    """
    for version, ip in _FAMILIES:
        for known in _in_either(f"{ip} saddr . ether saddr", f"known{version}"):
            yield f"{known} {verdict}"
    yield f"ether saddr @blocked {other}"
    yield f"fib saddr type local {other}"  # the router's own address, which no client may use
    for version, ip in _FAMILIES:
        for routed in _in_either(f"{ip} saddr", f"routed{version}"):  # on a link without MACs
            yield f"{routed} {verdict}"


def _in_either(key: str, name: str) -> list[str]:
    """Matches a packet whose `key` is in the set `name`, or in its leased one while that counts."""
    return [f"{key} @{name}", f"meta nfproto @{LEASE} {key} @{LEASED}{name}"]


def _to_known(version: int, ip: str) -> list[str]:
    """Matches packets to the addresses of known clients."""
    to = f"{ip} daddr"
    fixed = (f"{to} @{name}{version}" for name in ("learned", "rules"))
    return [*_in_either(to, f"return{version}"), *fixed]


def _untracked(policy: Policy, clients: str, origins: str) -> Iterator[str]:
    """Rules that keep the packets to and from the clients in the sets out of conntrack."""
    yield "chain untracked { type filter hook prerouting priority raw; policy accept;"
    yield f"iifname {clients} goto untracked_out"
    # A connection opened from outside is tracked, so that its packets are refused below.
    yield f"iifname {origins} tcp flags & (syn | ack) == syn accept"
    for version, ip in _FAMILIES:
        for answer in _in_either(f"{ip} daddr", f"return{version}"):
            yield f"iifname {origins} {answer} notrack accept"
    yield "}"
    yield "chain redirected {"
    # A connection that was redirected before its client was known stays with mitmproxy.
    for version, ip in _FAMILIES:
        end, again = f"{ip} saddr . tcp sport", f"update @redirected{version}"
        yield f"{end} @redirected{version} {again} {{ {end} {REDIRECTED} }} accept"
    yield "}"
    yield "chain untracked_out {"
    for seen in _seen(policy):
        yield f"{seen} accept"
    yield f"tcp dport {_braced(WEB_PORTS)} jump redirected"
    yield from _in_the_sets("notrack accept", "accept")
    yield "}"


def _marked(clients: str) -> Iterator[str]:
    """Marks each packet that these rules judge.

    It is the last chain before routing, because chains of other tables may overwrite the mark.
    """
    yield "chain marked { type filter hook prerouting priority 300; policy accept;"
    yield f"iifname {clients} meta mark set meta mark | {MARK:#x}\n}}"


def _to_portal(policy: Policy, clients: str, ports: Sequence[int], ethernet: bool) -> Iterator[str]:
    """Redirects web traffic to mitmproxy: unknown clients', within limits, and inspected clients'.

    It sees only the first packet of each connection. A packet that it drops leaves no entry in
    conntrack.
    """
    seen_of_known = _seen(policy)
    yield "chain fresh {"
    yield from _each("fresh", NEW, "return", ethernet)
    yield "drop\n}"
    yield "chain bounded {"
    yield from _each("held", HELD, "goto fresh", ethernet, "meta l4proto tcp", "add")
    yield "meta l4proto tcp drop"
    yield "goto fresh\n}"
    yield "chain to_proxy {"
    for version, ip in _FAMILIES:
        yield f"update @redirected{version} {{ {ip} saddr . tcp sport {REDIRECTED} }}"
    if len(ports) == 1:
        yield f"meta l4proto tcp redirect to :{ports[0]}"
    else:
        shares = ", ".join(f"{n} : {port}" for n, port in enumerate(ports))
        for family, saddr in (("ipv4", "ip saddr"), ("ipv6", "ip6 saddr")):
            share = f"jhash {saddr} mod {len(ports)} map {{ {shares} }}"
            yield f"meta nfproto {family} meta l4proto tcp redirect to : {share}"
    yield "}"
    if seen_of_known:
        yield "chain inspected_to_proxy {"
        yield from _drops(policy, known=True)
        yield "goto to_proxy\n}"
        yield "chain inspected {"
        for seen in seen_of_known:
            yield f"fib daddr type != local meta l4proto tcp {seen} goto inspected_to_proxy"
        yield "accept\n}"
        yield from _known("known_inspected", "goto inspected")
    # Before the router's own dstnat chains (-100), which could otherwise redirect the packet first.
    yield "chain to_portal { type nat hook prerouting priority dstnat - 10; policy accept;"
    yield f"iifname != {clients} accept"
    yield f"jump {'known_inspected' if seen_of_known else 'known'}"
    yield dns_rules.redirect()  # the chain `questions` limits these, packet by packet
    yield "jump bounded"
    yield f"{_NO_ADDRESS} accept"
    yield _ELSEWHERE
    yield from _logins(policy)
    yield from _drops(policy, known=False)
    yield f"tcp dport {_braced(WEB_PORTS)} goto to_proxy\n}}"


def _input(
    policy: Policy, clients: str, origins: str, ports: Sequence[int], ethernet: bool
) -> Iterator[str]:
    yield from _refuse()
    yield from dns_rules.questions(policy, ethernet)
    yield "chain inward { type filter hook input priority filter; policy accept;"
    # If a packet was not redirected, its destination is the proxy, which would connect to itself.
    yield f"tcp dport {_braced(ports)} ct status dnat accept"
    yield f"tcp dport {_braced(ports)} drop"
    for place in _embedded(policy):  # the login server is for clients, not for hosts outside
        yield f"iifname {origins} {_at(place)} drop"
    yield f"iifname != {clients} accept"
    yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    yield "jump known"  # the router's other tables decide what known clients may do to the router
    # A client without an address asks whether another host has it, listens, and asks for one.
    yield f"ip6 saddr != :: {_ELSEWHERE}"
    for kind in ("nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"):
        yield from _each("solicitations", SOLICITATIONS, "accept", ethernet, f"icmpv6 type {kind}")
        yield f"icmpv6 type {kind} drop"
    yield "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept"
    yield "ip protocol igmp accept"
    yield f"{_NO_ADDRESS} accept"
    yield _ELSEWHERE
    yield "ct state invalid drop"
    yield "udp sport 68 udp dport 67 accept"
    yield "udp sport 546 udp dport 547 accept"
    yield from _logins(policy)
    yield "ct direction reply ct state established,related accept"
    yield "meta l4proto { icmp, icmpv6 } ct state related accept"
    yield f"meta l4proto {{ tcp, udp }} th dport {dns_rules.RESOLVER_PORT} goto questions"
    yield "meta l4proto { tcp, udp } th dport 53 drop"
    yield from _each("times", TIMES, "accept", ethernet, f"udp dport 123 {_NTP}")
    for echo in ("icmp type echo-request", "icmpv6 type echo-request"):
        yield from _each("echoes", ECHOES, "accept", ethernet, echo)
        yield f"{echo} drop"
    yield "fib daddr type { broadcast, multicast, anycast } drop"
    yield "goto refuse\n}"


def _refuse() -> Iterator[str]:
    """Refuses at once, so that browsers fall back from QUIC and people see an error."""
    yield "chain refuse {"
    yield f"{REFUSALS} drop"
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject with icmpx type admin-prohibited\n}"


def _forward(
    policy: Policy, clients: str, origins: str, ethernet: bool, tracked: bool
) -> Iterator[str]:
    gardens = [
        (ip, name, ports)
        for ports in garden_networks(policy)
        for version, ip in _FAMILIES
        for name in (f"garden{version}_{ports}", f"gardens{version}_{ports}")
    ]
    yield "chain onward { type filter hook forward priority filter; policy drop;"
    if not tracked:
        # Chain `untracked` has looked this very packet up. The kernel never tracks neighbour
        # discovery, from any sender (nf_conntrack_proto_icmpv6.c), so ICMPv6 is looked up below.
        passed = "ct state untracked meta l4proto != ipv6-icmp accept"
        yield f"oifname {origins} {passed}"
        yield f"iifname {origins} oifname {clients} {passed}"
    yield f"iifname {clients} oifname {origins} goto from_client"
    yield f"iifname {origins} oifname {clients} goto to_client"
    yield f"iifname {clients} goto refuse"  # other networks, other clients
    yield f"oifname != {clients} accept\n}}"
    yield "chain from_client {"
    for seen in _seen(policy):
        yield f"{seen} goto refuse"  # opened before the inspection began; or QUIC, to bypass it
    yield "jump known"
    yield _ELSEWHERE
    yield "ct state invalid drop"
    for ip, name, ports in gardens:
        yield f"{ip} daddr @{name} tcp dport {_garden_ports(ports)} accept"
        if _is_ntp(ports):
            time = f"{ip} daddr @{name} udp dport 123 {_NTP}"
            yield from _each("times", TIMES, "accept", ethernet, time)
    yield "goto refuse\n}"
    yield "chain to_client {"
    if not tracked:  # ICMPv6 errors about untracked connections belong to no connection
        for answer in _in_either("ip6 daddr", "return6"):
            yield f"{answer} meta l4proto ipv6-icmp accept"
    yield "ct state new,invalid,untracked drop"
    for version, ip in _FAMILIES:
        for answer in _to_known(version, ip):
            yield f"{answer} accept"
    for ip, name, ports in gardens:
        yield f"{ip} saddr @{name} tcp sport {_garden_ports(ports)} accept"
        if _is_ntp(ports):
            yield f"{ip} saddr @{name} udp sport 123 {_NTP} accept"
    yield "drop\n}"


def _output(policy: Policy, clients: str) -> Iterator[str]:
    """Limits the answers of the router's resolvers to unknown clients, against DNS tunnels."""
    yield from dns_rules.answers(policy)
    yield "chain answering { type filter hook output priority filter; policy accept;"
    yield f"oifname != {clients} accept"
    yield "meta l4proto != { tcp, udp } accept"
    yield f"th sport != {{ 53, {dns_rules.RESOLVER_PORT} }} accept"
    for version, ip in _FAMILIES:
        for answer in _to_known(version, ip):
            yield f"{answer} accept"
    yield "goto answers\n}"


def _each(
    meter: str, bound: str, verdict: str, ethernet: bool, match: str = "", verb: str = "update"
) -> Iterator[str]:
    """Rules that give `verdict` to each client's packets within `bound`; others go on."""
    for name, _, key in _per_client(meter, ethernet):
        if _NEVER.get(match.partition(" ")[0]) == key:
            continue
        yield f"{match} {verb} @{name} {{ {key} {bound} }} {verdict}".strip()


def _per_client(meter: str, ethernet: bool) -> list[tuple[str, str, str]]:
    """The name, type and key of each set that counts by client.

    The key is the MAC if there is one, because a client can have any number of IPv6 addresses.
    """
    by_mac, *by_address = _keyed(meter)
    return [by_mac] if ethernet else by_address


def _keyed(name: str) -> list[tuple[str, str, str]]:
    """The name, type and key of sets of clients: by MAC, by IPv4 and by IPv6 address."""
    return [
        (name, "ether_addr", "ether saddr"),
        (f"{name}4", "ipv4_addr", "ip saddr"),
        (f"{name}6", "ipv6_addr", "ip6 saddr"),
    ]


def _seen(policy: Policy) -> list[str]:
    """Matches known clients' packets that only mitmproxy may forward."""
    ports = {80: policy.http_known is KnownHttp.INSPECT, 443: policy.tls.known is KnownTls.INSPECT}
    inspected = [port for port, inspect in ports.items() if inspect]
    found = [f"meta l4proto {{ tcp, udp }} th dport {_braced(inspected)}"] if inspected else []
    if conditional(policy):
        found += [f"{ip} daddr @conditional{version} tcp dport 80" for version, ip in _FAMILIES]
    return found


def dropped(policy: Policy, *, known: bool) -> list[tuple[str, str, str]]:
    """The name, type and key of each set of clients that are dropped (RFC 6585 section 7.2).

    Known and unknown clients have sets of their own, so that a client that signs in is not dropped
    for what it did before. If mitmproxy sees no packets of known clients, they have no sets.
    """
    if policy.limits.drop_after is None or (known and not _seen(policy)):
        return []
    return _keyed("dropped_known" if known else "dropped")


def _drops(policy: Policy, *, known: bool) -> Iterator[str]:
    for name, _, key in dropped(policy, known=known):
        yield f"{key} @{name} drop"


def conditional(policy: Policy) -> frozenset[Host]:
    """The hosts whose port 80 goes to mitmproxy for known clients too, so that it can answer 428.

    There are none if mitmproxy sees all of port 80.
    """
    all_is_seen = policy.http_known is KnownHttp.INSPECT
    return frozenset() if all_is_seen else policy.limits.require_conditions


def unmet(policy: Policy) -> list[str]:
    """A sentence for each limit that does not hold for all known clients, and what to do about it.

    The kernel forwards them, and mitmproxy never sees their requests.
    """
    limits = policy.limits
    if policy.router is None or policy.http_known is KnownHttp.INSPECT:
        return []
    found: list[str] = []
    rated = {
        "requests": limits.requests,
        "header_field": limits.header_field,
        "header_section": limits.header_section,
    }
    if keys := ", ".join(f"limits.{key}" for key, value in rated.items() if value is not None):
        found.append(
            f"the kernel forwards them past {keys}: these need http.known: inspect, or an explicit"
            " proxy"
        )
    if limits.require_conditions:
        hosts = ", ".join(sorted(map(str, limits.require_conditions)))
        found.append(f"port 80 of {hosts} goes to the portal, for limits.require_conditions")
    return found


def _logins(policy: Policy) -> Iterator[str]:
    """Accepts packets to a login server on this machine, embedded or external.

    If `login_url` names an external one by host name, clients reach it through the portal, on the
    web's ports.
    """
    for place in policy.login_places:
        if place in _embedded(policy) or _is_one(place.host):
            yield f"{_at(place)} accept"


def _embedded(policy: Policy) -> tuple[Place, ...]:
    return policy.login_server.listen if policy.login_server else ()


def _at(place: Place) -> str:
    """Matches packets to `place` on this machine: to any of its addresses, if `place` has none."""
    port = f"fib daddr type local tcp dport {place.port}"
    if _is_one(place.host):
        return f"{port} {'ip' if place.host.version == 4 else 'ip6'} daddr {place.host}"
    return port


def _is_of(host: Host, version: int) -> bool:
    return not isinstance(host, str) and host.version == version


def _is_one(host: Host) -> TypeGuard[Address]:
    """Whether `host` is one address, not a name or the unspecified address."""
    return not isinstance(host, str) and not host.is_unspecified


def garden_names(policy: Policy) -> list[tuple[str, str]]:
    """Each name that unknown clients may reach on other ports than the web's, and these ports.

    The ports are text, as in the names of the sets: `8080_8443`.
    """
    named = [(name, entry.ports) for name, entry in policy.walled_garden.names()]
    place = policy.login_place
    if isinstance(place.host, str):
        named.append((place.host, frozenset({place.port})))
    beyond = {(name, _port_list(ports - WEB_PORTS)) for name, ports in named}
    return sorted((name, ports) for name, ports in beyond if ports)


def sets_of_names(policy: Policy) -> list[tuple[str, str]]:
    """Each name of the policy whose addresses the kernel must have, and the set for them.

    The set's name lacks the family: `garden{}_8080`.
    """
    garden = [(name, f"garden{{}}_{ports}") for name, ports in garden_names(policy)]
    return garden + [(h, "conditional{}") for h in conditional(policy) if isinstance(h, str)]


def garden_networks(policy: Policy) -> dict[str, list[Network]]:
    """The networks in the policy, by their ports other than the web's (`8080_8443`).

    The login server's place is always in the garden. Ports that only names have get no networks.
    """
    found: dict[str, list[Network]] = {}
    for network, entry in policy.walled_garden.networks():
        found.setdefault(_port_list(entry.ports - WEB_PORTS), []).append(network)
    for _, ports in garden_names(policy):
        found.setdefault(ports, [])
    for place in (login.place for login in policy.logins):
        beyond = _port_list(frozenset({place.port}) - WEB_PORTS)
        if not isinstance(place.host, str):
            found.setdefault(beyond, []).append(ip_network(place.host))
    found.pop("", None)
    return dict(sorted(found.items()))


def router_of(policy: Policy) -> Router:
    """The policy's `router`. Raises ValueError if it has none."""
    if policy.router is None:
        raise ValueError(
            f"{policy.file or 'the default policy'} has no `router`: add it, with client_interface"
            " and origin_interface"
        )
    return policy.router


def _port_list(ports: Iterable[int]) -> str:
    return "_".join(map(str, sorted(ports)))


def _is_ntp(ports: str) -> bool:
    return "123" in ports.split("_")


def _garden_ports(ports: str) -> str:
    return _braced(map(int, ports.split("_")))


def _braced(ports: Iterable[int]) -> str:
    return "{ " + ", ".join(map(str, sorted(ports))) + " }"
