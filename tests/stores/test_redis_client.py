"""How a router connects to Redis: URL, user, password, TLS, and the errors if it cannot."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import requires
from capport.core.place import Place, parse_host
from capport.stores import AwayError
from capport.stores.redis import redis_client
from capport.stores.redis.redis_client import RedisClient, credentials, find_primary
from capport.stores.redis_url import RedisUrl
from login.certificates import certificate
from ports import free_port
from stores.contract import MAC, session
from stores.redis_server import Fleet, RedisServer, server

pytestmark = requires.tool("redis-server")

PASSWORD = "pa55 wörd"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD", "PASSWORD_FILE", "CA"):
        monkeypatch.delenv(f"CAPPORT_REDIS_{name}", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that lets in nobody but ann."""
    with server(tmp_path / "redis") as running:
        running.ask("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        running.ask("ACL", "SETUSER", "default", "off")
        yield running


def test_a_password_comes_from_a_file_that_nobody_else_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "redis-password"
    file.write_text(f"{PASSWORD}\nmore\n")
    file.chmod(0o640)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credentials().password == PASSWORD
    assert PASSWORD not in repr(credentials())
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(AwayError, match="No such file"):
        credentials()
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD_FILE", str(file))
    file.chmod(0o644)
    with pytest.raises(AwayError, match="other users may read"):
        credentials()
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD", "another")
    assert credentials().password == "another"


async def test_the_user_gets_in_by_the_password_and_no_error_shows_it(
    guarded: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AwayError, match="refuses this user"):
        await find_primary(guarded.url)
    monkeypatch.setenv("CAPPORT_REDIS_USER", "ann")
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD", "wrong pa55")
    with pytest.raises(AwayError, match="set CAPPORT_REDIS_USER") as refused:
        await find_primary(guarded.url)
    assert "wrong pa55" not in f"{refused.value!r} {refused.value.__cause__!r}"
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD", PASSWORD)
    place, secret = await find_primary(guarded.url)
    client = RedisClient(place, guarded.url, secret)
    assert await client.ask("ACL", "WHOAMI") == b"ann"
    await client.aclose()


def test_a_store_says_that_it_is_refused_without_the_password_and_works_without_redis(
    guarded: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CAPPORT_REDIS_USER", "ann")
    monkeypatch.setenv("CAPPORT_REDIS_PASSWORD", "wrong pa55")
    caplog.set_level(logging.DEBUG)
    fleet = Fleet(tmp_path, guarded)
    store = fleet.open()
    store.put(session())
    assert store.find((MAC,), 1000.0)
    assert "refuses this user" in (store.fault or "")
    fleet.close()
    assert "wrong pa55" not in caplog.text


async def test_tls_is_checked_by_name_and_by_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "localhost")
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    with server(tmp_path / "redis", *tls, "--tls-auth-clients", "no"):
        named = RedisUrl((Place(parse_host("localhost"), port),), tls=True)
        with pytest.raises(AwayError, match="cannot be reached"):
            await find_primary(named)
        monkeypatch.setenv("CAPPORT_REDIS_CA", str(cert))
        await find_primary(named)
        with pytest.raises(AwayError, match="cannot be reached"):
            await find_primary(RedisUrl((Place(parse_host("127.0.0.1"), port),), tls=True))


async def test_no_command_is_tried_twice_and_none_waits_longer_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "SECONDS", 0.2)
    with server(tmp_path) as running:
        client = RedisClient(running.url.places[0], running.url, credentials(), seconds=0.2)
        await client.ask("PING")
        running.freeze()
        began = asyncio.get_running_loop().time()
        with pytest.raises(AwayError, match=r"does not answer within 0\.2 s"):
            await client.ask("PING")
        assert asyncio.get_running_loop().time() - began < 1.5  # redis-py's own way takes 8 s
        await client.aclose()
        running.thaw()


async def test_a_redis_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(AwayError, match=f"Redis at 127.0.0.1:{port} cannot be reached"):
        await find_primary(RedisUrl((Place(parse_host("127.0.0.1"), port),)))


async def test_a_replica_is_not_written_to(tmp_path: Path) -> None:
    with server(tmp_path / "one") as one, server(tmp_path / "two") as two:
        two.ask("REPLICAOF", "127.0.0.1", str(one.port))
        with pytest.raises(AwayError, match="is a replica"):
            await find_primary(two.url)
        both = RedisUrl((*two.url.places, *one.url.places))
        assert (await find_primary(both))[0] == one.url.places[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol Error"),
        (b"*1\r\n" * 5000, "does not speak its protocol"),
        (b"*many\r\n", "does not speak its protocol"),
        (b"-MOVED 1 192.0.2.1:6379\r\n", "is part of a cluster"),
        (b":1\r\n", "does not say its role"),
    ],
)
async def test_what_no_redis_answers_is_said_in_a_sentence(answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while commands := (await reader.read(1000)).count(b"*"):
            writer.write(answer * commands)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as garbling:
        port = garbling.sockets[0].getsockname()[1]
        with pytest.raises(AwayError, match=said):
            await find_primary(RedisUrl((Place(parse_host("127.0.0.1"), port),)))
