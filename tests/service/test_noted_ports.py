"""The proxy notes its ports, and other processes read them."""

from pathlib import Path

import pytest

from capport.service.noted_ports import NotedPorts
from conftest import StartPortal


def test_what_is_noted_is_read_by_others_and_replaces_what_was_there(tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/sessions.db"
    proxy, other = NotedPorts(store), NotedPorts(store)
    assert [*other] == []
    for ports in ({8080, 18443}, {9}, set[int]()):
        proxy.note(ports)
        assert (set(other), len(other), 9 in other) == (ports, len(ports), 9 in ports)
    assert (tmp_path / "sessions.db-ports").stat().st_mode & 0o777 == 0o600


def test_sessions_in_memory_have_no_file_and_no_ports() -> None:
    ports = NotedPorts(":memory:")
    ports.note({8080})
    assert [*ports] == []


def test_a_file_that_holds_something_else_names_no_port(tmp_path: Path) -> None:
    ports, file = NotedPorts(str(tmp_path / "s.db")), tmp_path / "s.db-ports"
    for held in (b"", b"\n8080", b"\xff\xfe x -1 8O80\n", "\u0664\n".encode(), b"8080" * 5000):
        file.write_bytes(held)
        assert 8080 not in ports
        assert len(ports) <= 1
    file.unlink()
    file.mkdir()
    assert [*ports] == []
    with pytest.raises(OSError, match="directory"):
        ports.note({8080})


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("8080\n")
    (tmp_path / "s.db-ports").symlink_to(elsewhere)
    ports = NotedPorts(str(tmp_path / "s.db"))
    assert [*ports] == []
    with pytest.raises(OSError, match="symbolic links"):
        ports.note({9})
    assert elsewhere.read_text() == "8080\n"


async def test_a_portal_that_cannot_note_its_ports_goes_on_and_says_so_once(
    portal: StartPortal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sessions.db-ports").mkdir()
    async with portal(sessions=str(tmp_path / "sessions.db")) as it:
        asked = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
        assert b" 511 " in await it.ask(asked)
    said = [one for one in caplog.messages if "does not learn the proxy's ports" in one]
    assert len(said) == 1
