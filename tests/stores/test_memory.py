"""The store in memory keeps the contract of every store."""

import pytest
from hypothesis import settings

from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores import SessionStore
from capport.stores.memory import MemoryStore
from stores.contract import FakeTime, Shared, StoreContract, StoreMachine


class OneMemory:
    """A dict cannot be shared with another process."""

    lasting = False

    def __init__(self) -> None:
        self.time = FakeTime()
        self._store = MemoryStore()

    def open(self) -> SessionStore:
        return self._store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def shared(self) -> Shared:
        return OneMemory()


def test_devices_that_are_made_up_do_not_fill_the_memory() -> None:
    store, minute = MemoryStore(), 60.0
    store.put(Session(ClientId("192.0.2.7"), 0.0, 1e9))
    for number in range(20_000):
        mac = ClientId(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        store.put(Session(mac, float(number), number + minute))
    assert len(list(store.sessions())) < 5000
    assert store.find((ClientId("192.0.2.7"),), 20_000.0)
    assert store.find((mac,), 20_000.0)


class MemoryMachine(StoreMachine):
    def make(self) -> Shared:
        return OneMemory()


MemoryMachine.TestCase.settings = settings(max_examples=100, deadline=None)
TestMemoryMachine = MemoryMachine.TestCase
