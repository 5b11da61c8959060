"""`capport diff` says which verdicts change under another policy, and which places open."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

from capport import cli, clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.sqlite.store import SqliteStore

LOGIN = "login_url: https://login.example.net/\n"
OLD = f"""{LOGIN}clients:
  - {{address: 192.0.2.20, access: known}}
  - {{address: 198.51.100.0/24, access: blocked}}
walled_garden: [www.example.org]
"""

type Diff = Callable[..., tuple[int, str]]


@pytest.fixture
def diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Diff:
    store = tmp_path / "sessions.db"
    SqliteStore(store, spares=()).close()

    def run(new: str, *more: str) -> tuple[int, str]:
        (tmp_path / "old.yaml").write_text(OLD)
        (tmp_path / "new.yaml").write_text(new)
        policies = [str(tmp_path / "old.yaml"), str(tmp_path / "new.yaml")]
        status = cli.main(["diff", *policies, "--sessions", str(store), *more])
        said = capsys.readouterr()
        assert said.err == ""
        return status, said.out.replace(f"{tmp_path}/", "")

    return run


def test_the_same_policy_changes_nothing(diff: Diff) -> None:
    status, said = diff(OLD)
    assert (status, said) == (0, "0 of 8 verdicts change; none opens\n")


def test_a_client_that_is_refused_now_is_shown_with_the_line_before_and_after(diff: Diff) -> None:
    status, said = diff(OLD.replace("  - {address: 192.0.2.20, access: known}\n", ""))
    assert status == 0
    assert said.startswith(
        "192.0.2.20: GET any other http URL\n"
        "  before  the origin's own\n"
        "          old.yaml:3: - {address: 192.0.2.20, access: known}\n"
        "  after   511\n"
        "          unknown_client: 192.0.2.20 has no session\n"
    )
    assert said.endswith("2 of 8 verdicts change; none opens\n")


def test_a_wider_garden_opens_and_the_status_says_so(diff: Diff) -> None:
    status, said = diff(OLD.replace("[www.example.org]", '["*.www.example.org"]'))
    assert status == 1
    assert "an unknown client: GET http://any.www.example.org/  OPENS\n" in said
    assert "an unknown client: GET https://any.www.example.org/  OPENS\n" in said
    assert '          new.yaml:5: walled_garden: ["*.www.example.org"]\n' in said
    # A star does not cover the name itself, which is refused now.
    assert "an unknown client: GET http://www.example.org/\n  before  the origin's own\n" in said


def test_recorded_requests_are_decided_again(diff: Diff, tmp_path: Path) -> None:
    seen = tmp_path / "events.jsonl"
    events = [
        {"event": "refused", "client": "198.51.100.7", "host": "a.example", "method": "POST"},
        {"event": "refused", "client": "198.51.100.7", "host": "a.example", "method": "CONNECT"},
        {"event": "refused", "client": "198.51.100.7", "host": "<no host>", "method": "GET"},
        {"event": "tls", "client": "198.51.100.7", "sni": "b.example", "action": "refuse"},
        {"event": "tls", "client": "198.51.100.7", "destination": "[2001:db8::1]:443"},
        {"event": "refused", "client": "198.51.100.7", "host": "2001:db8::2"},
        {"event": "refused", "client": "198.51.100.7", "host": "d.example", "scheme": "ftp"},
        {"event": "refused", "host": "c.example"},
    ]
    time = {"time": "2026-11-30T07:00:00Z"}
    seen.write_text("".join(json.dumps(time | event) + "\n" for event in events) + "no event\n")
    new = OLD.replace("198.51.100.0/24, access: blocked", "198.51.100.7, access: known")
    status, said = diff(new, "--json", "--events", str(seen))
    document = json.loads(said)
    opened = {
        (one["after"]["client"], one["after"]["method"], one["after"]["url"])
        for one in document["differences"]
        if one["opens"]
    }
    assert status == 1
    assert opened == {
        ("198.51.100.7", "POST", "http://a.example/"),
        ("198.51.100.7", "CONNECT", "https://a.example/"),
        ("198.51.100.7", "GET", "https://b.example/"),
        ("198.51.100.7", "GET", "https://[2001:db8::1]/"),
        ("198.51.100.7", "GET", "http://[2001:db8::2]/"),
        ("198.51.100.7", "GET", "http://somewhere.invalid/"),
        ("198.51.100.7", "GET", "https://somewhere.invalid/"),
    }
    first = document["differences"][0]
    assert (first["before"]["decided_by"], first["before"]["status"]) == ("old.yaml:4", 511)
    assert (first["after"]["decided_by"], first["after"]["status"]) == ("new.yaml:4", None)


def test_flows_that_mitmproxy_saved_are_decided_again(diff: Diff, tmp_path: Path) -> None:
    shown = tflow.tflow(resp=True)
    shown.client_conn.peername = ("198.51.100.7", 50000)
    shown.request.url = "http://a.example/path"
    with (tmp_path / "flows").open("wb") as file:
        FlowWriter(file).add(shown)  # type: ignore[no-untyped-call]
    new = OLD.replace("[www.example.org]", "[www.example.org, a.example]")
    status, said = diff(new, "--flows", str(tmp_path / "flows"))
    assert status == 1
    assert "198.51.100.7: GET http://a.example/path  OPENS\n" in said


def test_a_session_counts_under_both_policies(diff: Diff, tmp_path: Path) -> None:
    now = clock.now()
    with_session = SqliteStore(tmp_path / "sessions.db", spares=())
    with_session.put(Session(ClientId("203.0.113.9"), now, now + 3600))
    with_session.close()
    blocked = "  - {address: 203.0.113.9, access: blocked}\n"
    status, said = diff(OLD.replace("walled_garden", f"{blocked}walled_garden"))
    assert status == 0
    assert "203.0.113.9: GET any other http URL\n  before  the origin's own\n" in said
    assert "after   511\n          new.yaml:5: - {address: 203.0.113.9, access: blocked}\n" in said


def test_another_way_with_tls_is_a_change_and_limits_are_said_not_to_be_compared(
    diff: Diff,
) -> None:
    status, said = diff(
        f"{OLD}tls: {{unknown: intercept}}\nlimits: {{requests: {{count: 1, per: 1m}}}}\n"
    )
    assert status == 0
    assert "an unknown client: GET any other https URL\n  before  no status: the TLS alert" in said
    assert "The limits differ, too." in said


def test_a_policy_that_cannot_be_used_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text("login_url: nowhere\n")
    assert cli.main(["diff", str(tmp_path / "old.yaml"), str(tmp_path / "new.yaml")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{tmp_path / 'new.yaml'}:1:12: " in said.err


def test_a_file_of_events_that_is_missing_is_an_error_that_says_which_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    policies = [str(tmp_path / "old.yaml")] * 2
    store, missing = str(tmp_path / "sessions.db"), str(tmp_path / "events.jsonl")
    SqliteStore(tmp_path / "sessions.db", spares=()).close()
    assert cli.main(["diff", *policies, "--sessions", store, "--events", missing]) == 1
    assert f"{missing}: there is no such file; name the one that" in capsys.readouterr().err
