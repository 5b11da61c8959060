"""Records that every router of a fleet may change, one change after the other: Redis decides.

Each change is one script in Redis, which compares before it sets. A router keeps a copy of every
record on its disk, and puts back what Redis lost. Until every router that could know more has done
that, Redis takes no change that could be wrong without it. README.md in this folder has the design.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import batched
from typing import Any

from capport.stores import AwayError, Copy, Rewrite, StoreError
from capport.stores.redis.redis_client import READ, Command, RedisClient, change_id, find_primary
from capport.stores.redis_url import RedisUrl

logger = logging.getLogger(__name__)

RECORD = "capport:record:"
CHANGES = "capport:record-changes"
ROUTERS = "capport:record-routers"

QUIET = 60.0
"""Seconds without a sign of life after which a router that has put everything back is forgotten.

The others have read all that it wrote, and it has to compare everything before it writes again."""
LOST = 3600.0
"""Seconds after its last sign of life that others wait for a router to put back what it knows."""
KEPT_CHANGES = 10_000
TOGETHER = 200  # records in one transaction
_SIGN_OF = re.compile(r"r:[0-9a-f]{16}", re.ASCII)
TRIES = 20  # times that a change is made again because another one was quicker

# The hash has the generation of the data (`of`), and for each router when it was last seen, and its
# name (`r:ID`), whether it has put back what it knows (`b:ID`), and the ids of the routers that it
# has on its disk (`k:ID`). A generation begins with what changes if Redis is restarted or replaced
# by a replica. Each script checks that, because redis-py may reconnect without reporting it.
_SHARED = """
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
local identity = string.match(info, 'run_id:(%x+)') .. string.match(info, 'master_replid:(%x+)')
local of = redis.call('HGET', KEYS[1], 'of') or ''
local is_of_this = string.sub(of, 1, #identity) == identity
local function is_back(router) return redis.call('HEXISTS', KEYS[1], 'b:' .. router) == 1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# ARGV: a random text; the router and its name; the generation that it knows; and each router of
# that generation, with its last sign. The script uses these only if data was lost since.
_JOIN = f"""{_SHARED}
if not is_of_this then
  of = identity .. ARGV[1]
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'of', of)
end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('XADD', KEYS[2], '*', 'of', of) end
redis.call('HSET', KEYS[1], 'r:' .. ARGV[2], string.format('%.0f %s', now, ARGV[3]))
local was_back = is_back(ARGV[2])
if not was_back then
  local said = redis.call('HGETALL', KEYS[1])
  for i = 1, #said, 2 do
    if string.sub(said[i], 1, 2) == 'k:' then
      redis.call('HSET', KEYS[1], said[i], (string.gsub(said[i + 1], ARGV[2], '')))
    end
  end
end
for i = 5, of ~= ARGV[4] and #ARGV or 0, 2 do
  redis.call('HSETNX', KEYS[1], 'r:' .. ARGV[i], ARGV[i + 1])
end
return {{of, was_back and 1 or 0}}
"""
_LEAVE = f"""{_SHARED}
if is_of_this and of == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'r:' .. ARGV[2], 'b:' .. ARGV[2], 'k:' .. ARGV[2])
end
"""
# ARGV: the generation; the router and its name; the routers that it has on its disk; 1 if it has
# put everything back; QUIET; LOST.
_SIGN = f"""{_SHARED}
if not is_of_this or of ~= ARGV[1] then return {{}} end
if ARGV[5] == '1' then redis.call('HSET', KEYS[1], 'b:' .. ARGV[2], 1) end
if not is_back(ARGV[2]) then return {{}} end
redis.call('HSET', KEYS[1], 'r:' .. ARGV[2], string.format('%.0f %s', now, ARGV[3]))
redis.call('HSET', KEYS[1], 'k:' .. ARGV[2], ARGV[4])
local said = redis.call('HGETALL', KEYS[1])
for i = 1, #said, 2 do
  local router = string.match(said[i], '^r:(.*)$')
  local seen = tonumber(string.match(said[i + 1], '^%d+') or 0)
  if router and now - seen > tonumber(is_back(router) and ARGV[6] or ARGV[7]) then
    redis.call('HDEL', KEYS[1], 'r:' .. router, 'b:' .. router, 'k:' .. router)
  end
end
return {{string.format('%.0f', now), redis.call('HGETALL', KEYS[1])}}
"""
# ARGV: the generation; the router; 1 if every router must have put back what it knows, and have
# this one on its disk; then for each record what is there, what to put there, and until when.
_CHANGE = f"""{_SHARED}
if not is_of_this or of ~= ARGV[1] then return {{'lost'}} end
if ARGV[3] == '1' then
  if not is_back(ARGV[2]) then return {{'lost'}} end
  local said = redis.call('HGETALL', KEYS[1])
  for i = 1, #said, 2 do
    local router = string.match(said[i], '^r:(.*)$')
    if router and not is_back(router) then return {{'awaits', said[i + 1]}} end
    local knows = router and router ~= ARGV[2] and redis.call('HGET', KEYS[1], 'k:' .. router)
    if knows and not string.find(knows, ARGV[2], 1, true) then return {{'unheard', said[i + 1]}} end
  end
end
for i = 3, #KEYS do
  if (redis.call('GET', KEYS[i]) or '') ~= ARGV[3 * i - 5] then return {{'changed'}} end
end
for i = 3, #KEYS do
  local before, text, till = ARGV[3 * i - 5], ARGV[3 * i - 4], ARGV[3 * i - 3]
  if text ~= before then
    redis.call('SET', KEYS[i], text)
    if till ~= '0' then redis.call('PEXPIREAT', KEYS[i], till) end
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', {KEPT_CHANGES}, '*', 'k', KEYS[i], 'r', text)
  end
end
return {{'done'}}
"""


class _LostError(Exception):
    """Redis is not what it was, or forgot something: everything is compared again."""


class _Connection:
    """A connection that any thread may use, one at a time. Its methods raise AwayError.

    It ends with its first error.
    """

    def __init__(self, url: RedisUrl) -> None:
        self._using = threading.Lock()
        self._runner = asyncio.Runner()
        self.generation, self.position = b"", b""
        self.is_ours = False  # True if no other process of this router had joined before
        self.error: AwayError | None = None
        try:
            place, secret = self._runner.run(find_primary(url))
            self._client = RedisClient(place, url, secret)
        except BaseException:
            self._runner.close()
            raise

    def ask(self, *command: object) -> Any:
        """The answer to one command."""
        return self._run(lambda: self._client.ask(*command))

    def together(self, *commands: Command) -> list[Any]:
        """The answers to commands that Redis carries out as one transaction."""
        return self._run(lambda: self._client.together(commands))

    def _run[Answer](self, asking: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        with self._using:
            if self.error is not None:
                raise self.error
            try:
                return self._runner.run(asking())
            except AwayError as error:
                self.error = error
                raise

    def close(self) -> None:
        """Closes it."""
        with self._using:
            self.error = self.error or AwayError(f"Redis at {self._client.place}: closed")
            self._runner.run(self._client.aclose())
            self._runner.close()


class RecordBook:
    """Implements `Book` with the Redis at `url`."""

    def __init__(self, url: RedisUrl, copy: Copy) -> None:
        self._url, self._copy, self._name = url, copy, url.server
        self._connection: _Connection | None = None
        self._ending = threading.Lock()
        self._waits: str | None = None
        self._fault: str | None = f"{self._name}: not connected yet"
        self._refused = 0

    @property
    def fault(self) -> str | None:
        """Why nothing can be changed now; None while it can."""
        return self._fault

    def look(self) -> bool:
        """Connects if needed, reads what changed, and sends what this router alone knows."""
        connection = self._connection
        try:
            try:
                if connection is not None:
                    self._follow(connection)
            except _LostError as lost:
                logger.info(f"{self._name} {lost}; this router compares everything")
                self._disconnect(connection)
                connection = None
            if connection is None:
                self._connection = self._joined()
            self._fault = self._waits
            return True
        except (StoreError, _LostError) as error:
            self._disconnect(connection)
            self._fault = str(error)
            return False

    def change(self, keys: Sequence[str], change: Rewrite, *, completely: bool = True) -> None:
        """Changes the records under `keys` in one step: all of them, or none."""
        if (connection := self._connection) is None:
            raise AwayError(self._fault or self._name)
        try:
            self._change(connection, keys, change, completely=completely)
        except AwayError as error:
            if connection.error is error and self._disconnect(connection):
                self._fault = str(error)  # callers get it at once, until it is connected again
            raise
        except _LostError as lost:
            raise AwayError(f"{self._name} {lost}; its records are being put back") from None

    def close(self) -> None:
        """Leaves the other routers, and closes the connection."""
        if (connection := self._connection) is not None and connection.is_ours:
            with contextlib.suppress(AwayError):  # otherwise they forget this router after QUIET
                mine = (connection.generation, self._copy.router)
                connection.ask("EVAL", _LEAVE, 1, ROUTERS, *mine)
        self._disconnect(connection)
        self._fault = f"{self._name}: closed"

    # --- reading ---

    def _joined(self) -> _Connection:
        """A new connection. On return, Redis and the copy have the same records."""
        connection, mine = _Connection(self._url), self._copy
        try:
            of, roster = mine.roster()
            says = (secrets.token_hex(8), mine.router, socket.gethostname(), of)
            signs = (text for sign in roster.items() for text in sign)
            (connection.generation, was_back), last = connection.together(
                ("EVAL", _JOIN, 2, ROUTERS, CHANGES, *says, *signs),
                ("XREVRANGE", CHANGES, "+", "-", "COUNT", 1),
            )
            connection.position, connection.is_ours = last[0][0], not was_back
            lacking, cursor = set(mine.keys()), None
            while cursor != 0:
                cursor, keys = connection.ask(
                    "SCAN", cursor or 0, "MATCH", f"{RECORD}*", "COUNT", READ
                )
                values = connection.ask("MGET", *keys) if keys else []
                found = zip(map(_key_of, keys), values, strict=True)
                lacking.difference_update(self._keep(found))
            mine.lack(lacking)
            self._send(connection)
            connection.ask(*self._sign(connection, is_back=True))
            self._follow(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _follow(self, connection: _Connection) -> None:
        """Shows a sign of life, and reads what changed. Raises _LostError."""
        while True:
            said, changes, first = connection.together(
                self._sign(connection),
                ("XRANGE", CHANGES, b"(" + connection.position, "+", "COUNT", READ),
                ("XRANGE", CHANGES, "-", "+", "COUNT", 1),
            )
            if not first or change_id(first[0][0]) > change_id(connection.position):
                raise _LostError("has trimmed changes that were not read")
            if changes:
                named = [fields for _, fields in changes if b"k" in fields and b"r" in fields]
                self._keep((_key_of(fields[b"k"]), fields[b"r"]) for fields in named)
                connection.position = changes[-1][0]
            if len(changes) < READ:
                break
        self._signed(connection, said)
        self._send(connection)

    def _sign(self, connection: _Connection, *, is_back: bool = False) -> Command:
        mine = (self._copy.router, socket.gethostname(), " ".join(self._copy.roster()[1]))
        seconds = (round(QUIET * 1000), round(LOST * 1000))
        return ("EVAL", _SIGN, 1, ROUTERS, connection.generation, *mine, int(is_back), *seconds)

    def _signed(self, connection: _Connection, said: list[Any]) -> None:
        """Keeps which routers there are. Everything that they wrote before has been read."""
        if not said:
            raise _LostError("lost data, or has not heard from this router for a while")
        now, members = int(said[0]), said[1]
        texts = {_text(name): _text(value) for name, value in batched(members, 2)}
        roster = {name[2:]: sign for name, sign in texts.items() if _SIGN_OF.fullmatch(name)}
        self._waits, mine = None, self._copy.router
        for router, sign in roster.items():
            if f"b:{router}" not in texts:
                self._waits = self._awaiting("awaits", sign)
            elif router != mine and mine not in texts.get(f"k:{router}", ""):
                self._waits = self._awaiting("unheard", sign)
        self._copy.looked(now, _text(connection.generation), roster)

    def _awaiting(self, what: str, sign: str) -> str:
        router = f"the router {sign.partition(' ')[2][:64]}"
        if what == "unheard":
            return f"{self._name}: {router} has not heard of this one yet"
        return (
            f"{self._name} lost its data, and {router} has not put back what it knows;"
            f" the others wait for it until {LOST / 60:g} minutes after its last sign of life"
        )

    def _keep(self, found: Iterable[tuple[str, bytes | None]]) -> list[str]:
        """Joins what was found into the copy. Returns the keys."""
        texts = {key: _text(value) for key, value in found if value is not None}
        for key, why in self._copy.keep(texts).items():
            self._refuse(key, why)
        return [*texts]

    # --- changing ---

    def _send(self, connection: _Connection) -> None:
        for keys in batched(self._copy.unsent(), TOGETHER):
            self._change(connection, keys, None, completely=False)

    def _change(
        self,
        connection: _Connection,
        keys: Sequence[str],
        change: Rewrite | None,
        *,
        completely: bool,
    ) -> None:
        """Changes records in Redis, then in the copy. Raises _LostError.

        `change` gets what is in Redis joined with the copy. With None, that is what is written.
        """
        for _ in range(TRIES):
            (seconds, micros), values = connection.together(
                ("TIME",), ("MGET", *(RECORD + key for key in keys))
            )
            theirs = dict(zip(keys, (_text(value or b"") for value in values), strict=True))
            records, refused = self._copy.joined({k: text or None for k, text in theirs.items()})
            for key, why in refused.items():
                self._refuse(key, why)
                if change is not None:
                    raise AwayError(f"{self._name}: {key} does not fit: {why}") from why
            if change is not None:
                records |= change(records, seconds * 1000 + micros // 1000)
            names = [key for key in keys if key in records or change is not None]
            arguments: list[str | int] = []
            for key in names:
                text = records.get(key, "")
                arguments += (theirs[key], text, self._copy.until(text) if text else 0)
            answer, *more = connection.ask(
                *("EVAL", _CHANGE, 2 + len(names), ROUTERS, CHANGES),
                *(RECORD + key for key in names),
                *(connection.generation, self._copy.router, int(completely), *arguments),
            )
            match answer:
                case b"done":
                    self._copy.keep(records)
                    return
                case b"lost":
                    raise _LostError("lost data, or has not heard from this router for a while")
                case b"awaits" | b"unheard":
                    raise AwayError(self._awaiting(_text(answer), _text(more[0])))
        raise AwayError(f"{self._name}: other routers keep changing this record; try again")

    # --- helpers ---

    def _refuse(self, key: str, why: ValueError) -> None:
        self._refused += 1
        if self._refused == 1 or self._refused % 1000 == 0:
            logger.error(
                f"{self._name}: refused the record {key!r:.100} ({why});"
                f" refused so far: {self._refused}"
            )

    def _disconnect(self, connection: _Connection | None) -> bool:
        """Closes `connection`, if it is the present one; returns whether it is."""
        with self._ending:
            if connection is None or self._connection is not connection:
                return False
            self._connection = None
        connection.close()
        return True


def _key_of(name: bytes) -> str:
    return _text(name).removeprefix(RECORD)


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
