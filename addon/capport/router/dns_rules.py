"""The rules for unknown clients' DNS as text for nft(8): who answers it, and how much it may carry.

Their port 53, UDP and TCP and to whatever address, is redirected to a resolver of its own on the
router, which gives true answers without the records that are made to carry anything
(scripts/router/resolver-unknown.conf). Where that resolver does not run, nothing is answered.

Whatever resolves names also carries bytes to the name servers of whoever asks, and back. So each
packet is charged the bytes that it can carry:

- an ordinary question (a header with nothing in it, a name of up to 30 characters, type A, AAAA or
  HTTPS): its name, less the shortest domain that can be had (`ab.cd`);
- an ordinary answer: its address, if it has one. The question in it is not news to its client;
- anything else, over UDP or TCP: all of it but the headers of IP and UDP;
- the names of connectivity checks, of the login server and of the walled garden without a star:
  nothing, and they are answered however much a client has asked besides. Their name servers are
  not the client's.

`PAYLOAD` is what one client may send, and be sent, within any second. nft can only count packets:
a packet that carries k units goes by the same limit k times.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from capport.core.policy import Policy
from capport.core.probes import CHECK_HOSTS

RESOLVER_PORT = 5311
"""Where the resolver for unknown clients listens."""
STARS_PORT = 5312
"""Where, on loopback, the one listens that fills the garden's sets (`nftables.stars`)."""

PAYLOAD = 800
"""Bytes that one unknown client's DNS can carry each way within any second, from the first on."""


@dataclass(frozen=True, slots=True)
class Budget:
    """For each client: `rate` units of `unit` bytes a second, after at most `burst` at once.

    `rest` is for how long a client waits that has used it up: without it, packets that get part of
    their units would keep all others from theirs.
    """

    unit: int
    rate: int
    burst: int
    rest: str

    @property
    def most(self) -> int:
        """Bytes within the first second, or any other."""
        return self.unit * (self.rate + self.burst)


# 40 questions a second for names of 22 characters; 40 answers of an address of either family.
QUESTIONS = Budget(unit=3, rate=240, burst=26, rest="100ms")
ANSWERS = Budget(unit=6, rate=80, burst=53, rest="600ms")
CHECKS = "limit rate 20/second burst 40 packets"
# For all clients together, because a MAC is easily made up.
ALL_QUESTIONS = "limit rate 200/second burst 200 packets"
ALL_CHECKS = "limit rate 500/second burst 500 packets"
ALL_ANSWERS = "limit rate 64 kbytes/second burst 256 kbytes"

_FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
_NAMES = range(6, 33)  # bytes of an ordinary name in a message, `ab.cd` to 30 characters
_MOST_NAMES = 200  # that cost nothing: each is looked for in each question
_HEADER = 8 + 12  # of UDP, and of DNS (RFC 1035 section 4.1.1), in bytes
_DOMAIN = 7  # `ab.cd` and the length of one label more
_HEADS = {4: 28, 6: 48}  # of IP and UDP; TCP pays for its longer one
_TYPES = "{ 0x00010001, 0x001c0001, 0x00410001 }"  # A, AAAA, HTTPS; class IN


def sets(size: int) -> Iterator[str]:
    """What is counted, by a hash of the client's MAC; and whose MAC has which address."""
    timed = f"flags dynamic, timeout; timeout 1m; size {size};"
    for name in ("asked", "asked_rest", "answered", "answered_rest", "checked"):
        yield f"set {name} {{ type mark; {timed} }}"
    for version, _, kind in _FAMILIES:
        yield f"map askers{version} {{ type {kind} : mark; {timed} }}"


def redirect() -> str:
    """The rule that has unknown clients' questions at the resolver for them."""
    return f"meta l4proto {{ tcp, udp }} th dport 53 redirect to :{RESOLVER_PORT}"


def questions(policy: Policy, ethernet: bool) -> Iterator[str]:
    """The chain `questions`, which has the last word on what goes to the resolver."""
    yield from _rest("asked", QUESTIONS)
    for name, every in (("asking", ALL_QUESTIONS), ("checking", ALL_CHECKS)):
        yield f"chain {name} {{"
        for version, ip, _ in _FAMILIES:
            yield f"add @askers{version} {{ {ip} saddr : meta mark }}"
        yield f"{every} accept"
        yield "drop\n}"
    lengths = (f"udp length > {_HEADER + 4 + _DOMAIN + n}" for n in range(3, 26, QUESTIONS.unit))
    yield from _ladder("asked_name", "asked", QUESTIONS, lengths, "asking")
    yield from _raw("asked", QUESTIONS, "asking")
    yield "chain questions {"
    yield "ct status & dnat == 0 drop"  # not to the router's port 53, but to this one
    for key in ("ether saddr",) if ethernet else ("ip saddr", "ip6 saddr"):
        yield f"meta mark set jhash {key} mod 4294967294 offset 1"
    # One question and nothing else, of which the flags RD, AD and CD may be set.
    for odd in ("@th,80,16 & 0xfecf != 0", "@th,96,48 != 0x000100000000"):
        yield f"meta l4proto udp {odd} drop"
    yield from _free(policy, f"update @checked {{ meta mark {CHECKS} }} goto checking")
    yield "meta mark @asked_rest drop"
    for length in _NAMES:
        end = _HEADER + length
        ordinary = f"udp length {end + 4} @th,144,16 0 @th,{end * 8},32 {_TYPES}"
        yield f"{ordinary} goto asked_name"
    yield from _goto_raw("asked")
    yield "drop\n}"


def answers(policy: Policy) -> Iterator[str]:
    """The chain `answers`, which has the last word on what the resolver says to unknown clients."""
    yield from _rest("answered", ANSWERS)
    yield "chain answering_all {"
    yield "meta mark set 0"
    yield f"{ALL_ANSWERS} accept"
    yield "drop\n}"
    for name, size in (("nothing", 0), ("address4", 4), ("address6", 16)):
        steps = [""] * (math.ceil(size / ANSWERS.unit) - 1)
        yield from _ladder(f"answered_{name}", "answered", ANSWERS, steps, "answering_all")
    yield from _raw("answered", ANSWERS, "answering_all")
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
        # Neither truncated nor of an odd opcode, and no authorities or additional records.
        head = f"@th,80,16 & 0xfa40 == 0x8000 @th,96,64 0x{counts}00000000"
        yield f"meta l4proto udp {head} {verdict}"
    yield from _goto_raw("answered")
    yield "drop\n}"


def _free(policy: Policy, verdict: str) -> Iterator[str]:
    """Rules that give `verdict` to what is about a name that costs nothing."""
    for name in free_names(policy):
        labels = [label.encode() for label in name.split(".")]
        wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        parts = ((n, wire[n : n + 16]) for n in range(0, len(wire), 16))
        match = (f"@th,{(_HEADER + n) * 8},{len(p) * 8} 0x{p.hex()}" for n, p in parts)
        yield f"meta l4proto udp {' '.join(match)} {verdict}"


def free_names(policy: Policy) -> list[str]:
    """The names that unknown clients may ask for without counting what it carries."""
    login = [place.host for place in policy.login_places if isinstance(place.host, str)]
    garden = [name for name, _ in policy.walled_garden.names() if not name.startswith("*.")]
    return list(dict.fromkeys([*sorted(CHECK_HOSTS), *login, *sorted(garden)]))[:_MOST_NAMES]


def _rest(meter: str, budget: Budget) -> Iterator[str]:
    yield f"chain {meter}_up {{"
    yield f"add @{meter}_rest {{ meta mark timeout {budget.rest} }}"
    yield "drop\n}"


def _ladder(
    chain: str, meter: str, budget: Budget, steps: Iterable[str], verdict: str
) -> Iterator[str]:
    """A chain in which a packet takes a unit, and one more for each of `steps` that it matches."""
    limit = f"limit rate over {budget.rate}/second burst {budget.burst} packets"
    unit = f"update @{meter} {{ meta mark {limit} }} goto {meter}_up"
    yield f"chain {chain} {{"
    yield unit
    yield f"meta mark != @{meter} goto {meter}_up"  # the set is full
    for match in steps:
        yield f"{match} {unit}".strip()
    yield f"goto {verdict}\n}}"


def _raw(meter: str, budget: Budget, verdict: str) -> Iterator[str]:
    """Chains for packets that are charged for all that is in them, by family."""
    for version, head in _HEADS.items():
        lengths = (f"meta length > {head + n * budget.unit}" for n in range(1, budget.burst))
        yield from _ladder(f"{meter}_raw{version}", meter, budget, lengths, verdict)


def _goto_raw(meter: str) -> Iterator[str]:
    """Sends what is not ordinary to the chains of `_raw`; what never fits is left."""
    budget = QUESTIONS if meter == "asked" else ANSWERS
    for version, head in _HEADS.items():
        fits = f"meta length <= {head + budget.unit * budget.burst}"
        yield f"meta nfproto ipv{version} {fits} goto {meter}_raw{version}"
