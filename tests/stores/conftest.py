"""Gives stores under test more time, except in tests that are about a store without it."""

import sys
from collections.abc import Iterator

import pytest

from capport.stores.redis import redis_link, redis_store
from capport.stores.sqlite import database, housekeeping, locks, store
from conftest import SOON


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit on a busy machine can take longer than a revocation waits for one."""
    for module in (store, housekeeping):
        monkeypatch.setattr(module, "PUT_SECONDS", SOON)
    monkeypatch.setattr(store, "REVOKE_SECONDS", SOON)
    monkeypatch.setattr(locks, "LOCK_SECONDS", SOON)
    monkeypatch.setattr(redis_store, "TAKEN_SECONDS", SOON)
    monkeypatch.setattr(redis_store, "OPEN_SECONDS", SOON)
    for wait in ("BEAT", "RETRY"):  # but work of each second does not wait that long
        monkeypatch.setattr(redis_link, wait, 0.05)


@pytest.fixture
def in_haste(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real time limits, for tests that lock the file."""
    for module in (store, housekeeping):
        monkeypatch.setattr(module, "PUT_SECONDS", database.PUT_SECONDS)
    monkeypatch.setattr(store, "REVOKE_SECONDS", database.REVOKE_SECONDS)


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads switch after 0.1 ms, not 5: races happen sooner, and writers wait less."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(usual)
