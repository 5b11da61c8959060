from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import Client, ClientId, Mac, parse_address
from capport.core.decision import (
    RULES,
    Case,
    HttpRequest,
    decide,
    decide_connection,
    decide_tls,
    explain,
    probe_of,
    way_of_connect,
)
from capport.core.place import Place, parse_host
from capport.core.policy import (
    Access,
    ClientRule,
    Connect,
    GardenEntry,
    KnownTls,
    Limits,
    Login,
    LoginServer,
    Policy,
    Probes,
    Rate,
    Tls,
    UnknownTls,
    WalledGarden,
)
from capport.core.reach import Machine
from capport.core.reply import Asked, reply_to
from capport.core.session import Session
from capport.core.standing import RULES as STANDINGS
from capport.core.standing import Facts, Standing
from capport.core.verdict import (
    Closed,
    Drop,
    HeaderFieldsTooLarge,
    Inspect,
    Intercept,
    NetworkAuthenticationRequired,
    Pass,
    PreconditionRequired,
    Refuse,
    SignIn,
    TooManyRequests,
    Tunnel,
    asks_to_sign_in,
)

WEB = frozenset({80, 443})


def garden() -> WalledGarden:
    it = WalledGarden()
    it.add("www.example.org", GardenEntry("www.example.org", WEB, "lab.yaml:20"))
    it.add("*.example.org", GardenEntry("*.example.org", WEB, "lab.yaml:21", True))
    it.add("status.example.org", GardenEntry("…:8080", frozenset({8080}), "lab.yaml:22"))
    it.add(ip_network("192.0.2.53"), GardenEntry("192.0.2.53", WEB, "lab.yaml:23"))
    it.add(ip_network("2001:db8::/48"), GardenEntry("2001:db8::/48", WEB, "lab.yaml:24", True))
    return it


LOGIN = Place("login.example.net", 443)
POLICY = Policy(login_url="https://login.example.net/", login_place=LOGIN, walled_garden=garden())
OURS = Place(parse_address("192.0.2.1"), 8511)
CLIENT = Client(parse_address("198.51.100.7"), Mac("02:00:00:00:00:07"))
NOW = 1000.0
OPEN = Session(ClientId("02:00:00:00:00:07"), granted=900.0, expires=1060.0)
OVER = replace(OPEN, expires=1000.0)
KNOWN = ClientRule(Access.KNOWN, "lab.yaml:9", "printer")
BLOCKED = ClientRule(Access.BLOCKED, "lab.yaml:11")
GET = HttpRequest()


def stands(
    rule: ClientRule | None = None,
    session: Session | None = None,
    client: Client = CLIENT,
    now: float = NOW,
    *,
    lacks_mac: bool = False,
) -> Standing:
    """Whichever client rule decides, wherever it is in the policy."""
    facts = Facts(client, now, rule, session, lacks_mac)
    return next(found for ask in STANDINGS if (found := ask(facts, POLICY)))


def but(case: Case, **changes: Any) -> Case:
    """`case` with another client rule, session or lack of a MAC, or with other fields."""
    of_client = {name: changes.pop(name) for name in WHO & changes.keys()}
    if of_client:
        changes["standing"] = stands(**of_client)
    return replace(case, **changes)


WHO = {"client", "rule", "session", "lacks_mac"}
UNKNOWN = Case(stands(), claim=Place("elsewhere.example.com", 80), request=GET)
ADDRESS = parse_address("192.0.2.53")
ELSEWHERE = parse_address("203.0.113.9")


@pytest.mark.parametrize(
    ("verdict", "because", "changes"),
    [
        (NetworkAuthenticationRequired, "has no session", {}),
        (NetworkAuthenticationRequired, "its session is over", {"session": OVER}),
        (NetworkAuthenticationRequired, "has no session", {"claim": None}),
        (Pass, "is known for 60 s more", {"session": OPEN}),
        (Pass, "is known by lab.yaml:9", {"rule": KNOWN}),
        (NetworkAuthenticationRequired, "is blocked by lab.yaml:11", {"rule": BLOCKED}),
        # The policy's own word comes before any session.
        (NetworkAuthenticationRequired, "is blocked", {"rule": BLOCKED, "session": OPEN}),
        (Pass, "is the login server", {"claim": LOGIN}),
        (Pass, "is the login server", {"claim": LOGIN, "rule": BLOCKED}),
        (Pass, "in lab.yaml:20", {"claim": Place("www.example.org", 80)}),
        (Pass, "in lab.yaml:21", {"claim": Place("a.b.example.org", 443)}),
        (Pass, "in lab.yaml:20", {"claim": Place("www.example.org", 80), "rule": BLOCKED}),
        (Pass, "in lab.yaml:22", {"claim": Place("status.example.org", 8080)}),
        (Pass, "in lab.yaml:23", {"claim": Place(ADDRESS, 80)}),
        (Pass, "in lab.yaml:23", {"dialled": Place(ADDRESS, 80)}),
        # The name in the garden, and not the address that was dialled.
        (
            Pass,
            "in lab.yaml:20",
            {"claim": Place("www.example.org", 80), "dialled": Place(ELSEWHERE, 80)},
        ),
        (NetworkAuthenticationRequired, "no session", {"claim": Place("example.org", 80)}),
        (NetworkAuthenticationRequired, "no session", {"claim": Place("notexample.org", 80)}),
        (NetworkAuthenticationRequired, "no session", {"claim": Place("www.example.org", 81)}),
        (NetworkAuthenticationRequired, "no session", {"dialled": Place(ADDRESS, 22)}),
        # A client that means a garden's port dials it.
        (
            NetworkAuthenticationRequired,
            "no session",
            {"claim": Place("status.example.org", 8080), "dialled": Place(ELSEWHERE, 80)},
        ),
    ],
)
def test_decide(verdict: type, because: str, changes: dict[str, Any]) -> None:
    got = decide(but(UNKNOWN, **changes), POLICY)
    assert isinstance(got, verdict)
    assert because in got.because


def test_what_passes_by_the_address_it_dialled_goes_to_that_address() -> None:
    case = but(UNKNOWN, dialled=Place(ADDRESS, 80))
    assert decide(case, POLICY) == Pass(
        "192.0.2.53:80 is in the walled garden: '192.0.2.53' in lab.yaml:23", Place(ADDRESS, 80)
    )


@pytest.mark.parametrize("of", [lambda at: {"claim": at}, lambda at: {"dialled": at}])
def test_the_embedded_login_server_is_open_beside_another_in_login_url(
    of: Callable[[Place], dict[str, Any]],
) -> None:
    """A client that signs in elsewhere comes back to it, and asks its API."""
    case = but(UNKNOWN, **{"claim": None, **of(OURS)})
    assert isinstance(decide(case, POLICY), NetworkAuthenticationRequired)
    both = replace(POLICY, login_server=LoginServer((OURS,)))
    got = decide(case, both)
    assert isinstance(got, Pass)
    assert got.to == OURS
    assert isinstance(decide(but(case, **of(LOGIN)), both), Pass)
    other = but(case, **of(replace(OURS, port=8512)))
    assert isinstance(decide(other, both), NetworkAuthenticationRequired)


@pytest.mark.parametrize("path", ["/", "/generate_204"])
@pytest.mark.parametrize(
    ("client", "url"),
    [
        ("198.51.100.7", "http://192.0.2.1:8511/"),
        ("2001:db8:1::7", "http://[2001:db8:1::1]:8511/"),
    ],
)
def test_a_client_is_sent_to_a_login_address_of_its_own_family(
    client: str, url: str, path: str
) -> None:
    other = Login("http://[2001:db8:1::1]:8511/", Place(parse_address("2001:db8:1::1"), 8511))
    policy = replace(
        POLICY, login_url="http://192.0.2.1:8511/", login_place=OURS, other_login=other
    )
    case = but(PROBE, client=Client(parse_address(client)), request=HttpRequest(path=path))
    got = decide(case, policy)
    assert isinstance(got, SignIn if path == "/generate_204" else NetworkAuthenticationRequired)
    assert got.login_url == url
    for place in (OURS, other.place):
        assert isinstance(decide(but(case, claim=None, dialled=place), policy), Pass)


PROBE = replace(
    UNKNOWN,
    claim=Place("connectivitycheck.gstatic.com", 80),
    request=HttpRequest(path="/generate_204"),
    login_answers=True,
)


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [
        (SignIn, {}),
        (NetworkAuthenticationRequired, {"login_answers": False}),
        (NetworkAuthenticationRequired, {"request": HttpRequest(path="/generate_205")}),
        (NetworkAuthenticationRequired, {"request": HttpRequest("POST", path="/generate_204")}),
        (NetworkAuthenticationRequired, {"claim": Place("connectivitycheck.gstatic.com", 8080)}),
        (
            NetworkAuthenticationRequired,
            {"request": HttpRequest(scheme="https", path="/generate_204")},
        ),
        (NetworkAuthenticationRequired, {"rule": BLOCKED}),
        (Pass, {"session": OPEN}),
    ],
)
def test_a_connectivity_check_is_sent_to_sign_in(verdict: type, changes: dict[str, Any]) -> None:
    assert isinstance(decide(but(PROBE, **changes), POLICY), verdict)


CHECK_AT = Place("a.example.org", 80)
IN_NETWORK = Place(parse_address("2001:db8::9"), 80)


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [
        (SignIn, {"claim": CHECK_AT}),
        (SignIn, {"dialled": IN_NETWORK}),  # by an address in a wide network
        (NetworkAuthenticationRequired, {"claim": CHECK_AT, "login_answers": False}),
        (NetworkAuthenticationRequired, {"claim": CHECK_AT, "rule": BLOCKED}),
        (Pass, {"claim": Place("www.example.org", 80)}),  # by its own name
        (Pass, {"dialled": Place(ADDRESS, 80)}),
        (Pass, {"claim": CHECK_AT, "request": HttpRequest(path="/generate_204?a")}),
        (Pass, {"claim": Place("a.example.org", 443), "request": HttpRequest(scheme="https")}),
        (Pass, {"claim": CHECK_AT, "session": OPEN}),
    ],
)
def test_only_an_entry_for_one_host_lets_a_connectivity_check_through(
    verdict: type, changes: dict[str, Any]
) -> None:
    """A wide entry would hide the portal: no client would be asked to sign in."""
    assert isinstance(decide(but(PROBE, **changes), POLICY), verdict)


def test_a_check_that_reads_a_511_gets_it_in_a_wide_garden_too() -> None:
    it = WalledGarden()
    it.add("*.ubuntu.com", GardenEntry("*.ubuntu.com", WEB, "lab.yaml:20", True))
    policy = replace(POLICY, walled_garden=it)
    case = but(UNKNOWN, claim=Place("connectivity-check.ubuntu.com", 80), login_answers=True)
    assert isinstance(decide(case, policy), NetworkAuthenticationRequired)
    strict = replace(policy, probes=Probes.STRICT)
    assert isinstance(decide(case, strict), NetworkAuthenticationRequired)
    assert isinstance(decide(but(case, request=HttpRequest(path="/a")), policy), Pass)


def test_a_policy_names_the_paths_that_are_checks_at_whatever_host() -> None:
    case = but(PROBE, claim=Place("elsewhere.example.com", 80))
    assert isinstance(decide(case, POLICY), SignIn)
    for paths, verdict in (((), NetworkAuthenticationRequired), (("/generate_204",), SignIn)):
        assert isinstance(decide(case, replace(POLICY, probe_paths=paths)), verdict)
    own = but(case, request=HttpRequest(path="/check.txt"))
    assert isinstance(decide(own, POLICY), NetworkAuthenticationRequired)
    assert isinstance(decide(own, replace(POLICY, probe_paths=("/check.txt",))), SignIn)


def test_a_strict_policy_answers_connectivity_checks_511() -> None:
    strict = replace(POLICY, probes=Probes.STRICT)
    assert isinstance(decide(PROBE, strict), NetworkAuthenticationRequired)


def test_a_blocked_client_is_marked_so() -> None:
    got = decide(but(UNKNOWN, rule=BLOCKED), replace(POLICY, refresh=10))
    assert isinstance(got, NetworkAuthenticationRequired)
    assert (got.blocked, got.refresh) == (True, 10)
    other = decide(UNKNOWN, replace(POLICY, refresh=10))
    assert isinstance(other, NetworkAuthenticationRequired)
    assert (other.blocked, other.refresh) == (False, 10)


LIMITED = replace(
    POLICY,
    limits=Limits(
        requests=Rate(5, 60.0),
        unknown_requests=Rate(3, 60.0),
        header_field=100,
        header_section=1000,
        require_conditions=frozenset({"api.example.com"}),
    ),
)
PUT = HttpRequest("PUT", fields=(("host", 10),), section_size=10)
UPDATE = replace(PUT, fields=(("if-match", 9), ("if-none-match", 9), ("if-unmodified-since", 9)))


@pytest.mark.parametrize(
    ("verdict", "because", "changes"),
    [
        (
            HeaderFieldsTooLarge,
            "'cookie' has 101",
            {"request": HttpRequest(fields=(("cookie", 101),))},
        ),
        (HeaderFieldsTooLarge, "section has 1001", {"request": HttpRequest(section_size=1001)}),
        (Pass, "known", {"request": HttpRequest(fields=(("cookie", 100),), section_size=1000)}),
        (TooManyRequests, "more than 5 requests in 60 s", {"retry_after": 3}),
        (PreconditionRequired, "PUT to api.example.com", {"request": PUT}),
        (PreconditionRequired, "PATCH to", {"request": replace(PUT, method="PATCH")}),
        (PreconditionRequired, "DELETE to", {"request": replace(PUT, method="DELETE")}),
        (PreconditionRequired, "POST to", {"request": replace(PUT, method="POST")}),
        (PreconditionRequired, "PUT to", {"request": PUT, "session": None, "rule": KNOWN}),
        (PreconditionRequired, "PROPPATCH to", {"request": replace(PUT, method="PROPPATCH")}),
        (PreconditionRequired, "MOVE to", {"request": replace(PUT, method="MOVE")}),
        (PreconditionRequired, "COPY to", {"request": replace(PUT, method="COPY")}),
        # Only COPY and MOVE need a condition on the destination, and only they may use Overwrite.
        (PreconditionRequired, "COPY to", {"request": replace(UPDATE, method="COPY")}),
        (PreconditionRequired, "MOVE to", {"request": replace(UPDATE, method="MOVE")}),
        (PreconditionRequired, "PUT to", {"request": replace(PUT, may_overwrite=False)}),
        (NetworkAuthenticationRequired, "is blocked", {"request": PUT, "rule": BLOCKED}),
        (Pass, "known", {"request": replace(PUT, method="GET")}),
        (Pass, "known", {"request": None}),
        (Pass, "known", {"request": PUT, "claim": None}),
        (Pass, "known", {"request": replace(PUT, fields=(("if-match", 9),))}),
        (Pass, "known", {"request": replace(PUT, fields=(("if-none-match", 9),))}),
        (Pass, "known", {"request": replace(PUT, fields=(("if-unmodified-since", 9),))}),
        (Pass, "known", {"request": replace(PUT, fields=(("if", 9),))}),
        (Pass, "known", {"request": replace(UPDATE, method="PROPPATCH")}),
        (Pass, "known", {"request": replace(PUT, method="MOVE", fields=(("if", 9),))}),
        (Pass, "known", {"request": replace(PUT, method="COPY", fields=(("if", 9),))}),
        (Pass, "known", {"request": replace(PUT, method="MOVE", may_overwrite=False)}),
        (Pass, "known", {"request": replace(PUT, method="COPY", may_overwrite=False)}),
        (Pass, "known", {"request": replace(PUT, method="LOCK")}),
        (Pass, "known", {"request": replace(PUT, method="UNLOCK")}),
        (Pass, "known", {"request": replace(PUT, method="MKCOL")}),
        (Pass, "known", {"request": replace(PUT, method="PROPFIND")}),
        (Pass, "known", {"request": PUT, "claim": Place("www.example.org", 80)}),
        (NetworkAuthenticationRequired, "no session", {"request": PUT, "session": None}),
        (NetworkAuthenticationRequired, "session is over", {"request": PUT, "session": OVER}),
    ],
)
def test_limits(verdict: type, because: str, changes: dict[str, Any]) -> None:
    case = but(UNKNOWN, session=OPEN, claim=Place("api.example.com", 80), request=GET)
    got = decide(but(case, **changes), LIMITED)
    assert isinstance(got, verdict)
    assert because in got.because


@pytest.mark.parametrize(
    ("because", "changes"),
    [
        (
            "its field 'cookie' has 101 bytes; 100 are allowed",
            {"request": HttpRequest(fields=(("host", 9), ("cookie", 101)))},
        ),
        (
            "its header section has 1001 bytes; 1000 are allowed",
            {"request": HttpRequest(section_size=1001)},
        ),
        ("it has sent more than 5 requests in 60 s", {"retry_after": 3, "session": OPEN}),
        ("it has sent more than 3 requests in 60 s", {"retry_after": 3}),
        ("PUT to api.example.com has no precondition", {"request": PUT, "session": OPEN}),
        ("login.example.net:443 is the login server", {"claim": LOGIN}),
        ("198.51.100.7 (02:00:00:00:00:07) is known by lab.yaml:9", {"rule": KNOWN}),
        ("198.51.100.7 (02:00:00:00:00:07) is known for 60 s more", {"session": OPEN}),
        (
            "www.example.org:80 is in the walled garden: 'www.example.org' in lab.yaml:20",
            {"claim": Place("www.example.org", 80)},
        ),
        ("198.51.100.7 (02:00:00:00:00:07) is blocked by lab.yaml:11", {"rule": BLOCKED}),
        (
            "198.51.100.7 (02:00:00:00:00:07) has no session, and this is a connectivity check",
            {"claim": PROBE.claim, "request": PROBE.request, "login_answers": True},
        ),
        (
            "198.51.100.7 (02:00:00:00:00:07) has a MAC that is not known now, "
            "and a rule may block it by that MAC",
            {"lacks_mac": True},
        ),
        (
            "198.51.100.7 (02:00:00:00:00:07) has a session, and its session is over",
            {"session": OVER},
        ),
        ("198.51.100.7 (02:00:00:00:00:07) has no session", {}),
    ],
)
def test_each_rule_says_why_in_a_sentence(because: str, changes: dict[str, Any]) -> None:
    case = but(UNKNOWN, claim=Place("api.example.com", 80))
    assert decide(but(case, **changes), LIMITED).because == because


LARGE = (("cookie", 101),)
PLACES = {
    "login": LOGIN,
    "conditional": Place("api.example.com", 80),
    "garden": Place("www.example.org", 80),
    "check": PROBE.claim,
    "elsewhere": Place("www.example.com", 80),
}


@pytest.mark.parametrize("who", ["known", "unknown", "blocked"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_the_order_of_the_answers_holds_for_every_combination(
    who: str, place: str, method: str, *, fast: bool, large: bool
) -> None:
    """431 before 429, 429 before 428 and 511; and only what may sign in is asked to."""
    path = "/generate_204" if place == "check" else "/"
    request = HttpRequest(method, "http", path, LARGE if large else ())
    case = but(
        replace(UNKNOWN, claim=PLACES[place], request=request, login_answers=True),
        session=OPEN if who == "known" else None,
        rule=BLOCKED if who == "blocked" else None,
    )
    got = decide(replace(case, retry_after=3 if fast else None), LIMITED)
    if large:
        want: type = HeaderFieldsTooLarge
    elif place == "login":
        want = Pass
    elif fast:
        want = TooManyRequests
    elif who == "known":
        update = place == "conditional" and method == "PUT"
        want = PreconditionRequired if update else Pass
    elif place == "garden":
        want = Pass
    elif who == "blocked" or place != "check" or method != "GET":
        want = NetworkAuthenticationRequired
    else:
        want = SignIn
    assert isinstance(got, want)
    assert getattr(got, "blocked", False) == (
        who == "blocked" and want is NetworkAuthenticationRequired
    )
    assert asks_to_sign_in(got) == (want in (NetworkAuthenticationRequired, SignIn))
    if not isinstance(got, Pass | Closed):
        page = reply_to(got, Asked()).body.decode()
        assert (LIMITED.login_url in page) == asks_to_sign_in(got)
        assert ("Sign in" in page) == (asks_to_sign_in(got) and who != "blocked")


def test_what_a_reply_needs_is_in_its_verdict() -> None:
    known = but(UNKNOWN, session=OPEN, claim=Place("api.example.com", 80))
    field = but(known, request=HttpRequest(fields=(("cookie", 101),)))
    assert getattr(decide(field, LIMITED), "field", None) == "cookie"
    section = but(known, request=HttpRequest(section_size=1001))
    assert getattr(decide(section, LIMITED), "field", "") is None
    slow = decide(but(known, retry_after=3), LIMITED)
    assert isinstance(slow, TooManyRequests)
    assert (slow.retry_after, slow.limit) == (3, Rate(5, 60.0))
    update = decide(but(known, request=PUT), LIMITED)
    assert isinstance(update, PreconditionRequired)
    assert update.method == "PUT"
    named = replace(POLICY, refresh=7, network="Lab Wi-Fi")
    required = decide(UNKNOWN, named)
    assert isinstance(required, NetworkAuthenticationRequired)
    assert (required.login_url, required.refresh, required.network) == (
        *("https://login.example.net/", 7, "Lab Wi-Fi"),
    )
    sign_in = decide(PROBE, POLICY)
    assert isinstance(sign_in, SignIn)
    assert (sign_in.login_url, sign_in.body) == ("https://login.example.net/", True)
    assert SignIn("it is a check", "https://login.example.net/").body is True
    connman = replace(
        PROBE,
        claim=Place("ipv4.connman.net", 80),
        request=HttpRequest(path="/online/status.html"),
    )
    assert getattr(decide(connman, POLICY), "body", None) is False


def test_what_is_not_said_of_a_case_or_a_request_is_nothing() -> None:
    assert HttpRequest() == HttpRequest("GET", "http", "/", (), 0)
    assert (
        NetworkAuthenticationRequired(
            "it is unknown", "https://login.example.net/", 10, None, False
        )
        == SIGN_IN
    )
    assert Case(stands()) == Case(
        stands(),
        None,
        None,
        None,
        None,
        login_answers=False,
        address=None,
        among_clients=False,
        machine=Machine(),
        logins=None,
    )


@pytest.mark.parametrize(
    ("because", "changes"),
    [
        (
            "203.0.113.9:22 is this machine's own, which is closed to every client",
            {"session": OPEN},
        ),
        ("203.0.113.9:8080 is the proxy itself, which would loop", {"session": OPEN, "port": 8080}),
        (
            "224.0.0.1:22 is a multicast, link-local or broadcast address",
            {"session": OPEN, "host": "224.0.0.1"},
        ),
        ("127.0.0.1:22 is this machine's own", {"session": OPEN, "host": "127.0.0.1"}),
        # A name is asked about once it has an address.
        (None, {"session": OPEN, "host": "www.example.com"}),
        ("www.example.com:22 is this", {"session": OPEN, "host": "www.example.com", "at": True}),
        ("www.example.org:80 is this", {"host": "www.example.org", "port": 80, "at": True}),
        (
            "www.example.org:80 is closed to 198.51.100.7 (02:00:00:00:00:07): 198.51.100.66 is"
            " among the clients",
            {"host": "www.example.org", "of": True},
        ),
        (None, {"session": OPEN, "host": "www.example.org", "of": True}),
        # What the policy lists is open; a client that may not go there gets the reason.
        (None, {"host": "192.0.2.53", "port": 80}),
        (None, {}),
        (None, {"host": "224.0.0.1"}),
        (None, {"session": OPEN, "client": "203.0.113.9"}),
        ("login.example.net:8080 is the proxy", {"host": "login.example.net", "port": 8080}),
    ],
)
def test_nobody_reaches_what_is_closed(because: str | None, changes: dict[str, Any]) -> None:
    listed = parse_address("192.0.2.53")
    machine = Machine(frozenset({ELSEWHERE, listed}), frozenset({8080}))
    host = parse_host(changes.pop("host", "203.0.113.9"))
    elsewhere = changes.pop("of", False)
    place = Place(host, changes.pop("port", 80 if elsewhere else 22))
    address = ELSEWHERE if changes.pop("at", host == "login.example.net") else None
    if elsewhere:
        address = parse_address("198.51.100.66")
    if "client" in changes:
        changes["client"] = Client(parse_address(changes["client"]))
    case = Case(
        stands(**changes), dialled=place, address=address, among_clients=elsewhere, machine=machine
    )
    login = replace(POLICY, login_place=Place("login.example.net", 8080))
    got = decide(case, login)
    assert isinstance(got, Closed) == (because is not None)
    if because:
        assert got.because.startswith(because)
    name, _ = explain(case, login)[-1]
    assert (name == "closed_place") == isinstance(got, Closed)


def test_a_name_that_the_client_claims_opens_nothing_that_is_closed() -> None:
    own = Place(parse_address("127.0.0.1"), 22)
    case = Case(stands(session=OPEN), claim=Place("www.example.com", 22), dialled=own)
    assert isinstance(decide(case, POLICY), Closed)


def test_a_login_server_that_leads_to_the_proxy_is_closed() -> None:
    case = Case(stands(), claim=LOGIN, address=ELSEWHERE, machine=Machine(frozenset({ELSEWHERE})))
    assert isinstance(decide(case, POLICY), Pass)  # it may be a service of this machine
    proxy = Machine(frozenset({ELSEWHERE}), frozenset({LOGIN.port}))
    assert isinstance(decide(replace(case, machine=proxy), POLICY), Closed)


def test_a_name_may_lead_to_an_address_among_the_clients_that_the_garden_has() -> None:
    named = Case(stands(), claim=Place("www.example.org", 80), among_clients=True)
    assert isinstance(decide(replace(named, address=ADDRESS), POLICY), Pass)
    assert isinstance(decide(replace(named, address=ELSEWHERE), POLICY), Closed)


def test_a_handshake_with_what_is_closed_is_refused_if_the_client_is_unknown() -> None:
    case = Case(
        stands(), claim=Place("www.example.org", 443), address=ELSEWHERE, among_clients=True
    )
    got = decide_tls(case, replace(POLICY, tls=Tls(known=KnownTls.INSPECT)))
    assert isinstance(got, Refuse)
    assert "is closed to" in got.because


@pytest.mark.parametrize(("known", "tls"), [(KnownTls.TUNNEL, Refuse), (KnownTls.INSPECT, Inspect)])
def test_a_handshake_with_what_is_closed_is_refused_or_answered_inside(
    known: KnownTls, tls: type
) -> None:
    case = Case(stands(session=OPEN), dialled=Place(parse_address("127.0.0.1"), 443))
    got = decide_tls(case, replace(POLICY, tls=Tls(known=known)))
    assert isinstance(got, tls)
    assert "this machine's own" in got.because


def test_the_login_server_is_for_so_many_connections_of_one_client() -> None:
    for who in (stands(), stands(session=OPEN), stands(rule=BLOCKED)):
        full = Case(who, claim=LOGIN, logins=32)
        got = decide(full, POLICY)
        assert isinstance(got, TooManyRequests)
        assert (got.retry_after, got.limit) == (5, None)
        said = "198.51.100.7 (02:00:00:00:00:07) has 32 connections to the login server open"
        assert got.because == said
        intercepts = replace(POLICY, tls=Tls(unknown=UnknownTls.INTERCEPT))
        assert decide_tls(full, POLICY) == decide_tls(full, intercepts) == Refuse(said)
        inspects = replace(POLICY, tls=Tls(known=KnownTls.INSPECT))
        assert decide_tls(full, inspects) == Refuse(said)
        assert isinstance(decide(replace(full, logins=None), POLICY), Pass)
        elsewhere = replace(full, claim=Place("www.example.org", 80))
        assert isinstance(decide(elsewhere, POLICY), Pass)


def test_a_client_sent_to_the_login_server_by_name_may_have_dialled_our_own_address() -> None:
    own = Place(parse_address("127.0.0.1"), 443)
    for who in (stands(), stands(session=OPEN)):
        got = decide(Case(who, claim=LOGIN, dialled=own), POLICY)
        assert isinstance(got, Pass)
        assert got.to == LOGIN


@pytest.mark.parametrize(
    ("verdict", "tls", "changes"),
    [
        (Refuse, Tls(), {}),
        (Intercept, Tls(unknown=UnknownTls.INTERCEPT), {}),
        (Drop, Tls(unknown=UnknownTls.DROP), {}),
        (Tunnel, Tls(), {"session": OPEN}),
        (Inspect, Tls(known=KnownTls.INSPECT), {"session": OPEN}),
        (Refuse, Tls(known=KnownTls.INSPECT), {}),
        (Tunnel, Tls(known=KnownTls.INSPECT), {"claim": Place("www.example.org", 443)}),
        (Refuse, Tls(), {"claim": Place("www.example.org", 444)}),
    ],
)
def test_decide_tls(verdict: type, tls: Tls, changes: dict[str, Any]) -> None:
    assert isinstance(decide_tls(but(UNKNOWN, **changes), replace(POLICY, tls=tls)), verdict)


def test_the_gardens_tls_is_sent_to_the_name_and_not_where_it_dialled() -> None:
    case = but(UNKNOWN, claim=Place("www.example.org", 443), dialled=Place(ELSEWHERE, 443))
    assert decide_tls(case, POLICY) == Tunnel(
        "www.example.org:443 is in the walled garden: 'www.example.org' in lab.yaml:20",
        Place("www.example.org", 443),
    )


def test_a_connection_is_not_held_to_the_limits_of_requests() -> None:
    request = HttpRequest(section_size=1001)
    case = but(UNKNOWN, session=OPEN, retry_after=3, request=request)
    for asked in (case, replace(case, request=None), replace(case, retry_after=None)):
        assert isinstance(decide_connection(asked, LIMITED), Pass)


SIGN_IN = NetworkAuthenticationRequired("it is unknown", "https://login.example.net/", 10)
TOO_MANY = TooManyRequests("it asks too often", 3)


@pytest.mark.parametrize(
    ("way", "verdict", "connect", "user_agent", "port"),
    [
        (Connect.ANSWER, SIGN_IN, Connect.AUTO, "curl/8.5", 443),
        (Connect.ALERT, SIGN_IN, Connect.AUTO, "Mozilla/5.0 (X11)", 443),
        (Connect.ALERT, SIGN_IN, Connect.AUTO, "curl/8.5", 80),
        (Connect.ANSWER, SIGN_IN, Connect.ANSWER, "Mozilla/5.0 (X11)", 443),
        (Connect.ALERT, SIGN_IN, Connect.ALERT, "curl/8.5", 443),
        (Connect.ANSWER, TOO_MANY, Connect.ALERT, "Mozilla/5.0 (X11)", 80),
        (Connect.ANSWER, TOO_MANY, Connect.AUTO, "Mozilla/5.0 (X11)", 80),
    ],
)
def test_how_a_connect_is_refused(
    way: Connect, verdict: Any, connect: Connect, user_agent: str, port: int
) -> None:
    policy = replace(POLICY, tls=Tls(connect=connect))
    assert way_of_connect(verdict, policy, user_agent, port) is way


def test_a_request_has_the_size_of_each_field_and_of_all() -> None:
    fields = [(b"Host", b"h.example"), (b"X-\xe9", b"1")]
    assert HttpRequest.with_fields("PUT", "https", "/a", fields, 2) == HttpRequest(
        "PUT", "https", "/a", (("host", 13), ("x-é", 4)), 2 + 13 + 4 + 4 + 4
    )


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ([], True),
        ([(b"Overwrite", b"T")], True),
        ([(b"OVERWRITE", b"F")], False),
        ([(b"Other", b"F")], True),
        ([(b"Other", b"T"), (b"overwrite", b"F")], False),
        ([(b"Overwrite", b"F"), (b"Overwrite", b"F")], True),
    ],
)
def test_rfc4918_10_6_one_overwrite_field_says_whether_it_may(
    fields: list[tuple[bytes, bytes]], may: bool
) -> None:
    assert HttpRequest.with_fields("COPY", "http", "/", fields, 1).may_overwrite is may


def test_a_request_that_names_no_place_is_no_connectivity_check() -> None:
    assert probe_of(GET, None, POLICY) is None


def test_a_session_is_not_a_rule_of_the_policy() -> None:
    assert explain(but(UNKNOWN, session=OPEN), POLICY)[-1][0] == "open_session"
    assert explain(but(UNKNOWN, rule=KNOWN), POLICY)[-1][0] == "known_by_rule"


# --- laws ----------------------------------------------------------------------------------------

hosts = st.one_of(
    st.sampled_from(["example.org", "www.example.org", "a.example.org", "login.example.net"]),
    st.sampled_from(["connectivitycheck.gstatic.com", "captive.apple.com"]),
    st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){0,3}", fullmatch=True),
    st.ip_addresses(),
)
places = st.builds(Place, hosts, st.sampled_from([22, 80, 443, 8080]) | st.integers(1, 65535))
requests = st.builds(
    HttpRequest,
    st.sampled_from(["GET", "HEAD", "POST", "CONNECT", "OPTIONS", "X"]) | st.text(max_size=9),
    st.sampled_from(["http", "https"]),
    st.sampled_from(["/", "*", "/generate_204"]) | st.text(max_size=20),
    st.lists(st.tuples(st.text(max_size=9), st.integers(0, 200))).map(tuple),
    st.integers(0, 2000),
)
unknown_cases = st.builds(
    Case,
    standing=st.builds(
        stands,
        client=st.builds(Client, st.ip_addresses(), st.just(Mac("02:00:00:00:00:07")) | st.none()),
        now=st.floats(1000, 2000),
        rule=st.none() | st.just(BLOCKED),
        session=st.none() | st.just(OVER),
    ),
    claim=st.none() | places,
    dialled=st.none() | places,
    request=st.none() | requests,
    retry_after=st.none() | st.integers(1, 60),
    login_answers=st.booleans(),
)
policies = st.sampled_from([POLICY, LIMITED, replace(POLICY, probes=Probes.STRICT)])


def is_open_to_all(place: Place | None) -> bool:
    """The garden above, worked out by hand and not as the core does it."""
    if place is None:
        return False
    if place == LOGIN:
        return True
    if not isinstance(place.host, str):
        here = ip_network("192.0.2.53"), ip_network("2001:db8::/48")
        return place.port in WEB and any(place.host in network for network in here)
    if place == Place("status.example.org", 8080):
        return True
    return place.port in WEB and place.host.endswith(".example.org")


@given(unknown_cases, policies)
def test_nothing_passes_for_an_unknown_client_but_to_the_garden(case: Case, policy: Policy) -> None:
    verdict = decide(case, policy)
    if isinstance(verdict, Pass):
        assert verdict.to is not None
        assert is_open_to_all(verdict.to)
        assert verdict.to in (case.claim, case.dialled)
    tls = decide_tls(case, policy)
    assert isinstance(tls, Refuse) or (isinstance(tls, Tunnel) and is_open_to_all(tls.to))


@given(unknown_cases, policies)
def test_explain_is_the_same_walk_as_decide(case: Case, policy: Policy) -> None:
    steps = explain(case, policy)
    assert steps[-1][1] == decide(case, policy)
    assert all(verdict is None for _, verdict in steps[:-1])
    assert [name for name, _ in steps] == [rule.__name__ for rule in RULES[: len(steps)]]


@given(unknown_cases, policies)
def test_every_verdict_says_why(case: Case, policy: Policy) -> None:
    assert decide(case, policy).because
