"""One connection to Redis, with bounded waits and no retries, and its errors as sentences.

redis-py's default retries turn a wait of 0.3 s into one of 8 s, so they are off: `redis_link.py`
decides when to try again. The user and the password come from the environment or from a file, are
read for each connection, and never get into a URL, a log or an error.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from capport.core.place import Place, parse_host
from capport.stores import AwayError
from capport.stores.redis_url import RedisUrl

SECONDS = 2.0
"""How long one command may take. A Redis that is slower counts as away."""
_SECRETS = "CAPPORT_REDIS_USER and CAPPORT_REDIS_PASSWORD_FILE"

_FAILURES = (exceptions.RedisError, OSError, ValueError, RecursionError)
"""What redis-py raises; the last two for what no Redis sends."""

READ = 500  # changes, or keys, read at a time

type Command = tuple[object, ...]
type ChangeId = tuple[int, int]
"""The id of an entry in a stream: when it was made, in milliseconds, and its number among those."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user and the password that Redis gets from us; None if not set."""

    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return "Credentials(...)"


def credentials() -> Credentials:
    """Reads CAPPORT_REDIS_USER, and CAPPORT_REDIS_PASSWORD or CAPPORT_REDIS_PASSWORD_FILE.

    Without a password there, it reads the file `redis-password`, if systemd passes one
    (LoadCredential=). Raises AwayError if a file cannot be read, or if other users may read it.
    """
    user = os.environ.get("CAPPORT_REDIS_USER") or None
    if password := os.environ.get("CAPPORT_REDIS_PASSWORD"):
        return Credentials(user, password)
    if named := os.environ.get("CAPPORT_REDIS_PASSWORD_FILE"):
        return Credentials(user, _password_in(Path(named)))
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        passed = Path(folder) / "redis-password"
        if passed.exists():
            return Credentials(user, _password_in(passed))
    return Credentials(user)


def _password_in(path: Path) -> str:
    try:
        with path.open() as file:
            mode, password = os.fstat(file.fileno()).st_mode, file.readline(4096)
    except UnicodeDecodeError:
        raise AwayError(f"{path}: not text") from None
    except OSError as error:
        raise AwayError(f"{path}: {error.strerror}") from None
    if mode & 0o007:
        raise AwayError(f"{path}: other users may read the password in it; chmod 600 it")
    return password.rstrip("\r\n")


class RedisClient:
    """One connection to the Redis at `place`. Its methods raise AwayError."""

    def __init__(
        self, place: Place, url: RedisUrl, secret: Credentials, *, seconds: float = SECONDS
    ) -> None:
        self.place, self._seconds = place, seconds
        self._redis = Redis(
            host=str(place.host),
            port=place.port,
            db=url.database,
            username=secret.user,
            password=secret.password,
            ssl=url.tls,
            ssl_ca_certs=os.environ.get("CAPPORT_REDIS_CA") or None,
            socket_timeout=seconds,
            socket_connect_timeout=SECONDS,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            single_connection_client=True,
            protocol=2,
        )

    async def ask(self, *command: object) -> Any:
        """The answer to one command."""
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except _FAILURES as error:
            raise AwayError(self._said(error)) from error

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands that Redis carries out as one transaction."""
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute())
        except _FAILURES as error:
            raise AwayError(self._said(error)) from error

    async def pages(self, prefix: str) -> AsyncIterator[list[bytes]]:
        """The keys that begin with `prefix`, some at a time. A key may come twice."""
        cursor = None
        while cursor != 0:
            cursor, keys = await self.ask("SCAN", cursor or 0, "MATCH", f"{prefix}*", "COUNT", READ)
            yield keys

    async def aclose(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(exceptions.RedisError, OSError):  # it is gone either way
            await self._redis.aclose()

    def _said(self, error: Exception) -> str:
        where, said = f"Redis at {self.place}", str(error)[:200]
        match error:
            case exceptions.AuthenticationError() | exceptions.NoPermissionError():
                return f"{where} refuses this user ({said}); set {_SECRETS}"
            case exceptions.TimeoutError() | TimeoutError():
                return f"{where} does not answer within {self._seconds:g} s"
            case exceptions.ReadOnlyError():
                return f"{where} is read-only: a replica, or its primary is being replaced"
            case exceptions.AskError():  # MOVED, too
                return f"{where} is part of a cluster; use one that stands alone, or Sentinels"
            case exceptions.OutOfMemoryError():
                return f"{where} is full ({said})"
        if "NOAUTH" in said or "NOPERM" in said:
            return f"{where} refuses this user ({said}); set {_SECRETS}"
        if isinstance(error, ValueError | RecursionError):
            return f"{where} does not speak its protocol ({said})"
        if isinstance(error, exceptions.ConnectionError | OSError):
            return f"{where} cannot be reached ({said})"
        return f"{where} refuses the command ({said})"


async def find_primary(url: RedisUrl) -> tuple[Place, Credentials]:
    """Where the primary is now. Asks each place of `url` until one is the primary or knows it.

    A place may be a Sentinel, which knows the primary that it watches. Raises AwayError.
    """
    failures = []
    for place in url.places:
        try:
            return await _primary_by(place, url)
        except AwayError as error:
            failures.append(str(error))
    raise AwayError("; ".join(failures))


async def _primary_by(place: Place, url: RedisUrl) -> tuple[Place, Credentials]:
    secret = credentials()
    direct = RedisUrl(url.places, 0, url.tls)  # a Sentinel has no numbered databases
    try:
        role = await _role(place, direct, secret)
    except AwayError as refused:
        if not isinstance(refused.__cause__, exceptions.AuthenticationError):
            raise
        try:  # a Sentinel need not know the user of the Redis that it watches
            role = await _role(place, direct, Credentials())
        except AwayError:
            raise refused from None
        if role[0] != b"sentinel":
            raise
    match role:
        case [b"master", *_]:
            return place, secret
        case [b"sentinel", [bytes(name)]]:
            return await _asked(place, direct, name), secret
        case [b"sentinel", names]:
            raise AwayError(f"Sentinel at {place} watches {len(names)} primaries instead of one")
    raise AwayError(f"Redis at {place} is a replica; name its primary, or its Sentinels")


async def _role(place: Place, url: RedisUrl, secret: Credentials) -> list[Any]:
    async with contextlib.aclosing(RedisClient(place, url, secret)) as client:
        role = await client.ask("ROLE")
    if not isinstance(role, list):
        raise AwayError(f"Redis at {place} does not say its role")
    return role


async def _asked(place: Place, url: RedisUrl, name: bytes) -> Place:
    for secret in (Credentials(), credentials()):
        try:
            async with contextlib.aclosing(RedisClient(place, url, secret)) as client:
                host, port = await client.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            return Place(parse_host(host.decode()), int(port))
        except AwayError as error:
            failure = error
        except (ValueError, TypeError):
            raise AwayError(f"Sentinel at {place} does not name the primary") from None
    raise failure


def change_id(text: bytes) -> ChangeId:
    """The id of an entry in a stream. Raises ValueError."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)
