"""A new rule of who is known is one function and one line: every reader of it goes by that."""

from ipaddress import ip_address

import pytest

from capport.core import explanation
from capport.core import standing as core
from capport.core.captivity import captivity
from capport.core.client import Client, Mac, is_random
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.standing import Facts, Kind, Standing
from capport.core.verdict import NetworkAuthenticationRequired, Pass, Refuse
from capport.gate import Gate
from capport.stores.memory import MemoryStore

MADE_UP = Client(ip_address("192.0.2.7"), Mac("02:00:00:00:00:07"))
MADE = Client(ip_address("192.0.2.8"), Mac("00:00:5e:00:53:01"))
PAGE = Place("www.example.com", 80)


def random_mac(facts: Facts, policy: Policy) -> Standing | None:
    """A randomised MAC always gets the 511."""
    if facts.client.mac is None or not is_random(facts.client.mac):
        return None
    return Standing(facts.client, Kind.BLOCKED, "has a MAC that it made up")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Both clients have a session."""
    monkeypatch.setattr(core, "RULES", (random_mac, *core.RULES))
    place = Place("login.example.net", 443)
    policy = Policy(login_url="https://login.example.net/", login_place=place)
    it = Gate(policy, MemoryStore())
    for client in (MADE_UP, MADE):
        it.grant(client.id)
    return it


@pytest.mark.parametrize(("client", "known"), [(MADE_UP, False), (MADE, True)])
async def test_a_rule_that_is_added_holds_everywhere(
    gate: Gate, client: Client, known: bool
) -> None:
    verdict = gate.request(client, HttpRequest(), PAGE, None)
    assert isinstance(verdict, Pass if known else NetworkAuthenticationRequired)
    assert isinstance(gate.connection(client, PAGE), Pass) == known
    assert isinstance(gate.handshake(client, PAGE, None), Refuse) != known
    assert (gate.known(client) is not None) == known
    assert (gate.standing(client).open_session is not None) == known
    assert (gate.standing(client).until is not None) == known
    said = gate.explain_url(client, explanation.parse_url("http://www.example.com/"))
    assert said.rule == ("open_session" if known else "blocked_client")
    if not known:
        assert said.verdict.because == "192.0.2.7 (02:00:00:00:00:07) has a MAC that it made up"
    found = gate.standing(client)
    assert (found.is_known, found.is_blocked) == (known, not known)
    assert captivity(found)["captive"] is not known
