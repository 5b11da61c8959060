"""Sessions in Redis: the contract of every store, on one router and on two."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

import requires
from capport.core.client import ClientId
from capport.stores import SessionStore
from stores.contract import Shared, StoreContract, StoreMachine
from stores.redis_server import PROGRAMS, Fleet, RedisServer, server

pytestmark = requires.tool("redis-server")


@pytest.fixture(params=PROGRAMS or ["redis-server"], scope="module")
def redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    requires.check(pytestmark)
    with server(tmp_path_factory.mktemp("redis"), program=request.param) as running:
        yield running


@pytest.fixture(params=[1, 2], ids=["one_router", "two_routers"])
def fleet(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    redis.ask("FLUSHALL")
    fleet = Fleet(tmp_path, redis, routers=request.param)
    yield fleet
    fleet.close()


class TestRedisStore(StoreContract):
    @pytest.fixture
    def shared(self, fleet: Fleet) -> Shared:
        return fleet


class RedisMachine(StoreMachine):
    routers = 1
    server: RedisServer | None = None

    def make(self) -> Shared:
        self.folder = Path(tempfile.mkdtemp())
        if RedisMachine.server is None:
            RedisMachine.server = RedisServer(Path(tempfile.mkdtemp()))
        RedisMachine.server.ask("FLUSHALL")
        return Fleet(self.folder, RedisMachine.server, routers=self.routers)

    def ends(self, store: SessionStore) -> dict[ClientId, tuple[float, float | None]]:
        found = [store.find((client,), self.time.now) for client in self.CLIENTS]
        return {s.client: (replace(s, lease=float("inf")).ends, s.idle) for s in found if s}

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder, ignore_errors=True)


class TwoRouters(RedisMachine):
    routers = 2


for machine in (RedisMachine, TwoRouters):
    machine.TestCase.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
TestRedisMachine = RedisMachine.TestCase
TestTwoRouters = TwoRouters.TestCase


@pytest.fixture(scope="module", autouse=True)
def the_machines_server() -> Iterator[None]:
    yield
    if RedisMachine.server is not None:
        RedisMachine.server.kill()
