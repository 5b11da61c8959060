"""Sessions go from one store to another as JSON Lines, whole or not at all."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport import cli, clock
from capport.commands import CommandError
from capport.commands.session_transfer import as_document, parsed
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.opening import open_store
from ports import free_port

MAC = ClientId("02:00:00:00:00:07")
BOTH = ClientId("02:00:00:00:00:07@2001:db8::7")


def sessions_in(path: Path) -> dict[ClientId, Session]:
    store = open_store(str(path))
    try:
        return {session.client: session for session in store.sessions()}
    finally:
        store.close()


def put(path: Path, *sessions: Session) -> None:
    store = open_store(str(path))
    for session in sessions:
        store.put(session)
    store.close()


def session(client: ClientId, seconds: float = 3600.0, **more: Any) -> Session:
    now = clock.now()
    return replace(
        Session(client, now - 60, now + seconds, 1800.0, now - 5, 1.7e9, "Zoë", "voucher", "<b>\n"),
        **more,
    )


def transfer(old: Path, new: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["sessions", "export", "--sessions", str(old)]) == 0
    file.write_text(capsys.readouterr().out)
    assert cli.main(["sessions", "import", str(file), "--sessions", str(new)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [["sessions", "export"], ["clients"]])
def test_a_list_that_may_lack_the_sessions_of_other_routers_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    put(tmp_path / "sessions.db", session(MAC))
    url = f"redis://127.0.0.1:{free_port()}/0?file={tmp_path / 'sessions.db'}"
    assert cli.main([*command, "--sessions", url]) == 0
    said = capsys.readouterr()
    assert MAC in said.out
    assert "sessions of other routers may be missing: Redis at 127.0.0.1:" in said.err
    assert cli.main([*command, "--sessions", str(tmp_path / "sessions.db")]) == 0
    assert capsys.readouterr().err == ""


def test_a_session_is_in_the_other_store_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, file = (tmp_path / name for name in ("old.db", "new.db", "sessions.jsonl"))
    put(old, session(MAC), session(BOTH, idle=None), session(ClientId("192.0.2.1"), -10.0))
    said = transfer(old, new, file, capsys)
    assert said.startswith("2 sessions are imported; 0 were there")
    before, after = sessions_in(old), sessions_in(new)
    assert after.keys() == {MAC, BOTH}
    for client, one in after.items():
        was = before[client]
        for name in ("granted", "expires", "last_seen"):
            assert getattr(one, name) == pytest.approx(getattr(was, name), abs=0.5)
        assert (one.idle, one.by, one.how, one.name) == (was.idle, was.by, was.how, was.name)


def test_a_session_that_lasts_longer_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, file = (tmp_path / name for name in ("old.db", "new.db", "sessions.jsonl"))
    put(old, session(MAC, name="short"), session(BOTH, name="long"))
    put(new, session(MAC, 7200.0, name="kept"), session(BOTH, 60.0, name="replaced"))
    assert "1 sessions are imported; 1 were there" in transfer(old, new, file, capsys)
    assert {one.name for one in sessions_in(new).values()} == {"kept", "long"}


GOOD = as_document(Session(MAC, 900.0, 4600.0), 1000.0, 1.7e9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"client": "printer"}, "neither an address nor a MAC"),
        ({"client": None}, "client is not a text"),
        ({"expires": "soon"}, "expires is not a number"),
        ({"expires": float("nan")}, "expires is not a number"),
        ({"expires": float("inf")}, "expires is not a number"),
        ({"expires": True}, "expires is not a number"),
        ({"expires": 1e10}, "expires is more than"),
        ({"idle": "x"}, "idle is not a number"),
        ({"name": 1}, "name is not a text"),
        ({"name": "\ud800"}, "name is not a text"),
        ({"more": 1}, "more is not known"),
    ],
)
def test_one_bad_line_and_nothing_is_imported(
    changes: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sessions.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD | changes)}\n")
    new = str(tmp_path / "new.db")
    assert cli.main(["sessions", "import", str(file), "--sessions", new]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{file}:3: ")
    assert says in said
    assert said.endswith("; nothing is imported\n")
    assert not Path(new).exists()


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(CommandError):
        assert not list(parsed(io.StringIO(text), "a", 1000.0, 1.7e9))


def test_what_is_not_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sessions.jsonl"
    file.write_bytes(b"\xff\xfe")
    arguments = ["sessions", "import", str(file), "--sessions", str(tmp_path / "new.db")]
    assert cli.main(arguments) == 1
    assert f"{file}: not UTF-8" in capsys.readouterr().err
