"""A store under test gives nothing up for want of time, unless that is what the test is about."""

import sys
from collections.abc import Iterator

import pytest

from capport.stores.redis import redis_link, redis_store
from capport.stores.sqlite import database, housekeeping, locks, store
from conftest import SOON


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit on a busy machine can take longer than a revocation waits for another one."""
    for module in (store, housekeeping):
        monkeypatch.setattr(module, "PUT_SECONDS", SOON)
    monkeypatch.setattr(store, "REVOKE_SECONDS", SOON)
    monkeypatch.setattr(locks, "LOCK_SECONDS", SOON)
    monkeypatch.setattr(redis_store, "TAKEN_SECONDS", SOON)
    monkeypatch.setattr(redis_store, "OPEN_SECONDS", SOON)
    for wait in ("BEAT", "RETRY"):  # but nothing that happens each second is waited for that long
        monkeypatch.setattr(redis_link, wait, 0.05)


@pytest.fixture
def in_haste(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in earnest: for who locks the file and sees what comes of it."""
    for module in (store, housekeeping):
        monkeypatch.setattr(module, "PUT_SECONDS", database.PUT_SECONDS)
    monkeypatch.setattr(store, "REVOKE_SECONDS", database.REVOKE_SECONDS)


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads take turns after 0.1 ms, not 5: races are met sooner, and writers wait less."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(usual)
