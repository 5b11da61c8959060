"""Whether a client is known, blocked or unknown: by a client rule, then by its session."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from capport.core import standing as module
from capport.core.client import Address, Client, ClientId, Mac
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Policy
from capport.core.session import Session
from capport.core.standing import (
    Facts,
    Kind,
    Rule,
    Standing,
    by_client_rule,
    by_session,
    is_without_mac,
    known_by_rule,
    known_sessions,
    lacks_mac,
    needs_no_session,
    settled,
    settles,
    standing,
    standing_of_id,
    stays,
    without_its_mac,
)

MAC = Mac("02:00:00:00:00:07")
CLIENT = Client(ip_address("192.0.2.7"), MAC)
OPEN = Session(ClientId("192.0.2.7"), granted=900.0, expires=1060.0)
IDLE = replace(OPEN, idle=110.0)
OVER = replace(OPEN, expires=1000.0)
LACKS = "has a MAC that is not known now, and a rule may block it by that MAC"
BY_NETWORK = ip_network("192.0.2.0/24")


def policy(access: Access | None, subject: Mac | None = None) -> Policy:
    rules = ClientRules()
    if access:
        rules.section(access, "lab.yaml")
        rules.add(subject or BY_NETWORK, 9)
    place = Place("login.example.net", 443)
    return Policy(login_url="https://login.example.net/", login_place=place, clients=rules)


@pytest.mark.parametrize(
    ("access", "session", "lacks", "kind", "because"),
    [
        (None, None, False, Kind.UNKNOWN, "has no session"),
        (None, OVER, False, Kind.UNKNOWN, "has a session, and its session is over"),
        (None, OPEN, False, Kind.KNOWN, "is known for 60 s more"),
        (Access.KNOWN, None, False, Kind.KNOWN, "is known by lab.yaml:9"),
        (Access.KNOWN, OPEN, False, Kind.KNOWN, "is known by lab.yaml:9"),
        (Access.BLOCKED, OPEN, False, Kind.BLOCKED, "is blocked by lab.yaml:9"),
        (Access.KNOWN, OPEN, True, Kind.UNKNOWN, LACKS),
        (None, OPEN, True, Kind.UNKNOWN, LACKS),
    ],
)
def test_the_policys_word_comes_first_then_the_session(
    access: Access | None, session: Session | None, lacks: bool, kind: Kind, because: str
) -> None:
    found = standing(CLIENT, policy(access), session, 1000.0, lacks_mac=lacks)
    assert (found.client, found.kind, found.because) == (CLIENT, kind, because)
    assert found.is_known == (kind is Kind.KNOWN)
    assert found.is_blocked == (kind is Kind.BLOCKED)
    by_session = found.is_known and access is None
    assert found.open_session == (session if by_session else None)
    assert (found.until, found.seconds_remaining) == ((1060.0, 60) if by_session else (None, None))
    assert found.session == (None if access or lacks else session)
    assert (found.rule.where if found.rule else None) == (
        "lab.yaml:9" if access and not lacks else None
    )


def test_by_default_a_mac_is_not_lacking() -> None:
    assert standing(CLIENT, policy(Access.KNOWN), None, 1000.0).is_known


def test_a_session_with_idle_ends_after_silence() -> None:
    found = standing(CLIENT, policy(None), IDLE, 1000.0)
    assert (found.until, found.seconds_remaining) == (1010.0, 60)


@pytest.mark.parametrize(
    ("text", "subject", "kind"),
    [
        (MAC, MAC, Kind.BLOCKED),
        (MAC, None, Kind.UNKNOWN),  # a rule for a network says nothing of a MAC
        ("192.0.2.7", None, Kind.BLOCKED),
        ("192.0.2.7", MAC, Kind.UNKNOWN),
        (f"{MAC}@192.0.2.7", MAC, Kind.BLOCKED),
        (f"{MAC}@192.0.2.7", None, Kind.BLOCKED),
    ],
)
def test_an_id_stands_by_each_part_that_is_in_it(
    text: str, subject: Mac | None, kind: Kind
) -> None:
    it = policy(Access.BLOCKED, subject)
    assert standing_of_id(ClientId(text), it, None, 1000.0).kind is kind


def test_a_session_for_a_mac_alone_makes_it_known_at_any_address() -> None:
    session = replace(OPEN, client=ClientId(MAC))
    found = standing_of_id(ClientId(MAC), policy(None), session, 1000.0)
    assert (found.open_session, found.client.mac, found.until) == (session, MAC, 1060.0)
    assert not standing_of_id(ClientId(MAC), policy(None), None, 1000.0).is_known


def test_the_known_sessions_are_open_and_their_clients_are_not_blocked() -> None:
    elsewhere = replace(OPEN, client=ClientId("198.51.100.7"))
    sessions = [OVER, OPEN, elsewhere]
    for access, known in (
        (None, [OPEN, elsewhere]),
        (Access.BLOCKED, [elsewhere]),
        (Access.KNOWN, [OPEN, elsewhere]),
    ):
        assert list(known_sessions(sessions, policy(access), 1000.0)) == known
    assert list(known_sessions(sessions, policy(None), 1060.0)) == []


@pytest.mark.parametrize(
    ("mac", "subject", "on_link", "lacks"),
    [
        (None, MAC, True, True),
        (None, MAC, False, False),
        (None, None, True, False),  # no rule is by MAC
        (MAC, MAC, True, False),
    ],
)
def test_a_mac_is_lacking_where_a_rule_may_block_by_it(
    mac: Mac | None, subject: Mac | None, on_link: bool, lacks: bool
) -> None:
    asked: list[Address] = []

    def is_on_link(address: Address) -> bool:
        asked.append(address)
        return on_link

    client = Client(CLIENT.address, mac)
    assert lacks_mac(client, policy(Access.BLOCKED, subject), is_on_link) is lacks
    assert asked == ([CLIENT.address] if mac is None and subject else [])


def test_the_kinds_are_the_words_of_events_and_budgets() -> None:
    assert " ".join(Kind) == "known blocked unknown"


def random_mac(facts: Facts, policy: Policy) -> Standing | None:
    return Standing(facts.client, Kind.UNKNOWN, "has a MAC that it made up")


@pytest.mark.parametrize(
    ("place", "unsettled"),
    [
        (0, {without_its_mac, by_client_rule, by_session}),
        (1, {by_client_rule, by_session}),
        (2, {by_session}),
        (3, set[Rule]()),
    ],
)
def test_a_rule_that_is_added_unsettles_those_behind_it(
    monkeypatch: pytest.MonkeyPatch, place: int, unsettled: set[Rule]
) -> None:
    rules = (without_its_mac, by_client_rule, by_session)
    assert all(settles(rule) for rule in rules)
    monkeypatch.setattr(module, "RULES", (*rules[:place], random_mac, *rules[place:]))
    assert {rule for rule in rules if not settles(rule)} == unsettled


def test_client_rules_make_known_only_if_no_rule_that_is_added_may_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ruled = policy(Access.KNOWN, MAC)
    ruled.clients.section(Access.BLOCKED, "lab.yaml")
    ruled.clients.add(BY_NETWORK, 10)
    assert [*settled(ruled.clients)] == [(MAC, 0, Kind.KNOWN), (BY_NETWORK, 1, Kind.BLOCKED)]
    assert [(subject, rule.where) for subject, rule in known_by_rule(ruled)] == [
        (MAC, "lab.yaml:9")
    ]
    assert needs_no_session(CLIENT, ruled)
    assert not needs_no_session(Client(ip_address("198.51.100.7"), None), ruled)
    monkeypatch.setattr(module, "RULES", (random_mac, *module.RULES))
    assert [*settled(ruled.clients)] == [(MAC, 0, Kind.UNKNOWN), (BY_NETWORK, 1, Kind.BLOCKED)]
    assert [*known_by_rule(ruled)] == []
    assert not needs_no_session(CLIENT, ruled)


def test_a_client_without_a_session_keeps_its_standing_if_routes_and_added_rules_cannot_change_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks_by_mac, unseen = policy(Access.BLOCKED, MAC), replace(CLIENT, mac=None)
    assert stays(CLIENT, blocks_by_mac)
    assert not stays(unseen, blocks_by_mac)  # it may come to be on the link
    assert stays(unseen, policy(None))
    monkeypatch.setattr(module, "RULES", (*module.RULES[:-1], random_mac, module.RULES[-1]))
    assert not stays(CLIENT, blocks_by_mac)


@pytest.mark.parametrize(
    ("mac", "on_link", "without"),
    [(None, True, True), (None, False, False), (MAC, True, False)],
)
def test_a_client_is_without_its_mac_if_it_is_on_the_link_and_has_none(
    mac: Mac | None, on_link: bool, without: bool
) -> None:
    assert is_without_mac(Client(CLIENT.address, mac), lambda address: on_link) is without
