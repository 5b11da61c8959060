"""The nft(8) rules for unknown clients' DNS: what answers it, and how many bytes it may carry.

The rules redirect all traffic of unknown clients to port 53 (UDP and TCP, any address) to a
separate resolver on the router. That resolver gives true answers, but leaves out the record types
that can carry arbitrary data (scripts/router/resolver-unknown.conf). If it does not run, unknown
clients get no answers.

A resolver can be used as a tunnel: a client that owns a domain sends bytes to its name servers in
questions, and gets bytes back in answers. So each packet is charged the bytes that it can carry:

- an ordinary question (no other records, a name of up to 43 characters, type A, AAAA or HTTPS):
  the length of its name, minus the shortest domain that anyone can register (`ab.cd`);
- an ordinary answer: the length of its address, if it has one. The client already knows the
  question in it;
- anything else, over UDP or TCP: all bytes except the headers of IP and UDP;
- a question for a connectivity check, the login server, or a walled garden name without a star:
  nothing, and it is answered even if the client has used up its budget. The client does not own
  the name servers of these names.

`PAYLOAD` bounds what one client may send, and receive, within any second. nft can only count
packets, so a packet that carries k units passes the same limit k times.

A byte of a name counts as a whole byte, though a host name has only 38 different characters.
dnsmasq forwards names as they came, so a tunnel can use all 256 values, and upper and lower case.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from capport.core.policy import Policy
from capport.core.probes import CHECK_HOSTS

RESOLVER_PORT = 5311
"""The port of the resolver for unknown clients."""
STARS_PORT = 5312
"""The port, on loopback, of the resolver that fills the garden's sets (`nftables.stars`)."""

PAYLOAD = 800
"""Bytes that one unknown client's DNS can carry each way within any second, the first included."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What each client may use: `burst` units of `unit` bytes at once, then `rate` units a second.

    A client that has used it up gets nothing for the time `rest`. Without that pause, large packets
    would take the new units one by one, never enough to pass, and block the client's small packets.
    """

    meter: str  # begins the names of its sets and chains
    unit: int
    rate: int
    burst: int
    rest: str


# 40 questions a second for names of 22 characters; 40 answers with one address of either family.
QUESTIONS = Budget("asked", unit=3, rate=240, burst=26, rest="100ms")
ANSWERS = Budget("answered", unit=6, rate=80, burst=53, rest="600ms")
CHECKS = "limit rate 20/second burst 40 packets"
# These bound all clients together, because a client can easily make up MACs.
ALL_QUESTIONS = "limit rate 200/second burst 200 packets"
ALL_CHECKS = "limit rate 500/second burst 500 packets"
ALL_ANSWERS = "limit rate 64 kbytes/second burst 256 kbytes"

_FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
_NAMES = range(6, 46)  # bytes of an ordinary name in a message: from 4 to 43 characters
_MOST_NAMES = 200  # names that cost nothing: the kernel compares each question with each of them
_HEADER = 8 + 12  # of UDP, and of DNS (RFC 1035 section 4.1.1), in bytes
_DOMAIN = 7  # bytes of `ab.cd`, and the length byte of one more label
_HEADS = {4: 28, 6: 48}  # bytes of the IP and UDP headers; TCP is charged for its longer header
_TYPES = "{ 0x00010001, 0x001c0001, 0x00410001 }"  # A, AAAA, HTTPS; class IN


def sets(size: int) -> Iterator[str]:
    """The sets of counters, by a hash of the client's MAC, and the maps from address to hash."""
    timed = f"flags dynamic, timeout; timeout 1m; size {size};"
    for name in ("asked", "asked_rest", "answered", "answered_rest", "checked"):
        yield f"set {name} {{ type mark; {timed} }}"
    for version, _, kind in _FAMILIES:
        yield f"map askers{version} {{ type {kind} : mark; {timed} }}"


def redirect() -> str:
    """The rule that redirects unknown clients' questions to their resolver."""
    return f"meta l4proto {{ tcp, udp }} th dport 53 redirect to :{RESOLVER_PORT}"


def questions(policy: Policy, ethernet: bool) -> Iterator[str]:
    """The chain `questions`, which accepts or drops each packet that goes to the resolver."""
    yield from _rest(QUESTIONS)
    for name, every in (("asking", ALL_QUESTIONS), ("checking", ALL_CHECKS)):
        yield f"chain {name} {{"
        for version, ip, _ in _FAMILIES:
            yield f"add @askers{version} {{ {ip} saddr : meta mark }}"
        yield f"{every} accept"
        yield "drop\n}"
    lengths = range(QUESTIONS.unit, _NAMES[-1] - _DOMAIN, QUESTIONS.unit)
    steps = (f"udp length > {_HEADER + 4 + _DOMAIN + n}" for n in lengths)
    yield from _ladder("asked_name", QUESTIONS, steps, "asking")
    yield from _raw(QUESTIONS, "asking")
    yield "chain questions {"
    yield "ct status & dnat == 0 drop"  # it was sent to this port itself, and was not redirected
    for key in ("ether saddr",) if ethernet else ("ip saddr", "ip6 saddr"):
        yield f"meta mark set jhash {key} mod 4294967294 offset 1"
    # Require exactly one question and nothing else; only the flags RD, AD and CD may be set.
    for odd in ("@th,80,16 & 0xfecf != 0", "@th,96,48 != 0x000100000000"):
        yield f"meta l4proto udp {odd} drop"
    yield from _free(policy, f"update @checked {{ meta mark {CHECKS} }} goto checking")
    yield "meta mark @asked_rest drop"
    for length in _NAMES:
        end = _HEADER + length
        ordinary = f"udp length {end + 4} @th,144,16 0 @th,{end * 8},32 {_TYPES}"
        yield f"{ordinary} goto asked_name"
    yield from _goto_raw(QUESTIONS)
    yield "drop\n}"


def answers(policy: Policy) -> Iterator[str]:
    """The chain `answers`, which accepts or drops each answer from the resolver to a client."""
    yield from _rest(ANSWERS)
    yield "chain answering_all {"
    yield "meta mark set 0"
    yield f"{ALL_ANSWERS} accept"
    yield "drop\n}"
    for name, size in (("nothing", 0), ("address4", 4), ("address6", 16)):
        steps = [""] * (math.ceil(size / ANSWERS.unit) - 1)
        yield from _ladder(f"answered_{name}", ANSWERS, steps, "answering_all")
    yield from _raw(ANSWERS, "answering_all")
    yield "chain addresses {"
    for length in _NAMES:
        # A record with the question's name, a time to live of up to a minute, and an address.
        for kind, size in ((1, 4), (28, 16)):
            start = _HEADER + length + 4
            head = f"0xc00c{kind:04x}000100000000{size:04x}"
            record = f"@th,{start * 8},96 & 0xffffffffffffffffffc0ffff == {head}"
            version = 4 if size == 4 else 6
            yield f"udp length {start + 12 + size} {record} goto answered_address{version}"
    yield "}"
    yield "chain answers {"
    yield from _free(policy, "goto answering_all")
    for version, ip, _ in _FAMILIES:
        yield f"meta mark set {ip} daddr map @askers{version}"
    yield "meta mark 0 drop"
    yield "meta mark @answered_rest drop"
    for counts, verdict in (("00010000", "goto answered_nothing"), ("00010001", "jump addresses")):
        # Not truncated, opcode 0, and no authority or additional records.
        head = f"@th,80,16 & 0xfa40 == 0x8000 @th,96,64 0x{counts}00000000"
        yield f"meta l4proto udp {head} {verdict}"
    yield from _goto_raw(ANSWERS)
    yield "drop\n}"


def _free(policy: Policy, verdict: str) -> Iterator[str]:
    """Rules that give `verdict` to each message about a name that costs nothing."""
    for name in free_names(policy):
        labels = [label.encode() for label in name.split(".")]
        wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        parts = ((n, wire[n : n + 16]) for n in range(0, len(wire), 16))
        match = (f"@th,{(_HEADER + n) * 8},{len(p) * 8} 0x{p.hex()}" for n, p in parts)
        yield f"meta l4proto udp {' '.join(match)} {verdict}"


def free_names(policy: Policy) -> list[str]:
    """The names that unknown clients may ask for without being charged."""
    login = [place.host for place in policy.login_places if isinstance(place.host, str)]
    garden = [name for name, _ in policy.walled_garden.names() if not name.startswith("*.")]
    return list(dict.fromkeys([*sorted(CHECK_HOSTS), *login, *sorted(garden)]))[:_MOST_NAMES]


def _rest(budget: Budget) -> Iterator[str]:
    """The chain for a client that has used up its budget: notes that, and drops the packet."""
    yield f"chain {budget.meter}_up {{"
    yield f"add @{budget.meter}_rest {{ meta mark timeout {budget.rest} }}"
    yield "drop\n}"


def _ladder(chain: str, budget: Budget, steps: Iterable[str], verdict: str) -> Iterator[str]:
    """A chain that charges a packet one unit, and one more for each of `steps` that it matches."""
    meter = budget.meter
    limit = f"limit rate over {budget.rate}/second burst {budget.burst} packets"
    unit = f"update @{meter} {{ meta mark {limit} }} goto {meter}_up"
    yield f"chain {chain} {{"
    yield unit
    yield f"meta mark != @{meter} goto {meter}_up"  # the set is full
    for match in steps:
        yield f"{match} {unit}".strip()
    yield f"goto {verdict}\n}}"


def _raw(budget: Budget, verdict: str) -> Iterator[str]:
    """Chains, one for each family, for packets that are charged for all their bytes."""
    for version, head in _HEADS.items():
        lengths = (f"meta length > {head + n * budget.unit}" for n in range(1, budget.burst))
        yield from _ladder(f"{budget.meter}_raw{version}", budget, lengths, verdict)


def _goto_raw(budget: Budget) -> Iterator[str]:
    """Sends other packets to the chains of `_raw`; one larger than the budget goes on (a drop)."""
    for version, head in _HEADS.items():
        fits = f"meta length <= {head + budget.unit * budget.burst}"
        yield f"meta nfproto ipv{version} {fits} goto {budget.meter}_raw{version}"
