"""`capport fleet`, and grants by a command if routers share their sessions."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import requires
from capport import cli
from capport.stores.redis.redis_link import ROUTER
from stores.contract import MAC, OTHER, session, until
from stores.redis_server import Fleet, RedisServer, server
from stores.router_process import RouterProcess

pytestmark = requires.tool("redis-server")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with server(tmp_path / "redis") as running:
        fleet = Fleet(tmp_path, running)
        yield fleet
        fleet.close()


def url(redis: RedisServer, folder: Path) -> str:
    return f"redis://127.0.0.1:{redis.port}/0?file={folder}/commands.db"


def test_each_router_is_listed_with_what_it_has(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = fleet.open(0), fleet.open(1)
    one.put(session(MAC))
    one.put(session(OTHER))
    until(lambda: other.find((OTHER,), 1000.0) is not None)
    for name, garbage in (("x", "garbage"), ("y", "[" * 100_000)):
        fleet.server.ask("SET", f"{ROUTER}{name}", garbage)
    store = url(fleet.server, tmp_path)

    def counts() -> list[tuple[int, int, int]]:
        assert cli.main(["fleet", "--json", "--sessions", store]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["records"] == 2
        return sorted((one["own"], one["known"], one["unsent"]) for one in found["routers"])

    until(lambda: counts() == [(0, 2, 0), (2, 2, 0)], "what each has")
    assert cli.main(["fleet", "--sessions", store]) == 0
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head == f"Redis at 127.0.0.1:{fleet.server.port}: records of 2 clients"
    assert titles.split()[:4] == ["ROUTER", "SEEN", "BEHIND", "OWN"]
    assert len(rows) == 2


def test_a_store_of_one_machine_is_no_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fleet", "--sessions", "/tmp/s.db"]) == 1
    assert "the store of one machine" in capsys.readouterr().err


def test_a_grant_by_a_command_is_in_force_on_every_router_and_says_so_if_it_is_not(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, mac = url(fleet.server, tmp_path), str(MAC)
    grant = ["grant", mac, "--for", "1h", "--sessions", store]
    with closing(RouterProcess(fleet.server.url, tmp_path / "router")) as one:
        assert cli.main(grant) == 0
        assert capsys.readouterr().err == ""
        until(lambda: one("find", mac) == "known", "the grant")
        assert cli.main(["clients", "--json", "--sessions", store]) == 0
        assert [each["client"] for each in json.loads(capsys.readouterr().out)] == [mac]
        assert cli.main(["revoke", mac, "--sessions", store]) == 0
        assert capsys.readouterr() == (f"{mac} is revoked\n", "")
        until(lambda: one("find", mac) == "unknown", "the revocation")
    fleet.server.kill()
    assert cli.main(grant) == 0
    assert "warning: not everywhere yet: Redis at 127.0.0.1" in capsys.readouterr().err
    fleet.server.start()


def test_vouchers_are_made_on_every_router_or_not_at_all_and_a_revocation_travels(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = (url(fleet.server, tmp_path / name) for name in ("one", "other"))

    def voucher(*words: str) -> tuple[int, str, str]:
        status = cli.main(["voucher", *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    assert voucher("list", "--sessions", other) == (0, "There are no vouchers.\n", "")
    status, sheet, error = voucher("new", "--count", "2", "--sessions", one)
    assert (status, error, "No. 100002" in sheet) == (0, "", True)
    fleet.server.kill()
    status, sheet, error = voucher("new", "--sessions", one)
    assert (status, sheet) == (1, "")
    assert "cannot be reached" in error
    status, said, error = voucher("revoke", "100001", "--sessions", one)
    assert (status, said) == (0, "voucher 100001 is revoked\n")
    assert "warning: not everywhere: Redis at 127.0.0.1" in error
    status, said, error = voucher("list", "--sessions", one)
    assert [line.split()[5] for line in said.splitlines()[1:]] == ["revoked", "open"]
    assert "warning: not everywhere" in error
    fleet.server.start()
    assert voucher("list", "--sessions", one)[2] == "", "it puts back what Redis has lost"
    status, said, error = voucher("list", "--sessions", other)
    assert [line.split()[5] for line in said.splitlines()[1:]] == ["revoked", "open"]
    assert error == ""
