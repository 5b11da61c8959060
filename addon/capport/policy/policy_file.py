"""Reads a policy file: YAML in, a Policy out, or an error for each line that is wrong.

A file is read and checked as a whole before any of it is used. section.py lists the keys, values.py
parses the values, and tree.py reads the YAML.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from capport.core.client import Mac
from capport.core.place import Place
from capport.core.policy import (
    Access,
    ClientRules,
    Conditions,
    GardenEntry,
    KnownHttp,
    Limits,
    Login,
    LoginServer,
    Network,
    Policy,
    Probes,
    Rate,
    Router,
    Sessions,
    Tls,
    WalledGarden,
)
from capport.core.probes import ANYWHERE, CHECKED_BY_TLS, known_checks
from capport.core.session import LONGEST
from capport.extras import lacking
from capport.policy import clients_file, values
from capport.policy.errors import PolicyError, Problem, Problems, TooMany, read_bounded, reason
from capport.policy.section import Section
from capport.policy.tree import Map, Node, Word, read_text, read_tree, unexpected
from capport.stores.redis_url import is_redis

if TYPE_CHECKING:
    from capport.policy.certificate import Chain

__all__ = ["PolicyError", "Problem", "default", "load", "load_with_warnings", "parse"]

# An IPv6 address that ends in one of these probably lacks brackets and has a port.
_WEB_PORTS = {"80", "443", "8080", "8443"}
_LONGEST_CERTIFICATE = 1 << 20  # bytes of the file, with the whole chain
_DAY = 86400
_REFRESH: int | None = 10
_EVERY_ADDRESS = (IPv4Address("0.0.0.0"), IPv6Address("::"))  # noqa: S104

type Opening = Callable[[str], object]
"""A function called with each file's name just before the file is opened, to detect changes."""


def load(path: Path, opening: Opening = str) -> Policy:
    """The policy in the file at `path`. Raises PolicyError, with every error in the file."""
    return load_with_warnings(path, opening)[0]


def load_with_warnings(path: Path, opening: Opening = str) -> tuple[Policy, tuple[Problem, ...]]:
    """The policy at `path`, and the warnings. Raises PolicyError."""
    opening(str(path))
    return _Reader(Problems(str(path), read_text(path)), path.parent, opening).read()


def parse(text: str, name: str, folder: Path) -> Policy:
    """The policy in `text`; errors name the file `name`. Raises PolicyError.

    Relative paths in it start at `folder`.
    """
    return _Reader(Problems(name, text), folder, str).read()[0]


def default() -> Policy:
    """The policy in default.yaml, which is used when the operator names no policy file."""
    return replace(load(Path(__file__).parents[1] / "default.yaml"), file=None)


class _Reader:
    """Reads one policy, key by key."""

    def __init__(self, problems: Problems, folder: Path, opening: Opening) -> None:
        self.problems = problems
        self._folder = folder
        self._opening = opening
        self._certificate: Chain | None = None  # the login server's, once it is read

    def read(self) -> tuple[Policy, tuple[Problem, ...]]:
        """The policy, and the warnings. Raises PolicyError."""
        policy = None
        with suppress(TooMany):
            root = read_tree(self.problems)
            policy = None if root is None else self.policy(root)
        if policy is None or self.problems.errors:
            raise PolicyError(self.problems.errors)
        return policy, self.problems.warnings

    def policy(self, root: Node) -> Policy | None:
        """The policy in `root`; None if it is no map, which is then among the problems."""
        if not isinstance(root, Map):
            unexpected(self.problems, root, "a policy is a map, such as login_url: https://…")
            return None
        top = Section(self.problems, "the policy", root)
        section = top.section("login_server")
        login_server = self._login_server(section)
        login, *other = self._login(top, login_server)
        if "router" in top and values.is_on_this_machine(login.place):
            key = "login_url" if "login_url" in top else "login_server"
            why = "where each client reaches only itself: write the router's address on their side"
            top.warn(key, f"people are sent to {login.place}, {why}")
        if section is not None and self._certificate:
            # Browsers compare the name only if people are sent to it.
            named = "login_url" in top and login.url.startswith("https:")
            host = login.place.host if named else None
            for doubt in self._certificate.doubts(datetime.now(UTC), host):
                section.warn("certificate", f"{self._path(section, 'certificate')} {doubt}")
        sessions = self._sessions(top.settings("sessions"))
        asks = login_server.conditions if login_server else Conditions.TERMS
        if section is not None and asks is Conditions.PASSWORD and is_redis(sessions.store or ""):
            why = "each router has its own users: run capport user add on every router"
            section.warn("conditions", f"{asks}, but {why}")
        clients, trusting = self._clients(top)
        return Policy(
            login_url=login.url,
            login_place=login.place,
            other_login=other[0] if other else None,
            network=top.take("network", values.for_people, None),
            refresh=top.take("refresh", values.refresh, _REFRESH),
            clients=clients,
            trusting=trusting,
            walled_garden=self._walled_garden(top, login_server),
            tls=self._tls(top.settings("tls")),
            http_known=top.settings("http").word("known", KnownHttp.STREAM),
            sessions=sessions,
            limits=self._limits(top.settings("limits")),
            probes=top.word("probes", Probes.COMPATIBLE),
            probe_paths=self._probe_paths(top),
            login_server=login_server,
            router=self._router(top.section("router")),
            file=self.problems.file,
        )

    def _login(self, top: Section, server: LoginServer | None) -> list[Login]:
        """Where a 511 sends people: `login_url`, or the embedded login server's own addresses.

        `login_url` is one URL; of the login server's addresses, there is one URL for each family.
        """
        nowhere = Login("", Place("", 0))
        if "login_url" in top:
            url = top.take("login_url", values.login_url, nowhere)
            if doubt := values.doubt_of(url):
                self.problems.warn(top.mark("login_url"), f"login_url {doubt}")
            return [url]
        if top.lacks("login_url") and top.lacks("login_server"):
            what = "where people sign in, such as https://login.example.net/"
            self.problems.error(top.at, f"login_url is missing: {what}, or a login_server")
        if server is None:
            return [nowhere]
        at = top.mark("login_server")
        if every := next((p.host for p in server.listen if p.host in _EVERY_ADDRESS), None):
            where = f"login_server listens on {every}, which no client can connect to"
            self.problems.error(at, f"{where}: add a login_url, or listen on one address")
        elif server.certificate:
            why = "people go to the address of listen, but most certificates are for a name"
            self.problems.warn(at, f"login_url is missing: {why}")
        scheme = "https" if server.certificate else "http"
        # The first of each family of addresses, because a client can only reach its own family.
        places: dict[type, Place] = {}
        for place in server.listen:
            places.setdefault(type(place.host), place)
        return [Login(place.url(scheme), place) for place in places.values()]

    def _clients(self, top: Section) -> tuple[ClientRules, ClientRules]:
        """The rules that decide, and the clients that trust mitmproxy's CA."""
        rules, trusting = ClientRules(), ClientRules()
        example = "{address: 192.0.2.20, access: known}"
        for node in top.items("clients", example):
            if isinstance(node, Map):
                self._client(Section(self.problems, "clients", node), rules, trusting)
            else:
                unexpected(self.problems, node, f"a client is a map, such as {example}")
        return rules, trusting

    def _client(self, rule: Section, rules: ClientRules, trusting: ClientRules) -> None:
        trusts = rule.take("trusts_ca", values.truth, "trusts_ca" in rule)
        access = None
        if not trusts or "access" in rule:
            access = rule.need("access", values.word_of(Access), "known or blocked")
        name = rule.take("name", values.for_people, None)
        about = [key for key in ("mac", "address", "file") if key in rule]
        if len(about) != 1:
            found = "none" if not about else " and ".join(about)
            needs = f"a client needs exactly one of mac, address, file; this one has {found}"
            self.problems.error(rule.at, f"clients: {needs}")
            return
        if about == ["file"]:
            tables = [rules] if access or not trusts else []
            self._clients_file(rule, [*tables, trusting] if trusts else tables, access)
            return
        subject: Mac | Network | None = rule.take("mac", values.mac, None)
        if about == ["address"]:
            subject = rule.take("address", values.network, None)
        if subject is not None and trusts:
            trusting.section(Access.KNOWN, self.problems.file)
            trusting.add(subject, rule.at.line, name)
        if subject is None or access is None:
            return
        if earlier := rules.covering(subject):
            why = f"{earlier.where} comes first, and covers it"
            self.problems.warn(rule.at, f"the client {subject} never matches: {why}")
        rules.section(access, self.problems.file)
        rules.add(subject, rule.at.line, name)

    def _clients_file(
        self, rule: Section, tables: list[ClientRules], access: Access | None
    ) -> None:
        if "name" in rule:
            rule.error("name", "each client in a file has its own name; remove this one")
        path = self._path(rule, "file")
        if path is None:
            return
        self._opening(str(path))
        for table in tables:
            table.section(access or Access.BLOCKED, str(path))
        for problem in clients_file.read(path, tables):
            if problem.line:
                self.problems.error_in(rule.mark("file"), problem)
            else:
                rule.error("file", f"{problem.file}: {problem.message}")

    def _walled_garden(self, top: Section, login_server: LoginServer | None) -> WalledGarden:
        garden = WalledGarden()
        if login_server and login_server.certificate and self._certificate:
            # Clients check the API's certificate there (RFC 8908 section 4.1).
            for place in self._certificate.places_to_check():
                ports, where = frozenset({place.port}), login_server.certificate
                garden.add(place.host, GardenEntry(str(place), ports, where))
        what = "words, such as status.example.org:8080 (no space after the colon)"
        for (found, ports), node in top.several(
            "walled_garden", values.garden_entry, what, "www.example.org"
        ):
            self._garden_entry(garden, node, found, ports)
        return garden

    def _garden_entry(
        self, garden: WalledGarden, node: Word, found: str | Network, ports: frozenset[int]
    ) -> None:
        wide = found.startswith("*.") if isinstance(found, str) else found.num_addresses > 1
        entry = GardenEntry(node.text, ports, f"{self.problems.file}:{node.at.line}", wide)
        host, _, port = node.text.rpartition(":")
        if ":" in host and "[" not in host and port in _WEB_PORTS:
            what = f'if {port} is its port, write "[{host}]:{port}"'
            self.problems.warn(node.at, f"{node.text} is one address: {what}")
        garden.add(found, entry)
        holds = ""
        if not isinstance(found, str):
            if found.prefixlen <= (8 if found.version == 4 else 16):
                holds = f"{found.num_addresses} addresses"
        elif found.startswith("*.") and found.count(".") == 1:
            holds = "a whole top-level domain"
        else:
            self._checks_in_the_garden(node, found, entry)
        if holds:
            self.problems.warn(node.at, f"{found} holds {holds}: unknown clients may reach all")

    def _checks_in_the_garden(self, node: Word, name: str, entry: GardenEntry) -> None:
        """Warns if an entry of the garden covers the host of a connectivity check."""
        found = [check for check in known_checks() if _covers(name, check[1])]
        if 80 in entry.ports and found:
            systems = " and ".join(dict.fromkeys(system for system, _, _ in found))
            url = f"http://{found[0][1]}{found[0][2]}"
            if entry.wide:
                so = f"{systems} would not ask people to sign in; to let it through, name its host"
                message = f"{name} does not let connectivity checks through, such as {url}: {so}"
            else:
                so = f"{systems} may not ask people to sign in"
                message = f"{name} lets the connectivity check {url} through: {so}"
            self.problems.warn(node.at, message)
        if 443 in entry.ports and _covers(name, CHECKED_BY_TLS):
            why = "is let through, because requests inside TLS are not visible"
            so = "Android and ChromeOS may not ask people to sign in"
            check = f"the connectivity check https://{CHECKED_BY_TLS}/generate_204"
            self.problems.warn(node.at, f"{name}: {check} {why}: {so}")

    def _tls(self, section: Section) -> Tls:
        default = Tls()
        return Tls(
            unknown=section.word("unknown", default.unknown),
            known=section.word("known", default.known),
            connect=section.word("connect", default.connect),
        )

    def _sessions(self, section: Section) -> Sessions:
        default, seconds = Sessions(), values.duration(1, LONGEST)
        sessions = Sessions(
            store=section.take("store", values.store(self._folder), default.store),
            lifetime=section.take("lifetime", seconds, default.lifetime),
            idle=section.take("idle", seconds, default.idle),
            most=section.take("most", values.count(1, 1_000_000), default.most),
        )
        if sessions.idle is not None and sessions.idle > sessions.lifetime:
            section.warn("idle", "it is longer than lifetime, so it has no effect")
        return sessions

    def _limits(self, section: Section) -> Limits:
        limit, example = values.size(256, 1 << 20), "api.example.org"
        hosts = section.several("require_conditions", values.host, "host names", example)
        limits = Limits(
            requests=self._rate(section, "requests", "requests, such as 600"),
            unknown_requests=self._rate(section, "unknown_requests", "requests, such as 300"),
            drop_after=self._rate(section, "drop_after", "refusals, such as 6000"),
            header_field=section.take("header_field", limit, None),
            header_section=section.take("header_section", limit, None),
            require_conditions=frozenset(host for host, _ in hosts),
        )
        if limits.header_section and (limits.header_field or 0) > limits.header_section:
            section.warn("header_field", "it is more than header_section, so it has no effect")
        return limits

    def _rate(self, limits: Section, key: str, what: str) -> Rate | None:
        section = limits.section(key)
        if section is None:
            return None
        count = section.need("count", values.count(1, 1_000_000), f"how many {what}")
        per = section.need("per", values.duration(1, _DAY), "in which time, such as 1m")
        return None if count is None or per is None else Rate(count, per)

    def _probe_paths(self, top: Section) -> tuple[str, ...]:
        if "probe_paths" not in top:
            return ANYWHERE
        paths = top.several("probe_paths", values.probe_path, "paths", ANYWHERE[0])
        return tuple(path for path, _ in paths)

    def _login_server(self, section: Section | None) -> LoginServer | None:
        if section is None:
            return None
        if why := lacking("login"):
            self.problems.error(section.at, f"login_server {why}")
        listen = self._listen(section)
        certificate, pem = self._file(section, "certificate")
        key, private = self._file(section, "key")
        self._check_pair(section, pem, private)
        for one, other in (("certificate", "key"), ("key", "certificate")):
            if one in section and other not in section:
                section.error(one, f"it needs {other}: add it, or leave both out for http")
        conditions = section.word("conditions", Conditions.TERMS)
        venue_info_url = section.take("venue_info_url", values.web_page, None)
        if venue_info_url is not None and certificate is None:
            why = "only the Captive Portal API serves it, and that needs https: add a certificate"
            section.warn("venue_info_url", why)
        if not listen:
            return None
        return LoginServer(listen, certificate, key, conditions, venue_info_url)

    def _listen(self, section: Section) -> tuple[Place, ...]:
        """The places where the login server listens; empty if `listen` is missing or wrong."""
        example = "192.0.2.1:8511"
        what = "an address and a port"
        found: list[Place] = []
        for place, node in section.several("listen", values.listen, what, example, needed=True):
            if one := next((one for one in found if _overlap(one, place)), None):
                both = f"listen: a program cannot listen on both {one} and {place}"
                self.problems.error(node.at, f"{both}: leave one out")
            found.append(place)
        return tuple(found)

    def _check_pair(self, section: Section, pem: bytes | None, private: bytes | None) -> None:
        """Checks that the certificate can be read, and that the key belongs to it."""
        if pem is None:
            return
        # Few policies name a certificate. cryptography takes a quarter of the time of a command.
        from capport.policy.certificate import Chain

        try:
            self._certificate = Chain(pem)
        except ValueError as error:
            section.error("certificate", f"{self._path(section, 'certificate')} {error}")
            return
        if private is not None and (why := self._certificate.key_error(private)):
            section.error("key", f"{self._path(section, 'key')} {why}")

    def _path(self, section: Section, key: str) -> Path | None:
        return section.take(key, values.path(self._folder), None)

    def _file(self, section: Section, key: str) -> tuple[str | None, bytes | None]:
        """The absolute path of the file under `key`, and its content, if it can be read."""
        path, data = self._path(section, key), None
        if path is None:
            return None, None
        self._opening(str(path))
        try:
            data = read_bounded(path, _LONGEST_CERTIFICATE)
        except OSError as error:
            section.error(key, f"{path}: {reason(error)}")
        return str(path.absolute()), data

    def _router(self, section: Section | None) -> Router | None:
        if section is None:
            return None
        here, there = "the clients' side, such as br-lan", "the Internet's side, such as wan"
        client = section.need("client_interface", values.interface, here)
        origin = section.need("origin_interface", values.interface, there)
        if client is None or origin is None:
            return None
        if client == origin:
            section.error(
                "origin_interface", f"client_interface is {client} too: a router needs two"
            )
        return Router(client, origin)


def _overlap(one: Place, other: Place) -> bool:
    """Whether a program cannot listen on both, because one includes the other."""
    every = one.host in _EVERY_ADDRESS or other.host in _EVERY_ADDRESS
    same_family = type(one.host) is type(other.host)
    return one.port == other.port and same_family and (every or one.host == other.host)


def _covers(entry: str, host: str) -> bool:
    """Whether a name in the garden is `host`, or a wildcard that covers it."""
    return host.endswith(entry[1:]) if entry.startswith("*.") else host == entry
