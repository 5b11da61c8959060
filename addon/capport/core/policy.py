"""The policy as values: what the operator wants, checked when it is read, and never edited."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from operator import itemgetter

from capport.core.client import Address, Client, Mac
from capport.core.place import Host, Place
from capport.core.probes import ANYWHERE

type Network = IPv4Network | IPv6Network

WEB_PORTS = frozenset({80, 443})
"""The ports of a garden entry that names none."""


class Access(StrEnum):
    """What a client rule makes of its client."""

    KNOWN = "known"
    BLOCKED = "blocked"


class UnknownTls(StrEnum):
    """What is done with an unknown client's TLS. RFC 6585 section 7.4."""

    REFUSE = "refuse"
    INTERCEPT = "intercept"
    DROP = "drop"


class KnownTls(StrEnum):
    """What is done with a known client's TLS."""

    TUNNEL = "tunnel"
    INSPECT = "inspect"


class Connect(StrEnum):
    """How an unknown client's CONNECT is refused."""

    AUTO = "auto"
    ANSWER = "answer"
    ALERT = "alert"


class KnownHttp(StrEnum):
    """What mitmproxy does with the bodies of a known client."""

    STREAM = "stream"
    INSPECT = "inspect"


class Probes(StrEnum):
    """How the connectivity checks of operating systems are answered."""

    COMPATIBLE = "compatible"
    STRICT = "strict"


class Conditions(StrEnum):
    """What a client has to do at the embedded login server to be known."""

    TERMS = "terms"
    VOUCHER = "voucher"
    PASSWORD = "password"  # noqa: S105


class NetworkTable[Value]:
    """Maps networks to values, and finds the values for an address.

    A look-up takes one step for each prefix length in the table: at most 33 for IPv4 and 129 for
    IPv6, however many networks there are.
    """

    def __init__(self) -> None:
        # IP version -> number of bits after the prefix -> bits of the prefix, as a number -> value.
        self._tables: dict[int, dict[int, dict[int, Value]]] = {4: {}, 6: {}}
        self._in_order: list[tuple[int, int, dict[int, Value]]] = []

    def setdefault(self, network: Network | Address, value: Value) -> Value:
        """Stores `value` for `network`, unless it has a value already; returns its value."""
        length, number = _key(network)
        tables, bits = self._tables[network.version], network.max_prefixlen - length
        if bits not in tables:
            tables[bits] = {}
            self._in_order.append((network.version, bits, tables[bits]))
        return tables[bits].setdefault(number >> bits, value)

    def covering(self, network: Network | Address) -> list[Value]:
        """The value of each network that contains all of `network`, including its own."""
        tables = self._tables[network.version]
        if not tables:
            return []
        length, number = _key(network)
        least = network.max_prefixlen - length
        return [
            table[number >> bits]
            for bits, table in tables.items()
            if bits >= least and number >> bits in table
        ]

    def items(self) -> Iterator[tuple[Network, Value]]:
        """Each network and its value."""
        for version, bits, table in self._in_order:
            family = IPv4Network if version == 4 else IPv6Network
            length = family(0).max_prefixlen - bits
            yield from ((family((n << bits, length)), value) for n, value in table.items())


def _key(network: Network | Address) -> tuple[int, int]:
    """The length of the prefix, and the first address of `network`.

    A single address counts as a network.
    """
    if isinstance(network, IPv4Address | IPv6Address):
        return network.max_prefixlen, int(network)
    return network.prefixlen, int(network.network_address)


@dataclass(frozen=True, slots=True)
class ClientRule:
    """What the policy says about one client. `where` is the place of the rule: `lab.yaml:12`."""

    access: Access
    where: str
    name: str | None = None


class ClientRules:
    """The policy's `clients`: the first rule in the file that matches a client decides.

    There is one dict of MACs, and one dict for each prefix length. So the time of a look-up does
    not depend on the number of rules. A million rules take about 150 MB.
    """

    def __init__(self) -> None:
        self._macs: dict[int, int] = {}  # a MAC as a number takes half the memory
        self._networks: NetworkTable[int] = NetworkTable()
        self._lines = array("L")
        self._names: dict[int, str] = {}
        self._sections: list[tuple[int, Access, str]] = []  # first rule, access, file
        self._first_blocked_mac: int | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def section(self, access: Access, file: str) -> None:
        """Begins a section: the rules added after this call have `access` and are in `file`."""
        self._sections.append((len(self), access, file))

    def add(self, subject: Mac | Address | Network, line: int, name: str | None = None) -> None:
        """Adds a rule after all others. `line` is its line in the section's file."""
        number = len(self)
        if isinstance(subject, str):
            first = self._macs.setdefault(_number(subject), number) == number
            if first and self._first_blocked_mac is None and self._access(number) is Access.BLOCKED:
                self._first_blocked_mac = number
        else:
            self._networks.setdefault(subject, number)
        self._lines.append(line)
        if name:
            self._names[number] = name

    def find(self, client: Client) -> ClientRule | None:
        """The first rule that matches `client`."""
        found = self._networks.covering(client.address)
        if client.mac is not None and (number := self._macs.get(_number(client.mac))) is not None:
            found.append(number)
        return self._rule(min(found)) if found else None

    def may_block(self, address: Address) -> bool:
        """Whether a client at `address` may be blocked by its MAC, which is not known now.

        False if the address alone decides, whatever the MAC is.
        """
        if self._first_blocked_mac is None:
            return False
        number = min(self._networks.covering(address), default=None)
        return number is None or (
            number > self._first_blocked_mac and self._access(number) is Access.KNOWN
        )

    def known(self) -> Iterator[tuple[Mac | Network, ClientRule]]:
        """Each MAC and network that is known by a rule, in the policy's order, and that rule.

        A network is left out if an earlier rule covers all of it.
        """
        for subject, number, access in sorted(self.subjects(), key=itemgetter(1)):
            if access is Access.KNOWN and (
                isinstance(subject, str) or number == min(self._networks.covering(subject))
            ):
                yield subject, self._rule(number)

    def covering(self, subject: Mac | Address | Network) -> ClientRule | None:
        """The first rule that matches every client of `subject`.

        A later rule for `subject` would have no effect.
        """
        if isinstance(subject, str):
            number = self._macs.get(_number(subject))
        else:
            number = min(self._networks.covering(subject), default=None)
        return None if number is None else self._rule(number)

    def subjects(self) -> Iterator[tuple[Mac | Network, int, Access]]:
        """Each MAC and network that has a rule, its place in the order, and what the rule says."""
        for mac, number in self._macs.items():
            yield Mac(mac.to_bytes(6).hex(":")), number, self._access(number)
        for network, number in self._networks.items():
            yield network, number, self._access(number)

    def _rule(self, number: int) -> ClientRule:
        _, access, file = self._section_of(number)
        return ClientRule(access, f"{file}:{self._lines[number]}", self._names.get(number))

    def _access(self, number: int) -> Access:
        return self._section_of(number)[1]

    def _section_of(self, number: int) -> tuple[int, Access, str]:
        return self._sections[bisect_right(self._sections, number, key=itemgetter(0)) - 1]


def _number(mac: Mac) -> int:
    return int(mac.replace(":", ""), 16)


@dataclass(frozen=True, slots=True)
class GardenEntry:
    """One line of the walled garden. `text` is as in the file; `where` is `lab.yaml:21`.

    `wide` is whether it covers more than one name or address.
    """

    text: str
    ports: frozenset[int]
    where: str
    wide: bool = False


class WalledGarden:
    """The places that unknown clients may reach.

    A name is looked up itself, then by each of its parents. `*.example.org` covers every name below
    example.org, but not that name itself. So a look-up takes as many steps as the name has labels.
    """

    def __init__(self) -> None:
        self.entries: list[GardenEntry] = []
        self._names: dict[str, list[GardenEntry]] = {}
        self._networks: NetworkTable[list[GardenEntry]] = NetworkTable()

    def add(self, covered: Host | Network, entry: GardenEntry) -> None:
        """Adds an entry. A name is as `place.parse_host` returns it; `*.` may be in front."""
        if isinstance(covered, str):
            self._names.setdefault(covered, []).append(entry)
        else:
            self._networks.setdefault(covered, []).append(entry)
        self.entries.append(entry)

    def find(self, host: Host, port: int, *, exactly: bool = False) -> GardenEntry | None:
        """The entry that covers `host` and `port`; if `exactly`, one that covers no other host."""
        for entry in self._covering(host):
            if port in entry.ports and not (exactly and entry.wide):
                return entry
        return None

    def names(self) -> Iterator[tuple[str, GardenEntry]]:
        """Each name in the garden and its entry. `*.example.org` keeps its star."""
        for name, entries in self._names.items():
            yield from ((name, entry) for entry in entries)

    def networks(self) -> Iterator[tuple[Network, GardenEntry]]:
        """Each network in the garden and its entry."""
        for network, entries in self._networks.items():
            yield from ((network, entry) for entry in entries)

    def _covering(self, host: Host) -> list[GardenEntry]:
        if not isinstance(host, str):
            return [entry for entries in self._networks.covering(host) for entry in entries]
        found, parent = [*self._names.get(host, ())], host
        while "." in parent:
            parent = parent.partition(".")[2]
            found += self._names.get(f"*.{parent}", ())
        return found


@dataclass(frozen=True, slots=True)
class Tls:
    """The policy's `tls`."""

    unknown: UnknownTls = UnknownTls.REFUSE
    known: KnownTls = KnownTls.TUNNEL
    connect: Connect = Connect.AUTO


@dataclass(frozen=True, slots=True)
class Sessions:
    """The policy's `sessions`. `lifetime` and `idle` are in seconds; `most` counts all clients."""

    store: str | None = None
    lifetime: float = 8 * 3600.0
    idle: float | None = None
    most: int = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests, or refusals, in `per` seconds."""

    count: int
    per: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The policy's `limits`: RFC 6585 sections 3 to 5, and 7.2. Sizes are in bytes.

    `requests` is for each known client, `unknown_requests` for each unknown one. `drop_after` is
    how many refusals a client may cause before its connections are dropped.
    """

    requests: Rate | None = None
    header_field: int | None = None
    header_section: int | None = None
    require_conditions: frozenset[Host] = frozenset()
    unknown_requests: Rate | None = None
    drop_after: Rate | None = None

    def requests_of(self, *, known: bool) -> Rate | None:
        """The rate that a known or an unknown client must keep."""
        return self.requests if known else self.unknown_requests


@dataclass(frozen=True, slots=True)
class LoginServer:
    """The policy's `login_server`, which is the embedded one. Paths are absolute.

    `listen` has at least one place. `venue_info_url` is an https URL of a page about the venue
    (RFC 8908 section 5).
    """

    listen: tuple[Place, ...]
    certificate: str | None = None
    key: str | None = None
    conditions: Conditions = Conditions.TERMS
    venue_info_url: str | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """The policy's `router`: the interfaces for which the kernel gets rules."""

    client_interface: str
    origin_interface: str


@dataclass(frozen=True, slots=True)
class Login:
    """The URL that a 511 links to, and the place in it."""

    url: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The whole policy file. `file` is its path, or None for the embedded default.

    `other_login` is set if `login_url` has an address in it, and the login server also has one of
    the other family (IPv4 or IPv6). Each client then gets the link with its own family. `trusting`
    are the clients that are meant to accept mitmproxy's certificates.
    """

    login_url: str
    login_place: Place
    other_login: Login | None = None
    network: str | None = None
    refresh: int | None = 10
    clients: ClientRules = field(default_factory=ClientRules)
    trusting: ClientRules = field(default_factory=ClientRules)
    walled_garden: WalledGarden = field(default_factory=WalledGarden)
    tls: Tls = Tls()
    http_known: KnownHttp = KnownHttp.STREAM
    sessions: Sessions = Sessions()
    limits: Limits = Limits()
    probes: Probes = Probes.COMPATIBLE
    probe_paths: tuple[str, ...] = ANYWHERE
    login_server: LoginServer | None = None
    router: Router | None = None
    file: str | None = None

    logins: tuple[Login, ...] = field(init=False, repr=False, compare=False)
    """The login URLs: one, or one for each family of addresses."""
    login_places: tuple[Place, ...] = field(init=False, repr=False, compare=False)
    """The places of the login URLs, and those where the embedded login server listens.

    A client that signs in at an external login server still uses the embedded one: it comes back
    there with a signed return, and asks its API.
    """

    # By port, and whether it is a name, because to hash an address takes longer than all else.
    _login_hosts: dict[tuple[int, bool], set[Host]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first, ours = Login(self.login_url, self.login_place), self.login_server
        logins = (first, self.other_login) if self.other_login else (first,)
        places = (*(login.place for login in logins), *(ours.listen if ours else ()))
        object.__setattr__(self, "logins", logins)
        object.__setattr__(self, "login_places", tuple(dict.fromkeys(places)))
        hosts: dict[tuple[int, bool], set[Host]] = {}
        for place in places:
            hosts.setdefault((place.port, isinstance(place.host, str)), set()).add(place.host)
        object.__setattr__(self, "_login_hosts", hosts)

    def is_login(self, place: Place) -> bool:
        """Whether `place` is one of the `login_places`."""
        return place.host in self._login_hosts.get((place.port, isinstance(place.host, str)), ())

    def login_for(self, address: Address | None) -> Login:
        """The login URL for a client at `address`: of its family, if there is one for each."""
        other = self.other_login
        if other and address and _version(other.place) == address.version:
            return other
        return self.logins[0]

    def login_url_with(self, token: str | None, address: Address | None) -> str:
        """The login URL for a client at `address`, with `token` (or nothing) in place of `{state}`.

        Without `{state}` in it, the embedded login server gets the token as a parameter.
        """
        url = self.login_for(address).url
        if token and "{state}" not in url and self.login_server is not None:
            return f"{url}{'&' if '?' in url else '?'}state={token}"
        return url.replace("{state}", token or "")

    @property
    def client_interfaces(self) -> tuple[str, ...] | None:
        """The interfaces that clients are at; None if the policy has no `router` to say that."""
        return None if self.router is None else (self.router.client_interface,)

    @property
    def login_lacks(self) -> int | None:
        """The family, 4 or 6, that has no login address. None if both have one, or it is a name."""
        other_than = {4: 6, 6: 4}
        version = None if self.other_login else _version(self.login_place)
        return None if version is None else other_than[version]


def _version(place: Place) -> int | None:
    """The family of the place's address, 4 or 6; None if the place has a name."""
    return None if isinstance(place.host, str) else place.host.version
