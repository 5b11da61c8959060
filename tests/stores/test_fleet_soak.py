"""Three routers in any order of grants, revocations and faults, against what must always hold.

Commands beside the portals grant and revoke, too.

By hand, for half an hour: CAPPORT_SOAK=2000 scripts/test tests/stores/test_fleet_soak.py -n 0 -s
CAPPORT_SEED repeats a run: the seed is printed.
"""

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import requires
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.redis.redis_link import LEASE
from capport.stores.redis.redis_store import RedisStore
from stores.contract import ADDRESS, MAC, OTHER, until
from stores.redis_server import Fleet, RedisServer

pytestmark = requires.tool("redis-server")

ROUTERS = st.integers(0, 2)
CLIENTS = st.sampled_from([MAC, ADDRESS, OTHER])


@dataclass(eq=False)
class Change:
    """A grant (until `expires`) or a revocation (None), and which routers must know of it.

    `taken`: Redis has it, so that each next change builds on it. `stands`: its router knew of all
    revocations before it.
    """

    router: int
    expires: float | None
    seen_by: set[int]
    taken: bool
    stands: bool


class FleetMachine(RuleBasedStateMachine):
    """What is acknowledged, and which routers must know it by now; `mended`: Redis works."""

    server: ClassVar[RedisServer]

    @initialize()
    def start(self) -> None:
        self.server.ask("FLUSHALL")
        self.folder = Path(tempfile.mkdtemp())
        self.fleet = Fleet(self.folder, self.server, routers=3)
        self.time = self.fleet.time
        self.stores: dict[int, RedisStore] = {n: self.fleet.open(n) for n in range(3)}
        self.changes: dict[ClientId, list[Change]] = {MAC: [], ADDRESS: [], OTHER: []}
        self.mend: Callable[[], object] | None = None
        self.sure = True  # that every router is connected now, or has noticed that it is not
        self.works()

    # --- what happens ---

    @rule(
        router=ROUTERS,
        client=CLIENTS,
        seconds=st.sampled_from([30, 600, 7200]),
        command=st.booleans(),
    )
    def grant(self, router: int, client: ClientId, seconds: float, command: bool) -> None:
        if (store := self.stores.get(router)) is not None:
            self.time.now += 1
            now = self.time.now
            with self.by(store, command) as caller:
                caller.put(Session(client, now, now + seconds, last_seen=now))
                stands = self.changed(router, client, now + seconds, caller).stands
            if stands:
                self.portal(command, lambda: store.find((client,), now) is not None)

    @rule(router=ROUTERS, client=CLIENTS, command=st.booleans())
    def revoke(self, router: int, client: ClientId, command: bool) -> None:
        if (store := self.stores.get(router)) is not None:
            self.time.now += 1
            with self.by(store, command) as caller:
                caller.revoke(client)
                self.changed(router, client, None, caller)
            self.portal(command, lambda: store.find((client,), self.time.now) is None)

    def portal(self, command: bool, acts: Callable[[], bool]) -> None:
        """The portal acts on its own change at once, and soon on a command's."""
        if command:
            until(acts, "what a command did, in force")
        assert acts(), "not in force"

    @contextlib.contextmanager
    def by(self, store: RedisStore, command: bool) -> Iterator[RedisStore]:
        """The store that a change is made by: the portal's, or a command's beside it."""
        if not command:
            yield store
            return
        with contextlib.closing(self.fleet.open(self.fleet.opened[store], about=())) as beside:
            yield beside

    @rule(seconds=st.sampled_from([1, 20, 500]))
    def advance(self, seconds: float) -> None:
        self.time.now += seconds

    @rule(router=ROUTERS)
    def stop_or_start_a_router(self, router: int) -> None:
        if router in self.stores:
            self.stores.pop(router).close()
        else:
            self.stores[router] = self.fleet.open(router)

    @rule()
    def cut_every_connection(self) -> None:
        if self.mend is None:
            self.server.ask("CLIENT", "KILL", "TYPE", "normal")
            self.sure = False

    @rule()
    def forget_everything(self) -> None:
        if self.mend is None:
            self.server.ask("FLUSHALL")
            self.forgotten()
            self.sure = False

    @rule()
    def save(self) -> None:
        if self.mend is None:
            self.server.ask("SAVE")

    @precondition(lambda self: self.mend is None)
    @rule(how=st.sampled_from(["kill", "freeze", "fill", "make read-only"]))
    def break_redis(self, how: str) -> None:
        if how == "kill":  # it starts again with what was saved last, or with nothing
            self.server.kill()
            self.forgotten()
            self.mend = self.server.start
        elif how == "freeze":
            self.server.freeze()
            self.mend = self.server.thaw
        elif how == "fill":
            self.server.ask("CONFIG", "SET", "maxmemory", "1")
            self.mend = lambda: self.server.ask("CONFIG", "SET", "maxmemory", "0")
        else:
            self.server.ask("REPLICAOF", "127.0.0.1", "1")
            self.mend = lambda: self.server.ask("REPLICAOF", "NO", "ONE")
        for store in self.stores.values():
            until(lambda store=store: store.fault is not None, "a fault")  # type: ignore[misc]

    @precondition(lambda self: self.mend is not None)
    @rule()
    def mend_redis(self) -> None:
        assert self.mend
        self.mend()
        self.mend = None
        self.works()

    # --- what must hold ---

    @invariant()
    def nobody_is_known_whom_the_router_itself_revoked_last(self) -> None:
        for router, store in getattr(self, "stores", {}).items():
            for client, changes in self.changes.items():
                if not store.find((client,), self.time.now):
                    continue
                mine = [n for n, one in enumerate(changes) if one.router == router]
                last = max((n for n in mine if changes[n].expires is None), default=-1)
                later = [one for one in changes[last + 1 :] if self.is_open(one)]
                assert later, f"{client} is known at {router} at {self.time.now}, after {changes}"

    @precondition(lambda self: self.mend is not None)
    @rule()
    def without_redis_a_lease_ends(self) -> None:
        self.time.now += LEASE + 1
        for store in self.stores.values():
            for client in self.changes:
                found = store.find((client,), self.time.now)
                assert found is None or found.lease == float("inf")

    @precondition(lambda self: getattr(self, "mend", 1) is None)
    @rule()
    def all_agree(self) -> None:
        """With every router up and Redis mended, all routers agree, and are right."""
        for router in range(3):
            if router not in self.stores:
                self.stores[router] = self.fleet.open(router)
        self.works()
        until(lambda: all(self.known(n) == self.known(0) for n in (1, 2)), "one answer")
        until(
            lambda: self.is_as_it_must_be(self.known(0)),
            f"at {self.time.now} {self.changes}: the right answer",
        )
        until(lambda: all(self.known(n) == self.known(0) for n in (1, 2)), "one answer")
        self.all_have_read_everything()
        for changes in self.changes.values():
            for change in changes:
                change.seen_by = {0, 1, 2}

    def all_have_read_everything(self) -> None:
        """Each router makes a last grant, which the others read after all else."""
        self.time.now += 1
        now = self.time.now
        for number, store in self.stores.items():
            store.put(Session(ClientId(f"192.0.2.20{number}"), now, now + 60))
        for store in self.stores.values():
            lasts = [ClientId(f"192.0.2.20{number}") for number in self.stores]
            until(
                lambda store=store, lasts=lasts: all(  # type: ignore[misc]
                    (found := store.find((last,), now)) and found.granted == now for last in lasts
                ),
                "the last word of each",
            )
        self.sure = True

    def is_as_it_must_be(self, known: set[ClientId]) -> bool:
        for client, changes in self.changes.items():
            if changes and changes[-1].expires is None and client in known:
                return False
            if changes and changes[-1].stands and self.is_open(changes[-1]) and client not in known:
                return False
        return True

    # --- helpers ---

    def changed(
        self, router: int, client: ClientId, expires: float | None, by: RedisStore
    ) -> Change:
        before = self.changes[client]
        revoked = [one for one in before if one.expires is None]
        works = self.sure and self.mend is None and by.fault is None
        stands = all(router in one.seen_by or (one.taken and works) for one in revoked)
        before.append(Change(router, expires, {router}, works, stands))
        return before[-1]

    def forgotten(self) -> None:
        """Redis may have forgotten everything that not every router has read yet."""
        for changes in self.changes.values():
            for change in changes:
                change.taken = False

    def is_open(self, change: Change) -> bool:
        return change.expires is not None and self.time.now < change.expires

    def known(self, router: int) -> set[ClientId]:
        store = self.stores[router]
        return {client for client in self.changes if store.find((client,), self.time.now)}

    def works(self) -> None:
        for store in self.stores.values():
            until(lambda store=store: store.fault is None, "the end of a fault")  # type: ignore[misc]

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        try:
            if self.mend is not None:
                self.mend_redis()
            self.all_agree()
        finally:  # a router that went on would be one of the next fleet's
            self.server.thaw_or_start()
            self.fleet.close()
            (self.server.folder / "dump.rdb").unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    yield running
    running.kill()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_fails_all_routers_come_to_one_answer_and_nothing_acknowledged_is_lost(
    redis: RedisServer,
) -> None:
    number = int(os.environ.get("CAPPORT_SEED") or random.randrange(1 << 32))
    print(f"CAPPORT_SEED={number}")
    FleetMachine.server = redis
    run_state_machine_as_test(
        seed(number)(FleetMachine),
        settings=settings(
            max_examples=int(os.environ.get("CAPPORT_SOAK") or 8),
            stateful_step_count=25,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # what depends on threads may not fail again, only smaller
            verbosity=Verbosity.debug,  # so each step is in the output
            suppress_health_check=[*HealthCheck],
        ),
    )
