"""Whether a client is known, blocked or unknown, until when, and why.

Every enforcement point, page, API and command calls `standing`. A new rule is a function and a line
in `RULES`. It answers BLOCKED if no session can change what it says: pages and commands then grant
none.

The kernel lets whole networks and MACs pass, but only if no new rule may decide otherwise about
some of their clients (`settles`). In front of `by_client_rule`, a new rule leaves those sets empty:
each client on the link then gets an element of its own, and all others are left to mitmproxy. An
element is decided again when the session or the MAC of its client changes, and otherwise every five
minutes. A rule that goes by anything else, such as the time of day, must call
`KnownClients.changed`.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from ipaddress import ip_address
from itertools import takewhile

from capport.core.client import Address, Client, ClientId, Mac, parts_of
from capport.core.policy import Access, ClientRule, ClientRules, Network, Policy
from capport.core.session import Instant, Session
from capport.core.value import value

NO_ADDRESS = ip_address("0.0.0.0")  # noqa: S104
"""Stands for the address of a device of which only the MAC is given."""


class Kind(StrEnum):
    """What a client can be. A BLOCKED client is unknown, and no sign-in changes that."""

    KNOWN = "known"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


@value
class Standing:
    """What `client` is at one moment.

    `because` completes a sentence that begins with the client: "is known for 60 s more". `rule` is
    the client rule that decided, if one did. `session` is the session that decided, or one that is
    over. `seconds_remaining` is set if the session makes the client known.
    """

    client: Client
    kind: Kind
    because: str
    rule: ClientRule | None = None
    session: Session | None = None
    seconds_remaining: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the client may go anywhere. RFC 8908 section 5 calls all others captive."""
        return self.kind is Kind.KNOWN

    @property
    def is_blocked(self) -> bool:
        """Whether the client is unknown, and no session can change that."""
        return self.kind is Kind.BLOCKED

    @property
    def open_session(self) -> Session | None:
        """The session that makes the client known, if one does."""
        return self.session if self.kind is Kind.KNOWN else None

    @property
    def until(self) -> Instant | None:
        """When the session that makes the client known ends; None if there is no such session."""
        return self.session.ends if self.session and self.kind is Kind.KNOWN else None


@value
class Facts:
    """What a standing is decided from.

    `rule` is the first client rule that matches `client`. `session` is the client's, open or over.
    `lacks_mac` is the result of the function with that name.
    """

    client: Client
    now: Instant
    rule: ClientRule | None
    session: Session | None
    lacks_mac: bool


type Rule = Callable[[Facts, Policy], Standing | None]


def without_its_mac(facts: Facts, policy: Policy) -> Standing | None:
    """Unknown if the client's MAC is missing, because a rule may block the client by that MAC."""
    if not facts.lacks_mac:
        return None
    because = "has a MAC that is not known now, and a rule may block it by that MAC"
    return Standing(facts.client, Kind.UNKNOWN, because)


def by_client_rule(facts: Facts, policy: Policy) -> Standing | None:
    """Known or blocked if a client rule says so, whatever session there is."""
    rule = facts.rule
    if rule is None:
        return None
    kind = Kind.KNOWN if rule.access is Access.KNOWN else Kind.BLOCKED
    return Standing(facts.client, kind, f"is {kind} by {rule.where}", rule)


def by_session(facts: Facts, policy: Policy) -> Standing | None:
    """Known if the session is open."""
    session = facts.session
    if session is None or not session.is_open(facts.now):
        return None
    left = session.seconds_remaining(facts.now)
    return Standing(facts.client, Kind.KNOWN, f"is known for {left} s more", None, session, left)


def by_nothing(facts: Facts, policy: Policy) -> Standing:
    """Unknown otherwise."""
    if facts.session is None:
        return Standing(facts.client, Kind.UNKNOWN, "has no session")
    because = "has a session, and its session is over"
    return Standing(facts.client, Kind.UNKNOWN, because, None, facts.session)


# The first rule that answers decides.
RULES: tuple[Rule, ...] = (without_its_mac, by_client_rule, by_session, by_nothing)

# The kernel carries these out itself: it has the client rules, and sees the MAC of each frame.
# Every other rule may depend on anything about a client.
_IN_THE_KERNEL = {without_its_mac, by_client_rule}

# What these say of a client without a session stays while a policy is in force, unless the kernel's
# routes change.
_STAY = {*_IN_THE_KERNEL, by_session, by_nothing}


def settles(rule: Rule) -> bool:
    """Whether `rule` decides for a whole network, or for a MAC at any address.

    If not, an earlier rule may decide otherwise about some of these clients, so the standing of
    each must be asked for.
    """
    return _IN_THE_KERNEL.issuperset(takewhile(lambda earlier: earlier is not rule, RULES))


def settled(rules: ClientRules) -> Iterator[tuple[Mac | Network, int, Kind]]:
    """Each MAC and network that has a client rule, the rule's place in the order, and its kind.

    The kind lets none of these clients pass whose standing does not: where client rules alone do
    not make a client known, it is UNKNOWN instead of KNOWN.
    """
    known = Kind.KNOWN if settles(by_client_rule) else Kind.UNKNOWN
    for subject, number, access in rules.subjects():
        yield subject, number, known if access is Access.KNOWN else Kind.BLOCKED


def standing(
    client: Client,
    policy: Policy,
    session: Session | None,
    now: Instant,
    *,
    lacks_mac: bool = False,
) -> Standing:
    """What `client` is at `now`, by `policy` and the session that the store has for it."""
    facts = Facts(client, now, policy.clients.find(client), session, lacks_mac)
    return _decided(facts, policy)


def standing_of_id(
    client_id: ClientId, policy: Policy, session: Session | None, now: Instant
) -> Standing:
    """What the client with this id is.

    If the id is a MAC alone, only rules for that MAC count, because its address is not given.
    """
    mac, address = parts_of(client_id)
    if address is not None:
        return standing(Client(address, mac), policy, session, now)
    assert mac is not None
    rule = policy.clients.covering(mac)
    return _decided(Facts(Client(NO_ADDRESS, mac), now, rule, session, False), policy)


def known_sessions(sessions: Iterable[Session], policy: Policy, now: Instant) -> Iterator[Session]:
    """Those of `sessions` that are open at `now`, and whose client is known then."""
    for session in sessions:
        if session.is_open(now) and standing_of_id(session.client, policy, session, now).is_known:
            yield session


def known_by_rule(policy: Policy) -> Iterator[tuple[Mac | Network, ClientRule]]:
    """Each MAC and network that a client rule makes known, in the policy's order, and that rule."""
    return policy.clients.known() if settles(by_client_rule) else iter(())


def needs_no_session(client: Client, policy: Policy) -> bool:
    """Whether a client rule decides about `client`, whatever session it has."""
    return settles(by_client_rule) and policy.clients.find(client) is not None


def is_without_mac(client: Client, is_on_link: Callable[[Address], bool]) -> bool:
    """Whether `client` is on the link, so that it has a MAC, but the MAC is not known now."""
    return client.mac is None and is_on_link(client.address)


def lacks_mac(client: Client, policy: Policy, is_on_link: Callable[[Address], bool]) -> bool:
    """Whether `client` has a MAC that is not known now, and a rule may block it by that MAC.

    A client without an entry in the neighbour table must not get past such a rule. `is_on_link`
    asks the kernel's routes, so it is called only if the answer matters.
    """
    return _goes_by_routes(client, policy) and is_without_mac(client, is_on_link)


def stays(client: Client, policy: Policy) -> bool:
    """Whether `client`, if it has no session, keeps its standing while `policy` is in force."""
    return _STAY.issuperset(RULES) and not _goes_by_routes(client, policy)


def _goes_by_routes(client: Client, policy: Policy) -> bool:
    return client.mac is None and policy.clients.may_block(client.address)


def _decided(facts: Facts, policy: Policy) -> Standing:
    for rule in RULES:
        if found := rule(facts, policy):
            return found
    raise AssertionError("by_nothing answers for every client")
