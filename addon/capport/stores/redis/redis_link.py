"""Keeps a router's sessions and those in Redis the same, on a thread and an event loop of its own.

It connects, reads what changed, publishes what this router knows better, shows a sign of life each
second, and starts again when anything fails. Only a caller that wants to know whether Redis has
taken a change waits for it.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from itertools import islice
from typing import Any, Protocol

from capport import clock as clocks
from capport.core.client import ClientId
from capport.core.session import Instant
from capport.stores import AwayError
from capport.stores.record_json import RecordError
from capport.stores.redis.fleet_record import SKEW, FleetRecord, dump, parse
from capport.stores.redis.fleet_time import FleetTime
from capport.stores.redis.redis_client import (
    READ,
    SECONDS,
    ChangeId,
    RedisClient,
    change_id,
    find_primary,
)
from capport.stores.redis_url import RedisUrl

logger = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds that sessions of other routers stay in force after Redis has last answered."""
BEAT = 1.0  # seconds between two signs of life
RETRY = 0.5  # seconds until the next attempt after a failure
BLOCK = 0.5  # seconds that Redis waits for a change before it answers
LATE = 5.0  # seconds: after such a pause, changes may have been trimmed before they were read
KEPT_CHANGES = 100_000
KEPT_ROUTERS = 86_400_000  # milliseconds that Redis remembers a router after its last sign of life
TOGETHER = 200  # records in one transaction

KEY = "capport:client:"
CHANGES = "capport:changes"
EPOCH = "capport:epoch"
ROUTER = "capport:router:"
WORKER = "capport:worker:"


class OwnSessions(Protocol):
    """The sessions of this router, as the link sees them. Called on a thread, one at a time."""

    router: str

    def merge(self, found: Sequence[tuple[ClientId, FleetRecord]]) -> list[bool]:
        """Takes over what is in Redis. Returns for each record whether this router knows more."""

    def records(self, clients: Iterable[ClientId]) -> dict[ClientId, FleetRecord]:
        """What this router knows about these clients."""

    def clients(self) -> list[ClientId]:
        """Every client that this router knows anything about."""

    def taken(self, records: dict[ClientId, FleetRecord]) -> None:
        """Redis has these records now."""

    def renewed(self, lease: Instant) -> None:
        """Everything that was in Redis is here: foreign sessions are in force until `lease`."""

    def tick(self) -> None:
        """Does what is due each second."""

    def summary(self) -> dict[str, object]:
        """What this router tells the others about itself."""


class _AgainError(Exception):
    """What was read may be incomplete, or of other data: connect and compare again, at once."""


class RedisLink:
    """The link to the Redis at `url`.

    With `wants`, it reads only the clients for which `wants` is true, and shows no sign of life:
    for a command beside the portal of the same router. The key of the signs of life is `sign` and
    the router's id.
    """

    def __init__(
        self,
        url: RedisUrl,
        sessions: OwnSessions,
        time: FleetTime,
        clock: Callable[[], Instant],
        *,
        wants: Callable[[ClientId], bool] | None = None,
        sign: str = ROUTER,
    ) -> None:
        self._url, self._name = url, url.server
        self._sessions, self._time, self._clock = sessions, time, clock
        self._wants, self._sign = wants, sign + sessions.router
        self.fault: str | None = f"{url.server}: not connected yet"
        self.refused = 0  # records in Redis that did not fit
        self._tried = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._work = ThreadPoolExecutor(1, "redis-sessions")  # what may wait for the disk
        self._connection: tuple[RedisClient, asyncio.TaskGroup] | None = None
        self._identity: tuple[object, ...] = ()
        self._position: ChangeId = (0, 0)
        self._promise: tuple[Instant, ChangeId] | None = None
        self._dirty: dict[ClientId, list[Future[bool]]] = {}
        self._has_dirty = asyncio.Event()
        self._in_flight: dict[ClientId, ChangeId] = {}
        self._skewed = self._evicts = self._is_copied = False
        self._boot = clocks.boot_id()
        self._is_shown = False  # a sign of life of this process is in Redis
        self._thread = threading.Thread(target=self._run_loop, name="redis-link", daemon=True)

    # --- from other threads ---

    def start(self, seconds: float) -> None:
        """Starts, and waits at most `seconds` until all has been read, or an attempt has failed."""
        self._thread.start()
        self._tried.wait(seconds)

    def publish(self, clients: Iterable[ClientId], seconds: float = 0.0) -> bool:
        """Sends what this router knows about `clients`, now or when Redis is back.

        Returns whether Redis has taken it within `seconds`.
        """
        waiting = [Future[bool]()] if seconds and self.fault is None else []
        some = list(clients)
        try:
            self._loop.call_soon_threadsafe(self._add, some, *waiting)
        except RuntimeError:  # the loop is closed: what was not sent is compared at the next start
            return False
        try:
            return bool(waiting) and waiting[0].result(seconds)
        except NotYet:
            self._report(f"{self._name} has not taken a change within {seconds:g} s")
            return False

    def fetch(self, client: ClientId, seconds: float) -> tuple[ClientId, FleetRecord] | None:
        """What Redis has about `client`; None if nothing, or if it does not answer in time."""
        if self.fault is not None:
            return None
        future = asyncio.run_coroutine_threadsafe(self._fetch(client), self._loop)
        try:
            return future.result(seconds)
        except NotYet:
            future.cancel()
            self._report(f"{self._name} has not answered within {seconds:g} s")
        except (AwayError, CancelledError):
            pass  # the connection has ended, and its end is reported
        return None

    def stop(self) -> None:
        """Ends the link."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._work.shutdown()
        self.fault = f"{self._name}: the store is closed"

    # --- on the loop ---

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        stopping = asyncio.ensure_future(self._stopping.wait())
        while not stopping.done():
            session = asyncio.ensure_future(self._connected())
            await asyncio.wait((session, stopping), return_when=asyncio.FIRST_COMPLETED)
            wait = RETRY
            if session.done():
                wait = 0.0 if self._ended(session) else RETRY
            else:
                session.cancel()
                await asyncio.wait((session,))
            self._give_up_waiting()
            self._tried.set()
            await asyncio.wait((stopping,), timeout=wait)
        stopping.cancel()

    def _ended(self, session: asyncio.Future[None]) -> bool:
        """Reports why a connection ended. Returns whether to connect again at once."""
        error = session.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, _AgainError):
            logger.info(f"{self._name}: {error}")
            return True
        if isinstance(error, AwayError):
            self._report(str(error))
        else:  # the edge: without the link no revocation by another router takes effect
            self._report(f"{self._name}: {error!r}")
            logger.error("The link to Redis failed; it tries again", exc_info=error)
        return False

    async def _connected(self) -> None:
        """One connection, until something fails. Raises AwayError, _AgainError."""
        place, secret = await find_primary(self._url)
        async with (
            contextlib.aclosing(RedisClient(place, self._url, secret)) as client,
            contextlib.aclosing(
                RedisClient(place, self._url, secret, seconds=SECONDS + BLOCK)
            ) as reader,
        ):
            self._promise = None
            await self._catch_up(client)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._beat(client))
                    tasks.create_task(self._read(reader))
                    tasks.create_task(self._publish(client))
                    self._connection = client, tasks
            finally:
                self._connection = None

    async def _fetch(self, client: ClientId) -> tuple[ClientId, FleetRecord] | None:
        """Asks in a task of the connection, so that no client is closed while it is in use."""
        if self._connection is None:
            raise AwayError(f"{self._name}: not connected")
        redis, tasks = self._connection
        asking = redis.ask("GET", KEY + client)
        try:
            task = tasks.create_task(asking)
        except RuntimeError:  # the connection is about to end
            asking.close()
            raise AwayError(f"{self._name}: not connected") from None
        value = await task
        return None if value is None else self._parsed(value)

    # --- reading ---

    async def _catch_up(self, client: RedisClient) -> None:
        """Continues after the last change that was read, if this is the same Redis as before.

        Otherwise Redis may have forgotten something, or know more than before, so everything is
        compared.
        """
        identity = await self._identity_of(client)
        if identity == self._identity:
            first = await client.ask("XRANGE", CHANGES, "-", "+", "COUNT", 1)
            if first and change_id(first[0][0]) <= self._position:
                return
        (last,) = await client.together([("XREVRANGE", CHANGES, "+", "-", "COUNT", 1)])
        missing = dict.fromkeys(await self._on_thread(self._sessions.clients))
        async for keys in client.pages(KEY):
            for client_id, is_better in (await self._compare(client, keys)).items():
                if is_better:  # even by a record that is over: it may end what Redis has
                    missing[client_id] = None
                else:
                    missing.pop(client_id, None)
        self._identity, self._position = identity, change_id(last[0][0]) if last else (0, 0)
        self._in_flight.clear()
        self._add(missing)

    async def _compare(self, client: RedisClient, keys: Sequence[bytes]) -> dict[ClientId, bool]:
        """Takes over the records at `keys`. Returns for each whether this router knows more."""
        if self._wants is not None:
            keys = [key for key in keys if self._wants(_client_of(key))]
        if not keys:
            return {}
        values = await client.ask("MGET", *keys)
        found = [one for value in values if value is not None and (one := self._parsed(value))]
        better = await self._on_thread(self._sessions.merge, found)
        return {one: is_better for (one, _), is_better in zip(found, better, strict=True)}

    async def _identity_of(self, client: RedisClient) -> tuple[object, ...]:
        """What changes if Redis is restarted, replaced by a replica, or emptied."""
        new = secrets.token_hex(8)
        server, memory, replication, is_new, epoch = await client.together(
            [
                ("INFO", "server"),
                ("INFO", "memory"),
                ("INFO", "replication"),
                ("SET", EPOCH, new, "NX"),
                ("GET", EPOCH),
            ]
        )
        self._check_eviction(memory)
        if is_new:  # the stream begins here, so that there is a place in it to continue from
            await client.ask("XADD", CHANGES, "*", "epoch", new)
        return server.get("run_id"), replication.get("master_replid"), epoch

    async def _read(self, reader: RedisClient) -> None:
        while True:
            began, after = clocks.now(), "{}-{}".format(*self._position)
            found = await reader.ask(
                *("XREAD", "COUNT", READ, "BLOCK", int(BLOCK * 1000), "STREAMS", CHANGES, after)
            )
            if clocks.now() - began > LATE:
                raise _AgainError("this router was stopped for a while")
            if found:
                await self._take(found[0][1])
            await self._renew()

    async def _take(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Takes over changes. Publishes a record about which this router knows more.

        If one of our changes is still under way, that is compared when it comes back: Redis carries
        out all changes in one order, and our change may have replaced one that we had not read.
        """
        found, ids = [], []
        for change, fields in entries:
            parsed = self._parsed(fields[b"r"]) if b"r" in fields else None
            if parsed and (self._wants is None or self._wants(parsed[0])):
                found.append(parsed)
                ids.append(change_id(change))
        better = await self._on_thread(self._sessions.merge, found)
        self._position = change_id(entries[-1][0])
        again = []
        for (client, _), its_id, is_better in zip(found, ids, better, strict=True):
            if its_id < self._in_flight.get(client, (0, 0)):
                continue
            self._in_flight.pop(client, None)
            if is_better:
                again.append(client)
        self._add(again)

    def _parsed(self, value: bytes) -> tuple[ClientId, FleetRecord] | None:
        try:
            return parse(value)
        except RecordError as error:
            self.refused += 1
            if self.refused == 1 or self.refused % 1000 == 0:
                logger.error(
                    f"{self._name}: refused a record ({error}): {value!r:.200};"
                    f" refused so far: {self.refused}"
                )
            return None

    # --- showing signs of life ---

    async def _beat(self, client: RedisClient) -> None:
        while True:
            sent = self._clock()
            commands = [
                ("TIME",),
                ("GET", EPOCH),
                ("XREVRANGE", CHANGES, "+", "-", "COUNT", 1),
                ("GET", self._sign),
                *self._sign_of_life(),
            ]
            (seconds, micros), epoch, last, sign, *_ = await client.together(commands)
            if epoch != self._identity[-1]:
                raise _AgainError("was emptied; this router compares everything")
            if self._sign.startswith(ROUTER) and self._wants is None:
                self._check_identity(sign)
            self._check_clock(self._time.measure(sent, self._clock(), seconds + micros / 1e6))
            self._promise = sent, change_id(last[0][0]) if last else (0, 0)
            await self._renew()
            await self._on_thread(self._sessions.tick)
            await asyncio.sleep(BEAT)

    def _sign_of_life(self) -> list[tuple[object, ...]]:
        """A write, so that a Redis which takes none does not renew the lease."""
        if self._wants is not None:
            return []
        said = {
            "v": 1,
            "name": socket.gethostname(),
            "boot": self._boot,
            "at": round(self._time.now() * 1000),
            "skew": round(self._time.skew, 3),
            "read": "{}-{}".format(*self._position),
            "unsent": len(self._dirty),
            "refused": self.refused,
            **self._sessions.summary(),
        }
        return [("SET", self._sign, json.dumps(said), "PX", KEPT_ROUTERS)]

    def _check_eviction(self, memory: Mapping[str, object]) -> None:
        evicts = bool(memory.get("maxmemory")) and memory.get("maxmemory_policy") != "noeviction"
        if evicts and not self._evicts:
            logger.warning(
                f"{self._name}: maxmemory-policy is {memory.get('maxmemory_policy')}, so it forgets"
                " records when it is full, instead of refusing more; set it to noeviction"
            )
        self._evicts = evicts

    def _check_identity(self, sign: bytes | None) -> None:
        """Logs that another machine has this router's id, because its files are a copy.

        `sign` is what was there before this router's sign of life. Several processes of one router
        may write it, but they have the boot in common.
        """
        other = sign_of_life(sign)
        theirs = other.get("boot") if self._is_shown else None
        is_copied = isinstance(theirs, str) and theirs != self._boot
        if is_copied and not self._is_copied:
            logger.error(
                f"{self._name}: the router {other.get('name')!r:.64} has the same id as this one,"
                " because its fleet.db is a copy: neither knows what the other grants. Delete"
                " fleet.db and sessions.db on one of them, and start it again"
            )
        self._is_copied, self._is_shown = is_copied, True

    def _check_clock(self, jump: float) -> None:
        if jump:
            logger.error(
                f"{self._name}: its clock has jumped by {jump:.1f} s, more than the {SKEW:g} s that"
                " may pass: sessions that were stored before end that much too early or late on"
                " other routers"
            )
        if (is_skewed := abs(self._time.skew) > SKEW) != self._skewed and is_skewed:
            logger.warning(
                f"This router's clock is {self._time.skew:.1f} s away from that of {self._name};"
                " sessions do not depend on it"
            )
        self._skewed = is_skewed

    async def _renew(self) -> None:
        """Renews the lease if all that was in Redis when it last answered has been read."""
        if self._promise is None or self._position < self._promise[1]:
            return
        sent, self._promise = self._promise[0], None
        await self._on_thread(self._sessions.renewed, sent + LEASE)
        self._report(None)
        self._tried.set()

    # --- publishing ---

    def _add(self, clients: Iterable[ClientId], *waiting: Future[bool]) -> None:
        for client in clients:
            self._dirty.setdefault(client, []).extend(waiting)
        if self._dirty:
            self._has_dirty.set()
        if self._connection is None:
            self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        for waiters in self._dirty.values():
            for waiting in waiters:
                if not waiting.done():
                    waiting.set_result(False)
            waiters.clear()

    async def _publish(self, client: RedisClient) -> None:
        while True:
            await self._has_dirty.wait()
            # Taken out first, so that a change meanwhile is sent too.
            batch = {one: self._dirty.pop(one) for one in [*islice(self._dirty, TOGETHER)]}
            try:
                await self._send(await self._on_thread(self._sessions.records, batch), client)
            except BaseException:
                for one, waiters in batch.items():
                    self._dirty[one] = waiters + self._dirty.get(one, [])
                raise
            for waiting in (waiting for waiters in batch.values() for waiting in waiters):
                if not waiting.done():
                    waiting.set_result(True)
            if not self._dirty:
                self._has_dirty.clear()

    async def _send(self, records: dict[ClientId, FleetRecord], client: RedisClient) -> None:
        commands: list[tuple[object, ...]] = []
        for one, record in records.items():
            text, lasts = dump(one, record), round((record.until() + 2 * SKEW) * 1000)
            commands += [
                ("SET", KEY + one, text, "PXAT", lasts),
                ("XADD", CHANGES, "MAXLEN", "~", KEPT_CHANGES, "*", "r", text),
            ]
        answers = await client.together(commands)
        for one, change in zip(records, answers[1::2], strict=True):
            if (mine := change_id(change)) > self._position:
                self._in_flight[one] = mine
        await self._on_thread(self._sessions.taken, records)

    # --- helpers ---

    async def _on_thread[*Args, Result](
        self, work: Callable[[*Args], Result], *args: *Args
    ) -> Result:
        return await self._loop.run_in_executor(self._work, work, *args)

    def _report(self, fault: str | None) -> None:
        before, self.fault = self.fault, fault
        if fault is not None and fault != before:
            logger.error(f"{fault}; sessions of other routers end in at most {LEASE:g} s")
        elif fault is None and before is not None:
            logger.info(f"{self._name}: works")


def sign_of_life(text: bytes | None) -> dict[str, Any]:
    """A sign of life as it was written; empty if it is not one."""
    try:
        said = json.loads(text or b"")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _client_of(key: bytes) -> ClientId:
    return ClientId(key.decode(errors="replace").removeprefix(KEY))
