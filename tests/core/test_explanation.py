"""What `explain` says of a URL, rule by rule."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from capport.core.client import Client, ClientId, Mac
from capport.core.decision import Case, HttpRequest
from capport.core.explanation import Explanation, Url, document, explain, in_words, parse_url
from capport.core.place import Place
from capport.core.policy import (
    Access,
    ClientRules,
    Connect,
    GardenEntry,
    KnownTls,
    Limits,
    Policy,
    Rate,
    Tls,
    UnknownTls,
    WalledGarden,
)
from capport.core.reach import Machine
from capport.core.session import Session
from capport.core.standing import standing

CLIENT = Client(ip_address("198.51.100.7"), Mac("02:00:00:00:00:07"))
OPEN = Session(ClientId("02:00:00:00:00:07"), granted=900.0, expires=1060.0)
OVER = replace(OPEN, expires=1000.0)
OWN = ip_address("192.0.2.1")
HTTP, HTTPS = "http://www.example.com/", "https://www.example.com/"
GARDEN = "http://www.example.org/"
PROBE = "http://connectivitycheck.gstatic.com/generate_204"


def policy(rule: Access | None = None, **changes: Any) -> Policy:
    clients, garden = ClientRules(), WalledGarden()
    if rule:
        clients.section(rule, "lab.yaml")
        clients.add(ip_network("198.51.100.0/24"), 9)
    web = GardenEntry("www.example.org", frozenset({80, 443}), "lab.yaml:20")
    garden.add("www.example.org", web)
    place = Place("login.example.net", 443)
    return Policy(
        login_url="https://login.example.net/",
        login_place=place,
        clients=clients,
        walled_garden=garden,
        **changes,
    )


def case(
    it: Policy, url: str, session: Session | None, method: str = "GET", *, lacks_mac: bool = False
) -> Case:
    asked, who = parse_url(url), standing(CLIENT, it, session, 1000.0, lacks_mac=lacks_mac)
    request = HttpRequest(method, asked.scheme, asked.path)
    return Case(who, asked.place, request=request, login_answers=True)


def found(
    url: str, session: Session | None = None, method: str = "GET", **changes: Any
) -> tuple[Explanation, Policy]:
    lacks_mac = changes.pop("lacks_mac", False)
    closed = changes.pop("closed", False)
    it = policy(**changes)
    asked = case(it, url, session, method, lacks_mac=lacks_mac)
    if closed:
        asked = replace(asked, address=OWN, machine=Machine(frozenset({OWN})))
    return explain(asked, it, url), it


UPDATES = Limits(require_conditions=frozenset({"www.example.com"}))
AUTO = "; through an explicit proxy: 511 to the CONNECT, but for browsers the same"
REFUSED = "no status: the TLS alert access_denied (49), before any certificate"


@pytest.mark.parametrize(
    ("asked", "given", "rule", "keys", "status", "seen"),
    [
        (HTTP, {}, "unknown_client", (), 511, "511"),
        (HTTP, {"session": OVER}, "unknown_client", (), 511, "511"),
        (HTTP, {"session": OPEN}, "open_session", (), None, "the origin's own"),
        (HTTP, {"rule": Access.KNOWN}, "known_by_rule", (), None, "the origin's own"),
        (HTTP, {"rule": Access.BLOCKED, "session": OPEN}, "blocked_client", (), 511, "511"),
        (HTTP, {"session": OPEN, "lacks_mac": True}, "unknown_client", (), 511, "511"),
        (GARDEN, {}, "walled_garden", (), None, "the origin's own"),
        (
            "https://login.example.net/",
            {},
            *("login_server", ("login_url", "login_server"), None, "the origin's own"),
        ),
        (
            PROBE,
            {},
            *("connectivity_check", ("probes", "probe_paths")),
            *(302, "302; 511 while the login server does not answer"),
        ),
        (
            HTTP,
            {"session": OPEN, "method": "PUT", "limits": UPDATES},
            *("precondition_required", ("limits.require_conditions",), 428, "428"),
        ),
        (HTTPS, {}, "unknown_client", ("tls.unknown",), None, REFUSED + AUTO),
        (
            HTTPS,
            {"tls": Tls(connect=Connect.ANSWER)},
            *("unknown_client", ("tls.unknown",), None),
            REFUSED + "; through an explicit proxy: 511 to the CONNECT",
        ),
        (
            HTTPS,
            {"tls": Tls(UnknownTls.DROP, connect=Connect.ALERT)},
            *("unknown_client", ("tls.unknown",), None),
            "no status: the connection is reset"
            "; through an explicit proxy: the same, inside the tunnel",
        ),
        (
            HTTPS,
            {"tls": Tls(UnknownTls.INTERCEPT)},
            *("unknown_client", ("tls.unknown",), 511),
            "511 inside TLS, if the user accepts a certificate error" + AUTO,
        ),
        (HTTPS, {"session": OPEN}, "open_session", (), None, "the origin's own"),
        (
            HTTPS,
            {"session": OPEN, "tls": Tls(known=KnownTls.INSPECT)},
            *("open_session", ("tls.known",), None),
            "the origin's, with mitmproxy's certificate",
        ),
        (
            HTTPS,
            {
                "session": OPEN,
                "method": "PUT",
                "limits": UPDATES,
                "tls": Tls(known=KnownTls.INSPECT),
            },
            *("open_session", ("tls.known",), 428),
            "428, with mitmproxy's certificate",
        ),
        # The router's own addresses are closed to clients that pass, and to no others.
        (
            HTTP,
            {"session": OPEN, "closed": True},
            *("closed_place", (), 502),
            "502: www.example.com:80 is this machine's own, which is closed to every client",
        ),
        (HTTP, {"closed": True}, "unknown_client", (), 511, "511"),
        (
            HTTPS,
            {"session": OPEN, "closed": True},
            *("closed_place", (), None),
            "no status: www.example.com:443 is this machine's own, which is closed to every client",
        ),
        (HTTPS, {"closed": True}, "unknown_client", ("tls.unknown",), None, REFUSED + AUTO),
        (
            HTTPS,
            {"session": OPEN, "closed": True, "tls": Tls(known=KnownTls.INSPECT)},
            *("closed_place", ("tls.known",), 502),
            "502: www.example.com:443 is this machine's own, which is closed to every client",
        ),
        (
            HTTPS,
            {
                "session": OPEN,
                "closed": True,
                "method": "PUT",
                "limits": UPDATES,
                "tls": Tls(known=KnownTls.INSPECT),
            },
            *("closed_place", ("tls.known",), 428),
            "428, with mitmproxy's certificate",
        ),
    ],
)
def test_what_a_client_would_get_and_by_which_rule(
    asked: str,
    given: dict[str, Any],
    rule: str,
    keys: tuple[str, ...],
    status: int | None,
    seen: str,
) -> None:
    said, it = found(asked, **given)
    assert (said.rule, said.keys, said.status) == (rule, keys, status)
    assert in_words(said, it) == seen


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        (Limits(header_section=-1), ("limits.header_field", "limits.header_section")),
        (Limits(requests=None), ()),
    ],
)
def test_a_limit_is_named_by_its_keys(limits: Limits, key: tuple[str, ...]) -> None:
    assert found(HTTP, limits=limits)[0].keys == key


@pytest.mark.parametrize(
    ("asked", "given", "where"),
    [
        (HTTP, {}, None),
        (HTTP, {"rule": Access.KNOWN}, "lab.yaml:9"),
        (HTTP, {"rule": Access.BLOCKED}, "lab.yaml:9"),
        (GARDEN, {}, "lab.yaml:20"),
        (GARDEN, {"rule": Access.BLOCKED}, "lab.yaml:20"),
        (HTTP, {"rule": Access.KNOWN, "lacks_mac": True}, None),
        (HTTP, {"session": OPEN}, None),
        ("https://login.example.net/", {"rule": Access.KNOWN}, None),
    ],
)
def test_where_it_stands_is_the_line_that_decided(
    asked: str, given: dict[str, Any], where: str | None
) -> None:
    assert found(asked, **given)[0].where == where


@pytest.mark.parametrize(
    ("path", "dialled", "where"),
    [
        ("/", None, "lab.yaml:1"),
        ("/generate_204", None, "lab.yaml:2"),  # a wide entry does not cover connectivity checks
        ("/", Place(ip_address("192.0.2.9"), 80), "lab.yaml:3"),
    ],
)
def test_where_it_stands_is_the_garden_entry_that_decided(
    path: str, dialled: Place | None, where: str
) -> None:
    it, web = policy(), frozenset({80, 443})
    for line, network in enumerate(("10.0.0.0/8", "10.0.0.1/32", "192.0.2.9/32"), 1):
        wide = network.endswith("/8")
        entry = GardenEntry(network, web, f"lab.yaml:{line}", wide=wide)
        it.walled_garden.add(ip_network(network), entry)
    url = f"http://{'www.example.com' if dialled else '10.0.0.1'}{path}"
    said = explain(replace(case(it, url, None), dialled=dialled), it, url)
    assert (said.rule, said.where) == ("walled_garden", where)
    assert where in said.verdict.because


@pytest.mark.parametrize(
    ("given", "session"),
    [
        ({}, OPEN),
        ({"rule": Access.KNOWN}, None),
        ({"rule": Access.BLOCKED}, None),
        ({"lacks_mac": True}, None),
    ],
)
def test_a_session_is_named_where_it_counts(given: dict[str, Any], session: Session | None) -> None:
    assert found(HTTP, OPEN, **given)[0].standing.session == session


def test_a_mac_that_is_lacking_is_why() -> None:
    said, _ = found(HTTP, OPEN, rule=Access.KNOWN, lacks_mac=True)
    assert "has a MAC that is not known now" in said.verdict.because


@pytest.mark.parametrize(
    ("session", "key"), [(None, "limits.unknown_requests"), (OPEN, "limits.requests")]
)
def test_the_rate_that_a_client_is_held_to_is_named(session: Session | None, key: str) -> None:
    rates = Limits(requests=Rate(5, 60.0), unknown_requests=Rate(3, 60.0))
    it = policy(limits=rates)
    said = explain(replace(case(it, HTTP, session), retry_after=3), it, HTTP)
    assert (said.rule, said.keys) == ("too_many_requests", (key,))


@pytest.mark.parametrize(
    ("session", "tls", "rule", "status", "seen"),
    [
        (None, Tls(), "unknown_client", None, REFUSED),
        (OPEN, Tls(), "open_session", None, "the origin's own"),
        (
            OPEN,
            Tls(known=KnownTls.INSPECT),
            *("open_session", 429, "429, with mitmproxy's certificate"),
        ),
    ],
)
def test_a_rate_holds_for_a_connect_and_inside_tls_and_not_for_a_connection(
    session: Session | None, tls: Tls, rule: str, status: int | None, seen: str
) -> None:
    rates = Limits(requests=Rate(5, 60.0), unknown_requests=Rate(3, 60.0))
    it = policy(limits=rates, tls=tls)
    said = explain(replace(case(it, HTTPS, session), retry_after=3), it, HTTPS)
    assert (said.rule, said.status) == (rule, status)
    assert in_words(said, it) == f"{seen}; through an explicit proxy: 429 to the CONNECT"


def test_a_case_without_a_request_is_one_of_get() -> None:
    it = policy()
    said = explain(replace(case(it, HTTP, None), request=None), it, HTTP)
    assert (said.method, said.tls) == ("GET", None)


def test_no_place_counts_as_closed_by_default() -> None:
    said = explain(case(policy(), HTTP, OPEN), policy(), HTTP)
    assert (said.rule, said.is_closed) == ("open_session", False)


def test_the_document_has_each_rule_that_was_asked_and_what_it_said() -> None:
    said, it = found(
        HTTPS, OPEN, "PUT", limits=UPDATES, tls=Tls(known=KnownTls.INSPECT), closed=False
    )
    known = "198.51.100.7 (02:00:00:00:00:07) is known for 60 s more"
    passed = [
        {"rule": rule, "verdict": None, "because": None}
        for rule in (
            *("header_fields_too_large", "too_many_requests", "precondition_required"),
            *("closed_place", "too_many_logins", "login_server", "known_by_rule"),
        )
    ]
    update = "PUT to www.example.com has no precondition"
    assert document(said, it) == {
        "client": "198.51.100.7",
        "mac": "02:00:00:00:00:07",
        "url": HTTPS,
        "method": "PUT",
        "session": "02:00:00:00:00:07",
        "verdict": "Pass",
        "because": known,
        "tls": "Inspect",
        "closed": False,
        "status": 428,
        "seen": "428, with mitmproxy's certificate",
        "rules": [*passed, {"rule": "open_session", "verdict": "Pass", "because": known}],
        "inside": [
            *passed[:2],
            {
                "rule": "precondition_required",
                "verdict": "PreconditionRequired",
                "because": update,
            },
        ],
    }


def test_the_document_says_null_for_what_is_not_there() -> None:
    said, it = found(HTTP, closed=True)
    whole = document(said, it)
    assert [key for key, value in whole.items() if value is None] == ["session", "tls"]
    assert whole["inside"] == []
    assert whole["closed"] is False
    open_one, it = found(HTTP, OPEN, closed=True)
    assert document(open_one, it)["closed"] is True


@pytest.mark.parametrize(
    ("text", "scheme", "place", "path"),
    [
        ("http://www.example.org", "http", Place("www.example.org", 80), "/"),
        ("HTTPS://www.example.org/", "https", Place("www.example.org", 443), "/"),
        ("http://u:p@www.example.org:81/a?b#c", "http", Place("www.example.org", 81), "/a?b"),
        ("https://[2001:db8::1]?b", "https", Place(ip_address("2001:db8::1"), 443), "/?b"),
    ],
)
def test_a_url_is_read_in_parts(text: str, scheme: str, place: Place, path: str) -> None:
    assert parse_url(text) == Url(text, scheme, place, path)


@pytest.mark.parametrize("text", ["ftp://www.example.org/", "www.example.org", "http:", "http:///"])
def test_what_a_client_cannot_ask_for_is_a_value_error(text: str) -> None:
    wanted = f"{text!r} is not an http or https URL, such as http://www.example.org/"
    with pytest.raises(ValueError, match=r"is not an http") as caught:
        parse_url(text)
    assert str(caught.value) == wanted
