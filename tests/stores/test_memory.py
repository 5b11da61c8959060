"""The store that forgets keeps the contract all the same."""

import pytest
from hypothesis import settings

from capport.stores import SessionStore
from capport.stores.memory import MemoryStore
from stores.contract import FakeTime, Shared, StoreContract, StoreMachine


class OneMemory:
    """Nothing can share a dict but the process itself."""

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


class MemoryMachine(StoreMachine):
    def make(self) -> Shared:
        return OneMemory()


MemoryMachine.TestCase.settings = settings(max_examples=100, deadline=None)
TestMemoryMachine = MemoryMachine.TestCase
