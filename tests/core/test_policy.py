from dataclasses import replace
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capport.core.client import Address, Client, Mac
from capport.core.place import Place
from capport.core.policy import (
    WEB_PORTS,
    Access,
    ClientRule,
    ClientRules,
    Conditions,
    Connect,
    GardenEntry,
    KnownHttp,
    KnownTls,
    Limits,
    Login,
    LoginServer,
    Network,
    NetworkTable,
    Policy,
    Probes,
    Rate,
    Router,
    Sessions,
    Tls,
    UnknownTls,
    WalledGarden,
)

# Few bits vary, so that rules often match clients.
V4 = st.integers(0, 15).map(lambda n: ip_address(f"192.0.2.{n * 16}"))
V6 = st.integers(0, 15).map(lambda n: ip_address(f"2001:db8::{n * 0x1000:x}"))
ADDRESSES: st.SearchStrategy[Address] = V4 | V6
MACS = st.integers(0, 7).map(lambda n: Mac(f"02:00:00:00:00:{n:02x}"))
NETWORKS: st.SearchStrategy[Network] = st.builds(
    lambda address, length: IPv4Network((int(address), length), strict=False),
    V4,
    st.integers(0, 32),
) | st.builds(
    lambda address, length: IPv6Network((int(address), length), strict=False),
    V6,
    st.integers(0, 128),
)
SUBJECTS: st.SearchStrategy[Mac | Address | Network] = MACS | ADDRESSES | NETWORKS
CLIENTS = st.builds(Client, ADDRESSES, MACS | st.none())
RULES = st.lists(
    st.tuples(SUBJECTS, st.sampled_from(Access), st.text("ab", max_size=1)), max_size=12
)


def holds(subject: Mac | Address | Network, address: Address) -> bool:
    if isinstance(subject, str):
        return False
    return (
        address in subject if isinstance(subject, IPv4Network | IPv6Network) else address == subject
    )


def rules_of(rules: list[tuple[Mac | Address | Network, Access, str]]) -> ClientRules:
    table = ClientRules()
    for line, (subject, access, name) in enumerate(rules, 1):
        table.section(access, f"file{line % 3}")
        table.add(subject, line, name)
    return table


@settings(max_examples=500)
@given(RULES, CLIENTS)
def test_the_first_rule_that_matches_decides(
    rules: list[tuple[Mac | Address | Network, Access, str]], client: Client
) -> None:
    found = rules_of(rules).find(client)
    expected = next(
        (
            (access, f"file{line % 3}:{line}", name or None)
            for line, (subject, access, name) in enumerate(rules, 1)
            if subject == client.mac or holds(subject, client.address)
        ),
        None,
    )
    assert (found and (found.access, found.where, found.name)) == expected


@settings(max_examples=500)
@given(RULES, SUBJECTS, CLIENTS)
def test_a_rule_that_is_covered_never_decides(
    rules: list[tuple[Mac | Address | Network, Access, str]],
    subject: Mac | Address | Network,
    client: Client,
) -> None:
    table = rules_of(rules)
    covering = table.covering(subject)
    table.section(Access.KNOWN, "last")
    table.add(subject, 99)
    found = table.find(client)
    if covering is not None:
        assert found is None or found.where != "last:99"


@settings(max_examples=500)
@given(RULES, ADDRESSES)
def test_a_client_without_its_mac_may_be_blocked_exactly_if_one_with_it_could_be(
    rules: list[tuple[Mac | Address | Network, Access, str]], address: Address
) -> None:
    table = rules_of(rules)
    without = table.find(Client(address))
    with_one = [table.find(Client(address, Mac(f"02:00:00:00:00:{n:02x}"))) for n in range(8)]
    could = any(rule and rule.access is Access.BLOCKED for rule in with_one)
    is_blocked = without is not None and without.access is Access.BLOCKED
    assert table.may_block(address) == (could and not is_blocked)


@given(RULES, CLIENTS)
def test_a_client_known_by_a_rule_is_listed_with_that_rule(
    rules: list[tuple[Mac | Address | Network, Access, str]], client: Client
) -> None:
    table = rules_of(rules)
    known = list(table.known())
    lines = [int(rule.where.rpartition(":")[2]) for _, rule in known]
    assert lines == sorted(lines)
    assert all(rule.access is Access.KNOWN for _, rule in known)
    found = table.find(client)
    if found is not None and found.access is Access.KNOWN:
        listed = [subject for subject, rule in known if rule == found]
        assert any(subject == client.mac or holds(subject, client.address) for subject in listed)


@given(NETWORKS, st.lists(NETWORKS, max_size=8))
def test_a_table_knows_what_holds_all_of_a_network(network: Network, others: list[Network]) -> None:
    table: NetworkTable[Network] = NetworkTable()
    for other in others:
        assert table.setdefault(other, other) == other
    expected = {
        other
        for other in others
        if (
            isinstance(network, IPv4Network)
            and isinstance(other, IPv4Network)
            and network.subnet_of(other)
        )
        or (
            isinstance(network, IPv6Network)
            and isinstance(other, IPv6Network)
            and network.subnet_of(other)
        )
    }
    found = list(table.covering(network))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_without_rules_no_rule_matches() -> None:
    assert ClientRules().find(Client(ip_address("192.0.2.1"), Mac("02:00:00:00:00:07"))) is None
    assert ClientRules().covering(Mac("02:00:00:00:00:07")) is None


def test_a_rule_says_where_it_stands_across_files() -> None:
    rules = ClientRules()
    rules.section(Access.KNOWN, "lab.yaml")
    rules.add(Mac("02:00:00:00:00:01"), 4, "printer")
    rules.section(Access.KNOWN, "empty.csv")
    rules.section(Access.BLOCKED, "staff.csv")
    rules.add(ip_address("192.0.2.7"), 1)
    rules.section(Access.KNOWN, "lab.yaml")
    rules.add(IPv4Network("0.0.0.0/0"), 9)
    found = [
        rules.find(Client(ip_address("192.0.2.7"), Mac("02:00:00:00:00:01"))),
        rules.find(Client(ip_address("192.0.2.7"))),
        rules.find(Client(ip_address("192.0.2.8"))),
    ]
    assert [(rule.access, rule.where, rule.name) for rule in found if rule] == [
        (Access.KNOWN, "lab.yaml:4", "printer"),
        (Access.BLOCKED, "staff.csv:1", None),
        (Access.KNOWN, "lab.yaml:9", None),
    ]


RULED = [
    (Mac("02:00:00:00:00:01"), Access.KNOWN),
    (ip_network("192.0.2.0/24"), Access.KNOWN),
    (ip_network("192.0.2.7"), Access.KNOWN),  # idle: the network above has it
    (ip_network("192.0.2.0/24"), Access.BLOCKED),  # idle, too
    (Mac("02:00:00:00:00:02"), Access.BLOCKED),
    (ip_network("2001:db8::/48"), Access.BLOCKED),
    (ip_network("2001:db8::7"), Access.KNOWN),  # idle
    (ip_network("198.51.100.0/24"), Access.KNOWN),
    (ip_network("0.0.0.0/0"), Access.KNOWN),
    (Mac("02:00:00:00:00:01"), Access.BLOCKED),  # idle
]


def ruled() -> ClientRules:
    table = ClientRules()
    for line, (subject, access) in enumerate(RULED, 1):
        table.section(access, "lab.yaml")
        table.add(subject, line, f"name {line}" if line == 2 else None)
    return table


def test_each_rule_that_makes_known_and_is_not_idle_is_listed_in_order() -> None:
    assert list(ruled().known()) == [
        (Mac("02:00:00:00:00:01"), ClientRule(Access.KNOWN, "lab.yaml:1")),
        (ip_network("192.0.2.0/24"), ClientRule(Access.KNOWN, "lab.yaml:2", "name 2")),
        (ip_network("198.51.100.0/24"), ClientRule(Access.KNOWN, "lab.yaml:8")),
        (ip_network("0.0.0.0/0"), ClientRule(Access.KNOWN, "lab.yaml:9")),
    ]


def test_known_clients_are_listed_in_the_order_of_the_file() -> None:
    table = ClientRules()
    table.section(Access.KNOWN, "lab.yaml")
    subjects = [ip_network("192.0.2.7"), ip_network("2001:db8::/48"), Mac("02:00:00:00:00:01")]
    for line, subject in enumerate(subjects, 1):
        table.add(subject, line)
    assert [subject for subject, _ in table.known()] == subjects


def test_each_mac_and_network_is_listed_with_its_first_rule() -> None:
    assert list(ruled().subjects()) == [
        (Mac("02:00:00:00:00:01"), 0, Access.KNOWN),
        (Mac("02:00:00:00:00:02"), 4, Access.BLOCKED),
        (ip_network("192.0.2.0/24"), 1, Access.KNOWN),
        (ip_network("198.51.100.0/24"), 7, Access.KNOWN),
        (ip_network("192.0.2.7"), 2, Access.KNOWN),
        (ip_network("2001:db8::/48"), 5, Access.BLOCKED),
        (ip_network("2001:db8::7"), 6, Access.KNOWN),
        (ip_network("0.0.0.0/0"), 8, Access.KNOWN),
    ]
    assert len(ruled()) == len(RULED)


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        (Mac("02:00:00:00:00:01"), 1),
        (Mac("02:00:00:00:00:02"), 5),
        (Mac("02:00:00:00:00:03"), None),
        (ip_network("192.0.2.0/25"), 2),
        (ip_network("192.0.2.0/23"), 9),
        (ip_address("192.0.2.7"), 2),
        (ip_network("2001:db8::/48"), 6),
        (ip_network("2001:db8::/47"), None),
        (ip_address("2001:db8::7"), 6),
    ],
)
def test_what_a_rule_covers_is_covered_by_the_first(
    subject: Mac | Address | Network, line: int | None
) -> None:
    found = ruled().covering(subject)
    assert (found and found.where) == (line and f"lab.yaml:{line}")


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("192.0.2.7", False),  # its network's rule comes before any block by MAC
        ("198.51.100.7", True),
        ("2001:db8::7", False),  # it is blocked without a MAC
        ("2001:db9::7", True),  # no rule has it
    ],
)
def test_a_mac_that_is_not_known_may_block_where_no_rule_comes_first(
    address: str, may: bool
) -> None:
    assert ruled().may_block(ip_address(address)) is may
    assert not ClientRules().may_block(ip_address(address))


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ([("mac 1", "known"), ("mac 1", "blocked")], False),  # the second never decides
        ([("mac 1", "blocked"), ("net", "known"), ("mac 2", "blocked")], True),
        ([("net", "known"), ("mac 1", "blocked"), ("mac 2", "blocked")], False),
    ],
)
def test_the_first_rule_that_blocks_by_mac_counts(rules: list[tuple[str, str]], may: bool) -> None:
    subjects: dict[str, Mac | Network] = {
        "mac 1": Mac("02:00:00:00:00:01"),
        "mac 2": Mac("02:00:00:00:00:02"),
        "net": ip_network("192.0.2.0/24"),
    }
    table = ClientRules()
    for line, (subject, access) in enumerate(rules, 1):
        table.section(Access(access), "lab.yaml")
        table.add(subjects[subject], line)
    assert table.may_block(ip_address("192.0.2.7")) is may


NAMES = st.lists(st.sampled_from(["a", "b", "org", "xorg"]), min_size=1, max_size=4).map(".".join)
PORTS = st.frozensets(st.sampled_from([80, 443, 8080]), min_size=1)
GARDEN = st.lists(
    st.tuples(NAMES | NAMES.map("*.{}".format) | NETWORKS | ADDRESSES.map(ip_network), PORTS),
    max_size=10,
)


def holds_name(entry: str | Network, host: str) -> bool:
    if not isinstance(entry, str):
        return False
    return host.endswith(entry[1:]) if entry.startswith("*.") else host == entry


@settings(max_examples=500)
@given(GARDEN, NAMES | ADDRESSES, st.sampled_from([80, 443, 8080]))
def test_the_garden_holds_what_one_of_its_entries_holds(
    entries: list[tuple[str | Network, frozenset[int]]], host: str | Address, port: int
) -> None:
    garden = WalledGarden()
    for entry, ports in entries:
        line = GardenEntry(str(entry), ports, "lab.yaml:1")
        garden.add(entry, line)
    holding = {
        str(entry)
        for entry, ports in entries
        if port in ports
        and (holds_name(entry, host) if isinstance(host, str) else holds(_network(entry), host))
    }
    found = garden.find(host, port)
    assert (found is not None) == bool(holding)
    assert found is None or found.text in holding
    assert len(garden.entries) == len(entries)
    names = sorted(str(entry) for entry, _ in entries if isinstance(entry, str))
    assert sorted(name for name, _ in garden.names()) == names


def _network(entry: str | Network) -> Network | Mac:
    return Mac(entry) if isinstance(entry, str) else entry


@pytest.mark.parametrize("host", ["example.org", "notexample.org", "example.org.evil.example"])
def test_a_star_holds_only_what_is_below(host: str) -> None:
    garden = WalledGarden()
    garden.add("*.example.org", GardenEntry("*.example.org", frozenset({443}), "lab.yaml:1"))
    assert garden.find("a.example.org", 443) is not None
    assert garden.find("a.b.example.org", 443) is not None
    assert garden.find(host, 443) is None
    assert garden.find("a.example.org", 80) is None


def test_a_name_is_found_by_its_own_entries_and_by_those_of_its_parents() -> None:
    garden = WalledGarden()
    for name, port in (("a.b.example.org", 1), ("*.b.example.org", 2), ("*.example.org", 3)):
        garden.add(name, GardenEntry(name, frozenset({port}), "lab.yaml:1"))
    found = [garden.find("a.b.example.org", port) for port in (1, 2, 3, 4)]
    assert [entry and entry.text for entry in found] == [
        *("a.b.example.org", "*.b.example.org", "*.example.org", None)
    ]


def test_an_entry_for_more_than_one_host_is_not_exact() -> None:
    garden, web = WalledGarden(), frozenset({80})
    garden.add(ip_network("192.0.2.0/24"), GardenEntry("wide", web, "lab.yaml:1", True))
    garden.add(ip_network("192.0.2.1"), GardenEntry("one", web, "lab.yaml:2"))
    first, other = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    for exactly, expected in ((False, ["wide", "wide"]), (True, ["one", None])):
        found = [garden.find(host, 80, exactly=exactly) for host in (first, other)]
        assert [entry and entry.text for entry in found] == expected
    assert garden.find(other, 80) == garden.find(other, 80, exactly=False)


def test_the_garden_lists_its_names_and_networks_with_each_entry() -> None:
    garden = WalledGarden()
    first, second = (GardenEntry("it", frozenset({n}), f"lab.yaml:{n}") for n in (1, 2))
    for entry in (first, second):
        garden.add("www.example.net", entry)
        garden.add("*.example.org", entry)
        garden.add(ip_network("192.0.2.0/24"), entry)
        garden.add(ip_network("2001:db8::/48"), entry)
    names = ["www.example.net", "*.example.org"]
    assert list(garden.names()) == [(name, entry) for name in names for entry in (first, second)]
    networks = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/48")]
    assert list(garden.networks()) == [(it, entry) for it in networks for entry in (first, second)]
    assert garden.entries == [first] * 4 + [second] * 4
    for host in ("www.example.net", "a.example.org", ip_address("192.0.2.255")):
        assert [garden.find(host, port) for port in (1, 2, 3)] == [first, second, None]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (Access, "known blocked"),
        (UnknownTls, "refuse intercept drop"),
        (KnownTls, "tunnel inspect"),
        (Connect, "auto answer alert"),
        (KnownHttp, "stream inspect"),
        (Probes, "compatible strict"),
        (Conditions, "terms voucher password"),
    ],
)
def test_the_words_are_those_of_the_policy_file(words: type[StrEnum], values: str) -> None:
    assert " ".join(words) == values


def test_what_a_policy_file_leaves_out_has_the_default_that_the_readme_names() -> None:
    place = Place("login.example.net", 443)
    policy = Policy(login_url="https://login.example.net/", login_place=place)
    assert policy.refresh == 10
    assert policy.tls == Tls(UnknownTls.REFUSE, KnownTls.TUNNEL, Connect.AUTO)
    assert policy.sessions == Sessions(None, 28800.0, None, 20_000)
    assert policy.limits == Limits(None, None, None, frozenset())
    assert (policy.http_known, policy.probes) == (KnownHttp.STREAM, Probes.COMPATIBLE)
    assert LoginServer((place,)) == LoginServer((place,), None, None, Conditions.TERMS, None)
    assert {80, 443} == WEB_PORTS


def test_people_sign_in_at_login_url_and_at_the_embedded_server() -> None:
    there, here = Place("login.example.net", 443), Place(ip_address("192.0.2.1"), 8511)
    policy = Policy(login_url="https://login.example.net/", login_place=there)
    assert policy.login_places == (there,)
    both = Policy(
        login_url="https://login.example.net/", login_place=there, login_server=LoginServer((here,))
    )
    assert both.login_places == (there, here)


@pytest.mark.parametrize(("known", "count"), [(True, 5), (False, 3)])
def test_known_and_unknown_clients_have_rates_of_their_own(known: bool, count: int) -> None:
    limits = Limits(requests=Rate(5, 60.0), unknown_requests=Rate(3, 60.0))
    assert limits.requests_of(known=known) == Rate(count, 60.0)


V4_LOGIN = Login("http://192.0.2.1/", Place(ip_address("192.0.2.1"), 80))
V6_LOGIN = Login("http://[2001:db8::1]/", Place(ip_address("2001:db8::1"), 80))
NAMED = Login("https://login.example.net/", Place("login.example.net", 443))


def policy_with(
    first: Login, other: Login | None = None, server: LoginServer | None = None
) -> Policy:
    return Policy(
        login_url=first.url, login_place=first.place, other_login=other, login_server=server
    )


@pytest.mark.parametrize(
    ("first", "other", "address", "login"),
    [
        (V4_LOGIN, V6_LOGIN, "192.0.2.7", V4_LOGIN),
        (V4_LOGIN, V6_LOGIN, "2001:db8::7", V6_LOGIN),
        (V4_LOGIN, V6_LOGIN, None, V4_LOGIN),
        (V4_LOGIN, None, "2001:db8::7", V4_LOGIN),
        (NAMED, None, "2001:db8::7", NAMED),
    ],
)
def test_a_client_gets_the_link_of_its_own_family(
    first: Login, other: Login | None, address: str | None, login: Login
) -> None:
    policy = policy_with(first, other)
    assert policy.login_for(ip_address(address) if address else None) == login
    assert policy.logins == ((first, other) if other else (first,))


def test_a_place_is_the_login_servers_by_host_and_port() -> None:
    policy = policy_with(V4_LOGIN, V6_LOGIN, LoginServer((Place("login.example.net", 8511),)))
    assert policy.is_login(V4_LOGIN.place)
    assert policy.is_login(V6_LOGIN.place)
    assert policy.is_login(Place("login.example.net", 8511))
    for host, port in (("login.example.net", 80), ("192.0.2.1", 80), ("login.example.net", 9)):
        assert not policy.is_login(Place(host, port))


@pytest.mark.parametrize(
    ("url", "server", "token", "with_state"),
    [
        ("https://l.example/", True, "abc", "https://l.example/?state=abc"),
        ("https://l.example/?a=b", True, "abc", "https://l.example/?a=b&state=abc"),
        ("https://l.example/", True, None, "https://l.example/"),
        ("https://l.example/", False, "abc", "https://l.example/"),
        ("https://l.example/{state}", True, "abc", "https://l.example/abc"),
        ("https://l.example/{state}/", False, None, "https://l.example//"),
    ],
)
def test_the_state_goes_where_the_login_url_has_it(
    url: str, server: bool, token: str | None, with_state: str
) -> None:
    place = Place("l.example", 443)
    policy = policy_with(Login(url, place), None, LoginServer((place,)) if server else None)
    assert policy.login_url_with(token, None) == with_state


@pytest.mark.parametrize(
    ("first", "other", "lacks"),
    [(V4_LOGIN, None, 6), (V6_LOGIN, None, 4), (V4_LOGIN, V6_LOGIN, None), (NAMED, None, None)],
)
def test_which_family_has_no_login_address(
    first: Login, other: Login | None, lacks: int | None
) -> None:
    assert policy_with(first, other).login_lacks == lacks


def test_clients_are_at_the_routers_interface() -> None:
    assert policy_with(NAMED).client_interfaces is None
    assert replace(policy_with(NAMED), router=Router("lan", "wan")).client_interfaces == ("lan",)


def test_a_policy_is_written_as_what_it_is_made_of() -> None:
    shown = repr(policy_with(NAMED))
    assert "login_place=" in shown
    assert not any(f"{derived}=" in shown for derived in ("logins", "login_places", "_login_hosts"))
