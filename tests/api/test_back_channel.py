"""The API for an external login server, over its real sockets."""

import asyncio
import errno
import json
import logging
import socket
import stat
from contextlib import closing
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.back_channel import api
from capport.api.back_channel import BackChannel
from capport.api.call_handler import MAX_BODY
from capport.api.tokens import new_token, token_digest
from capport.core.client import (
    Address,
    Client,
    ClientId,
    Mac,
    Way,
    parse_address,
    parse_client_id,
)
from capport.core.place import Place
from capport.core.policy import Access, ClientRules, Sessions
from capport.core.session import Session
from capport.linux import Neighbours
from capport.stores import StoreError
from capport.stores.redis.redis_store import RedisStore
from capport.stores.redis_url import parse_redis_url
from capport.stores.sqlite.store import SqliteStore
from capport.web.states import LIFETIME
from login.house import LOOPBACK, at, house
from ports import free_port

PAGE = "http://www.example.org/news"
ADA = "192.0.2.7"


async def test_the_whole_way_by_state(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        state = a.house.context.states.mint(at(ADA), PAGE)
        read = await a.call("GET", f"/states/{state}")
        assert read.json == {
            "client": {"address": ADA, "mac": None},
            "page": PAGE,
            "network": "Example Café",
            "seconds_remaining": int(LIFETIME),
            "spent": False,
        }
        granted = await a.call("POST", "/sessions", {"state": state, "lifetime": 60, "name": "Ada"})
        assert granted.status == 201
        assert granted.headers["Location"] == f"/api/v1/sessions/{ADA}"
        assert (granted.json["client"], granted.json["seconds_remaining"]) == (ADA, 60)
        described = json.loads((files("capport.api") / "openapi.json").read_bytes())
        properties = described["components"]["schemas"]["Session"]["properties"]
        assert granted.json.keys() == properties.keys()
        session = a.house.session(ADA)
        assert session is not None
        assert (session.by, session.how, session.name) == ("api", "state", "Ada")
        assert (await a.call("GET", f"/states/{state}")).json["spent"] is True
        ended = await a.call("DELETE", f"/sessions/{ADA}")
        assert (ended.status, ended.json, a.house.session(ADA)) == (204, None, None)


async def test_a_state_sent_again_grants_nothing_more(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        state = a.house.context.states.mint(at(ADA))
        first = await a.call("POST", "/sessions", {"state": state, "lifetime": 60})
        a.house.clock.at += 30
        again = await a.call("POST", "/sessions", {"state": state, "lifetime": 60})
        assert (first.status, again.status) == (201, 200)
        assert again.json["seconds_remaining"] == 30
        assert again.headers["Location"] == first.headers["Location"] == f"/api/v1/sessions/{ADA}"
        a.house.gate.revoke(a.house.client(ADA).id)
        gone = await a.call("POST", "/sessions", {"state": state})
        assert (gone.status, a.house.session(ADA)) == (410, None)


async def test_the_clients_own_agent_is_not_given_a_state_that_was_used(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        states, client = a.house.context.states, at(ADA)
        first = states.for_agent(client)
        assert states.for_agent(client) == first
        assert (await a.call("POST", "/sessions", {"state": first})).status == 201
        assert states.for_agent(client) != first


async def test_a_state_sent_many_times_at_once_grants_once(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        state = a.house.context.states.mint(at(ADA))
        calls = [a.call("POST", "/sessions", {"state": state}) for _ in range(12)]
        statuses = sorted([answer.status for answer in await asyncio.gather(*calls)])
        assert statuses == [200] * 11 + [201]


async def test_a_state_that_is_over_or_made_up_is_404(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        state = a.house.context.states.mint(at(ADA))
        a.house.clock.at += LIFETIME
        for token in (state, "x", "A" * 60):
            assert (await a.call("GET", f"/states/{token}")).status == 404
            assert (await a.call("POST", "/sessions", {"state": token})).status == 404
        assert a.house.session(ADA) is None


async def test_a_state_is_not_for_the_next_device_with_that_address(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        before = Client(ip_address(ADA), Mac("02:00:00:00:00:07"))
        state = a.house.context.states.mint(before)
        a.house.gate.neighbours = _OneNeighbour(Mac("02:00:00:00:00:08"))
        answer = await a.call("POST", "/sessions", {"state": state})
        assert (answer.status, list(a.house.gate.store.sessions())) == (409, [])
        a.house.gate.neighbours = _OneNeighbour(Mac("02:00:00:00:00:07"))
        assert (await a.call("POST", "/sessions", {"state": state})).status == 201


async def test_a_state_with_an_address_is_for_the_client_that_was_refused_alone(
    tmp_path: Path,
) -> None:
    """A MAC is one client: it may be refused over IPv6 and sign in over IPv4."""
    async with api(tmp_path) as a:
        states = a.house.context.states
        for client, address, status in (
            (at(ADA), ADA, 200),
            (at(ADA), f"::ffff:{ADA}", 200),
            (at(ADA), "192.0.2.8", 409),
            (at(ADA), "2001:db8::7", 409),
            (at(ADA), "", 422),
            (at(ADA), "x&addres=192.0.2.7", 422),
            (at(ADA), f"192.0.2.8&address={ADA}", 422),
        ):
            answer = await a.call("GET", f"/states/{states.mint(client)}?address={address}")
            assert (answer.status, address) == (status, address)
            assert answer.json.get("status", 200) == status
        a.house.gate.neighbours = _OneNeighbour(Mac("02:00:00:00:00:07"))
        for mac, status in (("02:00:00:00:00:07", 200), ("02:00:00:00:00:08", 409)):
            state = states.mint(Client(ip_address("2001:db8::7"), Mac(mac)))
            answer = await a.call("GET", f"/states/{state}?address={ADA}")
            assert answer.status == status


async def test_a_parameter_that_is_not_known_is_no_check_that_is_left_out(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        state = a.house.context.states.mint(at(ADA))
        answer = await a.call("GET", f"/states/{state}?adress=192.0.2.8")
        assert (answer.status, answer.json["member"]) == (422, "adress")


class _OneNeighbour(Neighbours):
    """A neighbour table with one MAC, of `address`, or of every one there is."""

    def __init__(self, mac: Mac, address: str | None = None) -> None:
        self.mac, self.address = mac, address

    def find_mac(self, address: Address) -> Mac | None:
        return self.mac if self.address in (None, str(address)) else None

    def addresses(self, mac: Mac) -> list[Address]:
        return [parse_address(self.address)] if self.address and mac == self.mac else []

    def way(self, address: Address) -> Way | None:
        return Way(address)


async def test_a_client_may_be_named_by_address_or_mac(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for client in (ADA, "02-00-00-00-00-07", "2001:db8::7"):
            assert (await a.call("POST", "/sessions", {"client": client})).status == 201
            assert (await a.call("POST", "/sessions", {"client": client})).status == 200
            assert (await a.call("GET", f"/sessions/{client}")).status == 200
        listed = (await a.call("GET", "/sessions")).json["sessions"]
        assert [one["client"] for one in listed] == [ADA, "02:00:00:00:00:07", "2001:db8::7"]


async def test_other_work_goes_on_while_all_sessions_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = list[int]()
    sleep = asyncio.sleep

    async def turn(seconds: float) -> None:
        turns.extend([1] * (seconds == 0))
        await sleep(seconds)

    async with api(tmp_path) as a:
        for number in range(201):
            await a.call("POST", "/sessions", {"client": f"192.0.2.{number}"})
        monkeypatch.setattr(asyncio, "sleep", turn)
        listed = (await a.call("GET", "/sessions")).json["sessions"]
        monkeypatch.undo()
        assert [one["client"] for one in listed] == [f"192.0.2.{number}" for number in range(201)]
    assert len(turns) >= 5


async def test_an_address_finds_the_session_under_its_mac(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        a.house.gate.neighbours = _OneNeighbour(Mac("02:00:00:00:00:07"))
        granted = await a.call("POST", "/sessions", {"client": ADA})
        assert granted.json["client"] == "02:00:00:00:00:07"
        assert (await a.call("DELETE", f"/sessions/{ADA}")).status == 204


async def test_a_client_is_named_by_its_address_or_its_mac(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for said in ({"address": ADA}, {"mac": "02-00-00-00-00-07"}, {"address": "2001:db8::7"}):
            assert (await a.call("POST", "/sessions", said)).status == 201
        listed = (await a.call("GET", "/sessions")).json["sessions"]
        assert [one["client"] for one in listed] == [ADA, "02:00:00:00:00:07", "2001:db8::7"]


async def test_every_session_of_a_device_ends_however_it_was_filed(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        mac, elsewhere = "02:00:00:00:00:07", "192.0.2.9"
        for named in (mac, ADA):
            filed = ["02:00:00:00:00:08", "192.0.2.8"]  # other devices' sessions, which stay
            for client in (ADA, mac, f"{mac}@{ADA}", f"{mac}@{elsewhere}", *filed):
                a.house.gate.grant(parse_client_id(client), lifetime=60, by="command", how="")
            a.house.gate.neighbours = _OneNeighbour(Mac(mac), ADA)
            assert (await a.call("DELETE", f"/sessions/{named}")).status == 204
            assert (await a.call("GET", f"/sessions/{named}")).status == 404
            left = (await a.call("GET", "/sessions")).json["sessions"]
            assert [one["client"] for one in left] == filed


async def test_each_session_is_ended_also_where_that_cannot_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with api(tmp_path) as a:
        mac = Mac("02:00:00:00:00:07")
        for client in (ADA, mac, f"{mac}@{ADA}"):
            a.house.gate.grant(parse_client_id(client), lifetime=60, by="command", how="")
        a.house.gate.neighbours = _OneNeighbour(mac, ADA)
        revoke = a.house.gate.store.revoke

        def full(client: ClientId) -> bool:
            revoke(client)
            raise StoreError(f"the disk is full; {client} is revoked, but only for now")

        monkeypatch.setattr(a.house.gate.store, "revoke", full)
        answer = await a.call("DELETE", f"/sessions/{ADA}")
        assert answer.status == 503
        assert answer.json["detail"].endswith("is revoked, but only for now")
        assert [one.exc_info for one in caplog.records if one.levelno == logging.ERROR] == [None]
        assert (await a.call("GET", "/sessions")).json["sessions"] == []


async def test_a_session_bound_to_an_address_is_found_by_either_part(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        both = f"02:00:00:00:00:07@{ADA}"
        assert (await a.call("POST", "/sessions", {"client": both})).status == 201
        for named in (ADA, "02:00:00:00:00:07", both):
            assert (await a.call("GET", f"/sessions/{named}")).json["client"] == both
        assert (await a.call("GET", "/sessions/02:00:00:00:00:07@192.0.2.9")).status == 404


async def test_a_session_that_is_revoked_meanwhile_is_not_changed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api(tmp_path) as a:
        await a.call("POST", "/sessions", {"client": ADA})
        grant = a.house.gate.grant

        def meanwhile(client: ClientId, **how: Any) -> Session:
            assert a.house.gate.revoke(client)
            return grant(client, **how)

        monkeypatch.setattr(a.house.gate, "grant", meanwhile)
        assert (await a.call("PATCH", f"/sessions/{ADA}", {"name": "Ada"})).status == 404
        assert a.house.session(ADA) is None


async def test_a_state_is_not_for_the_bare_address_of_a_device_whose_mac_is_missing(
    tmp_path: Path,
) -> None:
    async with api(tmp_path) as a:
        neighbours = a.house.gate.neighbours = _OneNeighbour(Mac("02:00:00:00:00:07"), "192.0.2.9")
        state = a.house.context.states.mint(at(ADA))
        refused = await a.call("POST", "/sessions", {"state": state})
        assert (refused.status, "its MAC is not known yet" in refused.json["detail"]) == (503, True)
        assert not list(a.house.gate.store.sessions())
        neighbours.address = ADA
        granted = await a.call("POST", "/sessions", {"state": state})
        assert (granted.status, granted.json["client"]) == (201, "02:00:00:00:00:07")
        # A caller that names an address may mean a device that is not there yet.
        named = await a.call("POST", "/sessions", {"address": "192.0.2.8"})
        assert (named.status, named.json["client"]) == (201, "192.0.2.8")


async def test_one_session_too_many_is_refused_with_the_reason_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with api(tmp_path) as a:
        a.house.change_policy(sessions=Sessions(most=1))
        assert (await a.call("POST", "/sessions", {"client": ADA})).status == 201
        state = a.house.context.states.mint(at("192.0.2.9"))
        for who in ({"client": "192.0.2.8"}, {"state": state}, {"mac": "02:00:00:00:00:07"}):
            refused = await a.call("POST", "/sessions", who)
            full = "there are as many sessions as sessions.most allows: 1"
            assert (refused.status, refused.json["detail"]) == (503, f"{full}; nothing was changed")
        assert caplog.text.count(full) == 1
        assert (await a.call("POST", "/sessions", {"client": ADA})).status == 200
        assert (await a.call("DELETE", f"/sessions/{ADA}")).status == 204
        assert (await a.call("POST", "/sessions", {"state": state})).status == 201


async def test_a_session_is_changed_and_stays_itself(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        await a.call("POST", "/sessions", {"client": ADA, "lifetime": 60, "name": "Ada"})
        longer = await a.call("PATCH", f"/sessions/{ADA}", {"lifetime": 600})
        assert (longer.json["seconds_remaining"], longer.json["name"]) == (600, "Ada")
        renamed = await a.call("PATCH", f"/sessions/{ADA}", {"name": "Eve"})
        assert (renamed.json["seconds_remaining"], renamed.json["name"]) == (600, "Eve")
        for nothing in ({}, {"name": None, "lifetime": None}):
            same = await a.call("PATCH", f"/sessions/{ADA}", nothing)
            assert (same.json["seconds_remaining"], same.json["name"]) == (600, "Eve")


async def test_null_is_as_if_it_was_left_out(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        body = {"client": ADA, "lifetime": None, "name": None}
        granted = await a.call("POST", "/sessions", body)
        assert (granted.status, granted.json["name"]) == (201, "")
        assert granted.json["seconds_remaining"] == a.house.gate.policy.sessions.lifetime


async def test_a_client_that_the_policy_blocks_is_not_granted(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        rules = ClientRules()
        rules.section(Access.BLOCKED, "lab.yaml")
        rules.add(ip_address(ADA), 7)
        a.house.change_policy(clients=rules)
        state = a.house.context.states.mint(at(ADA))
        for body in ({"client": ADA}, {"state": state}):
            answer = await a.call("POST", "/sessions", body)
            assert (answer.status, "lab.yaml:7" in answer.json["detail"]) == (409, True)
        a.house.change_policy(clients=ClientRules())
        assert (await a.call("POST", "/sessions", {"state": state})).status == 201


async def test_a_mac_that_the_policy_blocks_is_not_granted(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        rules = ClientRules()
        rules.section(Access.BLOCKED, "lab.yaml")
        rules.add(Mac("02:00:00:00:00:07"), 7)
        a.house.change_policy(clients=rules)
        for client in ("02:00:00:00:00:07", f"02:00:00:00:00:07@{ADA}"):
            answer = await a.call("POST", "/sessions", {"client": client})
            assert (answer.status, "lab.yaml:7" in answer.json["detail"]) == (409, True)
        assert (await a.call("POST", "/sessions", {"mac": "02:00:00:00:00:08"})).status == 201


async def test_explain_names_the_rule_that_decided(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        said = await a.call("POST", "/explain", {"client": ADA, "url": PAGE})
        assert said.json["verdict"] == "NetworkAuthenticationRequired"
        assert "has no session" in said.json["because"]
        assert said.json["rules"][-1]["rule"] == "unknown_client"
        described = json.loads((files("capport.api") / "openapi.json").read_bytes())
        explanation = described["components"]["schemas"]["Explanation"]
        assert said.json.keys() == explanation["properties"].keys()


async def test_explain_may_be_asked_of_a_device_that_is_not_there(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        mac = "02:00:00:00:00:07"
        assert (await a.call("POST", "/sessions", {"mac": mac})).status == 201
        asked = {"client": ADA, "url": PAGE}
        for said, verdict in (({}, "NetworkAuthenticationRequired"), ({"mac": mac}, "Pass")):
            assert (await a.call("POST", "/explain", asked | said)).json["verdict"] == verdict


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/sessions", "{", 400, "not JSON"),
        ("POST", "/sessions", '{"client": "192.0.2.7", "lifetime": NaN}', 400, "NaN"),
        ("POST", "/sessions", "[" * 9000, 400, "not JSON"),
        ("POST", "/sessions", '{"client": "192.0.2.7", "client": "192.0.2.8"}', 422, "than once"),
        ("POST", "/sessions", [], 422, "the body is []: send an object"),
        ("POST", "/sessions", {}, 422, "send exactly one of state, client, address, mac"),
        ("POST", "/sessions", {"client": ADA, "state": "x"}, 422, "send exactly one of"),
        ("POST", "/sessions", {"address": ADA, "mac": "02:00:00:00:00:07"}, 422, "exactly one of"),
        ("POST", "/sessions", {"address": "02:00:00:00:00:07"}, 422, "is not an address, such"),
        ("POST", "/sessions", {"mac": ADA}, 422, "is not a MAC, such as"),
        ("POST", "/sessions", {"mac": f"02:00:00:00:00:07@{ADA}"}, 422, "is not a MAC, such as"),
        (
            "POST",
            "/sessions",
            {"client": "router"},
            422,
            'client "router" is neither an address nor a MAC',
        ),
        ("POST", "/sessions", {"client": 7}, 422, "client 7 is not a string, such as 192.0.2.7"),
        ("POST", "/sessions", {"client": ADA, "lifetime": 0}, 422, "lifetime 0 is not 1 to"),
        ("POST", "/sessions", {"client": ADA, "lifetime": True}, 422, "lifetime true is not a"),
        ("POST", "/sessions", {"client": ADA, "lifetime": "1h"}, 422, 'lifetime "1h" is not a'),
        ("POST", "/sessions", {"client": ADA, "lifetime": 1e99}, 422, "lifetime 1e+99 is not 1"),
        ("POST", "/sessions", {"client": ADA, "lifetime": 10**400}, 422, "00… is not 1 to"),
        ("POST", "/sessions", '{"client": "192.0.2.7", "lifetime": 1e999}', 422, "is not 1 to"),
        ("POST", "/sessions", {"client": ADA, "name": "a\nb"}, 422, r'name "a\nb" is not'),
        ("POST", "/sessions", {"client": ADA, "name": ["x" * 99]}, 422, "xx… is not a string"),
        (
            "POST",
            "/sessions",
            {"state": "x"},
            404,
            "not a state; the link in the client's next 511",
        ),
        ("POST", "/sessions", {"client": ADA, "lifetme": 1}, 422, "known are state, client, addr"),
        ("PATCH", f"/sessions/{ADA}", {"lifetime": 5}, 404, "has no session"),
        ("DELETE", f"/sessions/{ADA}", None, 404, "has no session"),
        ("GET", "/sessions/router", None, 422, 'client "router" is neither an address nor a MAC'),
        ("POST", "/explain", {"client": ADA}, 422, "url is missing"),
        ("POST", "/explain", {"client": ADA, "url": "ftp://x/"}, 422, "not an http or https URL"),
        ("POST", "/explain", {"client": "x", "url": PAGE}, 422, 'client "x" is not an address'),
        ("POST", "/explain", {"client": ADA, "url": PAGE, "mac": "x"}, 422, 'mac "x" is not a MAC'),
        ("POST", "/explain", {"client": ADA, "url": PAGE, "mac": None}, 422, "is not a string"),
        ("GET", "/sessions/", None, 404, '"/api/v1/sessions/"; see /api/v1/openapi.json'),
        ("PUT", "/sessions", {}, 405, "PUT is not for this path: use GET, HEAD, POST"),
        ("GET", "/explain", None, 405, "GET is not for this path: use POST"),
        ("POST", "/sessions", f'"{"x" * 65535}"', 413, "more than 65536 bytes"),
    ],
)
async def test_an_error_is_a_problem_that_says_what_would_do(
    tmp_path: Path, method: str, path: str, body: object, status: int, says: str
) -> None:
    async with api(tmp_path) as a:
        answer = await a.call(method, path, body)
        assert (answer.status, answer.json["status"]) == (status, status)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert says in answer.json["detail"]
        assert len(answer.json["detail"]) < 250
        assert a.house.session(ADA) is None


async def test_the_longest_body_is_read(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        body = json.dumps({"client": ADA})
        assert (await a.call("POST", "/sessions", f"{body:{MAX_BODY}}")).status == 201


async def test_head_is_answered_as_get_is_without_the_body(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for path, status in (("/sessions", 200), ("/openapi.json", 200), ("/sessions/x", 422)):
            got, head = await a.call("GET", path), await a.call("HEAD", path)
            assert (head.status, head.json) == (status, None)
            for name in ("Content-Type", "Content-Length", "Cache-Control"):
                assert head.headers[name] == got.headers[name]
        refused = await a.call("HEAD", "/explain")
        assert (refused.status, refused.headers["Allow"]) == (405, "POST")


async def test_only_json_is_read(tmp_path: Path) -> None:
    """So no form of a web page can call it, even from a browser that reaches its port."""
    async with api(tmp_path) as a:
        typed = {"Content-Type": "text/plain"}
        answer = await a.call("POST", "/sessions", {"client": ADA}, **typed)
        assert (answer.status, a.house.session(ADA)) == (415, None)
        assert answer.json["detail"] == 'Content-Type is "text/plain": send application/json'
        typed = {"Content-Type": "Application/JSON; charset=utf-8"}  # RFC 9110 section 8.3.1
        assert (await a.call("POST", "/sessions", {"client": ADA}, **typed)).status == 201


async def test_the_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        assert stat.S_IMODE(a.path.stat().st_mode) == 0o600
    assert not a.path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("precious", "utf-8")
    with pytest.raises(OSError, match=r"api\.sock"):
        async with api(tmp_path):
            raise AssertionError("it started")
    assert (tmp_path / "api.sock").read_text("utf-8") == "precious"


async def test_over_tcp_a_token_is_needed(tmp_path: Path) -> None:
    async with api(tmp_path, tcp=True) as a:
        token = new_token()
        a.house.context.records.put_token("login.example.net", token_digest(token), 1.0)
        wrong = 'Bearer error="invalid_token"'  # RFC 6750 section 3.1
        for given_, status, challenge, says in [
            ({}, 401, "Bearer", "a token is needed"),
            ({"Authorization": "Bearer nonsense"}, 401, wrong, "that token is not known"),
            ({"Authorization": f"Basic {token}"}, 401, "Bearer", "a token is needed"),
            ({"Authorization": "Bearer "}, 401, "Bearer", "a token is needed"),
            ({"Authorization": f"bearer  {token} "}, 200, None, ""),
            ({"Authorization": f"Bearer {token}"}, 200, None, ""),
        ]:
            answer = await a.call_tcp("GET", "/sessions", **given_)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (status, challenge)
            assert says in answer.json.get("detail", "")
        assert (await a.call_tcp("GET", "/nothing")).status == 401
        a.house.context.records.put_token("login.example.net", token_digest(new_token()), 2.0)
        replaced = await a.call_tcp("GET", "/sessions", Authorization=f"Bearer {token}")
        assert (replaced.status, "was replaced" in replaced.json["detail"]) == (401, True)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::"])
def test_it_never_listens_where_clients_are(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        BackChannel(None, tmp_path / "s", Place(ip_address(host), 1))  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_any_text_may_be_offered_for_a_token(text: str) -> None:
    assert len(token_digest(text)) == 32


async def test_the_description_describes_what_is_there(tmp_path: Path) -> None:
    described = json.loads((files("capport.api") / "openapi.json").read_bytes())
    async with api(tmp_path) as a:
        assert (await a.call("GET", "/openapi.json")).json == described
        for path, methods in described["paths"].items():
            filled = path.removeprefix("/api/v1").replace("{client}", ADA).replace("{state}", "x")
            for method in {"get", "post", "patch", "delete", "put"}:
                answer = await a.call(method.upper(), filled, {})
                assert (answer.status == 405) is (method not in methods), (method, path)


async def test_a_socket_that_somebody_answers_on_is_left_alone(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        other = BackChannel(a.house.context, a.path)
        with pytest.raises(OSError, match="another process answers there") as raised:
            other.start()
        assert raised.value.errno == errno.EADDRINUSE
        await other.stop()
        assert (await a.call("GET", "/sessions")).status == 200


async def test_a_socket_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "api.sock"))
        left.listen()
    async with api(tmp_path) as a:
        assert (await a.call("GET", "/sessions")).status == 200


async def test_it_takes_only_its_own_socket_away(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        a.path.unlink()
        later = BackChannel(a.house.context, a.path)
        later.start()
    assert (tmp_path / "api.sock").is_socket()
    await later.stop()
    assert not (tmp_path / "api.sock").exists()


async def test_a_grant_without_redis_says_that_it_holds_on_this_router_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = parse_redis_url(f"redis://127.0.0.1:{free_port()}/0")
    path = tmp_path / "sessions.db"
    async with api(tmp_path) as a:
        own = await asyncio.to_thread(SqliteStore, path, spares=())
        with closing(await asyncio.to_thread(RedisStore, nowhere, path, own)) as store:
            monkeypatch.setattr(a.house.gate, "store", store)
            granted = await a.call("POST", "/sessions", {"address": ADA})
            changed = await a.call("PATCH", f"/sessions/{ADA}", {"lifetime": 60})
            listed = await a.call("GET", f"/sessions/{ADA}")
            monkeypatch.undo()
    assert (granted.status, changed.status) == (201, 200)
    assert "cannot be reached" in granted.json["not_everywhere"]
    assert "cannot be reached" in changed.json["not_everywhere"]
    assert "not_everywhere" not in listed.json


@pytest.mark.parametrize(
    ("folder", "socket_"), [(0o750, 0o660), (0o700, 0o600), (0o755, 0o600), (0o740, 0o600)]
)
async def test_the_sockets_group_may_ask_where_the_folder_is_the_groups(
    tmp_path: Path, folder: int, socket_: int
) -> None:
    await asyncio.to_thread(tmp_path.chmod, folder)
    async with api(tmp_path) as a:
        assert stat.S_IMODE(a.path.stat().st_mode) == socket_


async def test_where_the_port_is_taken_no_socket_is_left(tmp_path: Path) -> None:
    async with house() as h:
        channel = BackChannel(h.context, tmp_path / "api.sock", Place(LOOPBACK, h.port))
        with pytest.raises(OSError, match="in use"):
            channel.start()
        assert not (tmp_path / "api.sock").exists()
