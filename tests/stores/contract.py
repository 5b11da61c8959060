"""What any SessionStore must do: subclass `StoreContract`, and say how to open one.

A store's own test file gives a fixture `shared`, and makes a `StoreMachine` with its own `make`.
What `Shared.open` returns behaves like another process with the same sessions open. If they cannot
be shared, it may return the same store each time.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores import FullError, SessionStore
from conftest import SOON

MAC = ClientId("02:00:00:00:00:07")
ADDRESS = ClientId("192.0.2.7")
BOTH = ClientId("02:00:00:00:00:07@192.0.2.7")
OTHER = ClientId("2001:db8::7")


@dataclass
class FakeTime:
    """The boot clock, and which boot it is: whole seconds, so that sums of them are exact."""

    now: float = 1000.0
    boot: int = 1

    def clock(self) -> float:
        return self.now

    def boot_id(self) -> str:
        return f"boot {self.boot}"

    def reboot(self, now: float = 5.0) -> None:
        self.boot += 1
        self.now = now


class Shared(Protocol):
    """Sessions that several stores share; if `lasting`, they outlive the stores."""

    time: FakeTime
    lasting: bool

    def open(self) -> SessionStore: ...


def session(client: ClientId = MAC, now: float = 1000.0, **changes: Any) -> Session:
    """A session of an hour that began at `now`."""
    return replace(Session(client, now, now + 3600), **changes)


def until(true: Callable[[], bool], what: str = "it") -> None:
    """Waits for the work of another thread or process."""
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


class StoreContract:
    """The promises of `capport.stores.SessionStore`."""

    @pytest.fixture
    def store(self, shared: Shared) -> SessionStore:
        return shared.open()

    def test_what_was_put_is_found_with_every_field(self, store: SessionStore) -> None:
        put = session(
            idle=600.0,
            last_seen=1001.0,
            granted_at=1.7e9,
            by="Zoë\n",
            how="voucher",
            name="<b>\x7f",
        )
        store.put(put)
        assert store.find((MAC,), 1002.0) == put

    def test_the_first_id_that_has_an_open_session_is_the_one(self, store: SessionStore) -> None:
        store.put(session(BOTH, expires=1010.0))
        store.put(session(ADDRESS))
        for now, found in ((1009.0, BOTH), (1010.0, ADDRESS)):
            got = store.find((BOTH, MAC, ADDRESS), now)
            assert got is not None
            assert got.client == found
        assert store.find((MAC, OTHER), 1009.0) is None
        assert store.find((), 1009.0) is None

    @pytest.mark.parametrize(
        ("changes", "ends"),
        [
            ({}, 4600.0),
            ({"expires": 1001.0}, 1001.0),
            ({"expires": 1000.0}, None),
            ({"expires": 900.0}, None),
            ({"idle": 60.0}, 1060.0),
            ({"idle": 60.0, "last_seen": 1030.0}, 1090.0),
            ({"idle": 9999.0}, 4600.0),
        ],
    )
    def test_a_session_is_open_until_its_end_and_not_then(
        self, store: SessionStore, changes: dict[str, Any], ends: float | None
    ) -> None:
        store.put(session(**changes))
        if ends is None:
            assert store.find((MAC,), 1000.0) is None
            return
        found = store.find((MAC,), 1000.0)
        assert found is not None
        assert found.ends == ends
        assert store.find((MAC,), ends - 0.5)
        assert store.find((MAC,), ends) is None

    def test_a_put_replaces(self, store: SessionStore) -> None:
        store.put(session(name="one"))
        store.put(session(name="two", expires=1010.0))
        assert [(s.client, s.name) for s in store.sessions()] == [(MAC, "two")]
        assert store.find((MAC,), 1010.0) is None  # a session can be shortened

    def test_the_sessions_of_some_clients_alone(self, store: SessionStore) -> None:
        bound = ClientId(f"{MAC}@192.0.2.99")
        for client in (MAC, OTHER, ADDRESS, bound):
            store.put(session(client))
        for about, found in (
            ([MAC, ADDRESS], {MAC, ADDRESS, bound}),
            ([MAC], {MAC, bound}),
            (["192.0.2.99"], {bound}),
            (["192.0.2.98"], set()),
            ([], set()),
        ):
            assert {one.client for one in store.sessions(about)} == found
        store.revoke(bound)
        assert [one.client for one in store.sessions(["192.0.2.99"])] == []

    def test_what_is_not_there_is_not_renewed(self, store: SessionStore) -> None:
        assert not store.put(session(name="first"), renews=True)
        assert store.find((MAC,), 1002.0) is None
        store.put(session(name="first"))
        assert store.put(session(name="second"), renews=True)
        found = store.find((MAC,), 1002.0)
        assert found is not None
        assert found.name == "second"
        store.revoke(MAC)
        assert not store.put(session(name="third"), renews=True)
        assert store.find((MAC,), 1002.0) is None

    def test_last_seen_never_goes_back(self, store: SessionStore) -> None:
        before = session(idle=60.0)
        store.put(before)
        store.touch(MAC, 1050.0)
        store.put(replace(before, expires=9000.0))  # as it was known before the touch
        assert store.find((MAC,), 1109.0)
        assert store.find((MAC,), 1110.0) is None

    def test_a_revoked_session_is_over_and_said_to_have_been(self, store: SessionStore) -> None:
        store.put(session())
        assert store.revoke(MAC) is True
        assert store.find((MAC,), 1000.0) is None
        assert store.revoke(MAC) is False
        assert list(store.sessions()) == []

    def test_a_revoked_session_takes_its_touches_along(self, store: SessionStore) -> None:
        store.put(session(idle=60.0))
        store.touch(MAC, 1050.0)
        store.revoke(MAC)
        store.put(session(idle=60.0))
        assert store.find((MAC,), 1060.0) is None

    def test_touches_keep_an_idle_session_open_until_it_expires(self, store: SessionStore) -> None:
        store.put(session(idle=600.0))
        for now in range(1500, 4600, 500):
            assert store.find((MAC,), float(now))
            store.touch(MAC, float(now))
        assert store.find((MAC,), 4599.0)
        assert store.find((MAC,), 4600.0) is None

    def test_a_touch_opens_nothing(self, store: SessionStore) -> None:
        store.touch(MAC, 1000.0)
        store.put(session(idle=60.0))
        store.touch(MAC, 1060.0)  # when it was over
        store.touch(MAC, 1030.0)  # and one that comes late changes nothing but what it says
        assert store.find((MAC,), 1089.0)
        assert store.find((MAC,), 1090.0) is None
        assert [s.client for s in store.sessions()] == [MAC]

    def test_a_session_no_clock_could_end_is_refused(self, store: SessionStore) -> None:
        for field in ("granted", "expires", "idle", "last_seen", "granted_at"):
            changes: dict[str, Any] = {field: float("nan")}
            with pytest.raises(ValueError, match="is not a time"):
                store.put(session(**changes))
        assert list(store.sessions()) == []

    async def test_a_watcher_is_called_on_its_own_event_loop(self, shared: Shared) -> None:
        store, other = await asyncio.to_thread(shared.open), await asyncio.to_thread(shared.open)
        heard: asyncio.Queue[tuple[ClientId, int]] = asyncio.Queue()
        stop = store.watch(lambda client: heard.put_nowait((client, threading.get_ident())))
        here = threading.get_ident()
        changes: tuple[tuple[Callable[[], object], ClientId], ...] = (
            (lambda: store.put(session()), MAC),
            (lambda: other.put(session(ADDRESS)), ADDRESS),
            (lambda: store.put(session(expires=9000.0)), MAC),
            (lambda: other.revoke(MAC), MAC),
            (lambda: store.revoke(ADDRESS), ADDRESS),
        )
        for change, client in changes:
            await asyncio.to_thread(change)
            assert await asyncio.wait_for(heard.get(), SOON) == (client, here)
        stop()
        stop()
        await asyncio.to_thread(store.put, session())
        await asyncio.to_thread(store.close)
        await asyncio.sleep(0)
        assert heard.empty()

    def test_a_watcher_without_a_loop_is_called_on_another_thread(
        self, store: SessionStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard: list[tuple[ClientId, int]] = []

        def fails(client: ClientId) -> None:
            raise RuntimeError(client)

        store.watch(fails)
        store.watch(lambda client: heard.append((client, threading.get_ident())))
        store.put(session())
        store.revoke(MAC)
        until(lambda: len(heard) == 2, "two calls")
        assert {client for client, _ in heard} == {MAC}
        assert threading.get_ident() not in {thread for _, thread in heard}
        assert "A watcher of the session store failed" in caplog.text

    def test_another_store_of_the_same_sessions_sees_each_change(self, shared: Shared) -> None:
        one, two = shared.open(), shared.open()
        one.put(session())
        until(lambda: two.find((MAC,), 1000.0) is not None, "a grant")
        two.put(session(expires=1010.0))
        until(lambda: one.find((MAC,), 1010.0) is None, "a shortened session")
        assert two.revoke(MAC) is True
        until(lambda: one.find((MAC,), 1000.0) is None, "a revocation")
        assert one.revoke(MAC) is False

    @pytest.mark.usefixtures("quick_turns")
    def test_threads_may_change_it_at_once(self, shared: Shared) -> None:
        store, changed = shared.open(), threading.Event()

        def change(number: int) -> None:
            clients = [ClientId(f"192.0.2.{number * 10 + i}") for i in range(10)]
            for client in clients * 2:
                store.put(session(client))
                assert store.find((client,), 1000.0), "granted, and not in force"
            for client in clients[::2]:
                assert store.revoke(client)
                assert store.find((client,), 1000.0) is None, "revoked, and still in force"

        def find() -> None:
            while not changed.is_set():
                store.find((ADDRESS, MAC), 1000.0)
                list(store.sessions())

        with ThreadPoolExecutor() as threads:
            finder = threads.submit(find)
            changers = [threads.submit(change, n) for n in range(4)]
            wait(changers)
            changed.set()
        for thread in (finder, *changers):
            thread.result()
        left = {f"192.0.2.{number * 10 + i}" for number in range(4) for i in range(1, 10, 2)}
        assert {s.client for s in store.sessions()} == left

    def test_a_new_client_is_one_too_many_where_there_are_as_many_as_may_be(
        self, store: SessionStore
    ) -> None:
        store.put(session(ADDRESS), most=2)
        store.put(session(), most=2)
        with pytest.raises(FullError, match=r"as many sessions as sessions\.most allows: 2"):
            store.put(session(OTHER), most=2)
        assert store.find((OTHER,), 1000.0) is None
        store.put(session(now=1010.0), most=2)  # a client with a session may renew it,
        assert store.put(session(ADDRESS, now=1020.0), renews=True)
        store.put(session(ADDRESS), most=1)  # even if the bound was lowered
        store.revoke(ADDRESS)
        store.put(session(OTHER), most=2)
        assert {one.client for one in store.sessions()} == {MAC, OTHER}

    def test_nobody_is_known_to_a_closed_store(self, store: SessionStore) -> None:
        store.put(session())
        store.close()
        store.close()
        assert store.find((MAC,), 1000.0) is None

    def test_what_outlives_its_store_is_all_there_afterwards(self, shared: Shared) -> None:
        if not shared.lasting:
            return
        store = shared.open()
        store.put(session(ADDRESS, idle=60.0, name="x"))
        store.put(session())
        store.revoke(MAC)
        store.touch(ADDRESS, 1030.0)
        before = list(store.sessions())
        store.close()
        assert list(shared.open().sessions()) == before
        assert before[0].last_seen == 1030.0


class StoreMachine(RuleBasedStateMachine):
    """Any order of grants, revocations, touches, time and reboots, against a dict."""

    CLIENTS = (MAC, ADDRESS, BOTH)
    shared: Shared

    def make(self) -> Shared:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.shared = self.make()
        self.time = self.shared.time
        self.store = self.shared.open()
        self.elsewhere = self.shared.open()
        self.model: dict[ClientId, Session] = {}

    @rule(
        client=st.sampled_from(CLIENTS),
        lifetime=st.sampled_from([0, 2, 60, 3600]),
        idle=st.sampled_from([None, 4, 40, 600]),
        there=st.booleans(),
    )
    def put(self, client: ClientId, lifetime: float, idle: float | None, there: bool) -> None:
        now = self.time.now
        put = Session(client, now, now + lifetime, idle, last_seen=now)
        (self.elsewhere if there else self.store).put(put)
        self.model[client] = put

    @rule(client=st.sampled_from(CLIENTS), there=st.booleans())
    def revoke(self, client: ClientId, there: bool) -> None:
        was_open = client in self.known()
        ended = (self.elsewhere if there else self.store).revoke(client)
        assert ended or not was_open
        assert not ended or client in self.model
        self.model.pop(client, None)

    @rule(client=st.sampled_from(CLIENTS), by=st.sampled_from([-50, 2, 500]))
    def extend(self, client: ClientId, by: float) -> None:
        if client in self.known():
            found = self.store.find((client,), self.time.now)
            assert found is not None
            self.store.put(replace(found, expires=found.expires + by))
            self.model[client] = replace(
                self.model[client], expires=self.model[client].expires + by
            )

    @rule(client=st.sampled_from(CLIENTS))
    def touch(self, client: ClientId) -> None:
        self.store.touch(client, self.time.now)
        if client in self.known() and self.model[client].idle is not None:
            self.model[client] = replace(self.model[client], last_seen=self.time.now)

    @rule(seconds=st.sampled_from([2, 10, 40, 400, 4000]))
    def advance(self, seconds: float) -> None:
        self.time.now += seconds

    @precondition(lambda self: self.shared.lasting)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.shared.open()

    @precondition(lambda self: self.shared.lasting)
    @rule(now=st.sampled_from([3, 20, 100_000]))
    def reboot(self, now: float) -> None:
        self.elsewhere.close()
        self.store.close()
        by = now - self.time.now
        self.time.reboot(now)
        self.store, self.elsewhere = self.shared.open(), self.shared.open()
        for client, was in self.model.items():
            self.model[client] = replace(
                was,
                granted=was.granted + by,
                expires=was.expires + by,
                last_seen=was.last_seen + by,
            )

    @rule()
    def look_elsewhere(self) -> None:
        # It learns of touches late, so sessions with an idle timeout are left out.
        lasting = {c for c in self.CLIENTS if c not in self.model or self.model[c].idle is None}
        until(lambda: self.ends(self.elsewhere).keys() & lasting == self.known() & lasting)

    @invariant()
    def known_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        known = {c: (s.ends, s.idle) for c, s in self.model.items() if s.is_open(self.time.now)}
        until(lambda: self.ends(self.store) == known)

    def ends(self, store: SessionStore) -> dict[ClientId, tuple[float, float | None]]:
        found = [store.find((client,), self.time.now) for client in self.CLIENTS]
        return {s.client: (s.ends, s.idle) for s in found if s}

    def known(self) -> set[ClientId]:
        return {c for c, s in self.model.items() if s.is_open(self.time.now)}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.elsewhere.close()
