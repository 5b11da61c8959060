import json
from pathlib import Path
from typing import Any

from capport.core.client import ClientId
from capport.core.session import Session
from capport.events import EventLog
from capport.session_events import SessionEvents
from capport.stores.memory import MemoryStore

CLIENT = ClientId("02:00:00:00:00:07@192.0.2.7")


class House:
    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.file = folder / "events.jsonl"
        self.events = EventLog(self.file)
        self.store = MemoryStore()
        self.session_events = SessionEvents(self.store, lambda: self.events, lambda: self.now)

    def grant(self, seconds: float, idle: float | None = None) -> None:
        self.store.put(
            Session(CLIENT, self.now, self.now + seconds, idle, self.now, by="login", how="terms")
        )
        self.session_events.changed(CLIENT)

    def revoke(self) -> None:
        self.store.revoke(CLIENT)
        self.session_events.changed(CLIENT)

    def written(self) -> list[dict[str, Any]]:
        assert self.events.close(30)
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def test_a_session_is_an_event_when_it_opens_and_when_it_is_revoked(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.grant(60)
    house.revoke()
    granted, revoked = house.written()
    assert granted["event"] == "granted"
    assert (granted["client"], granted["mac"]) == ("192.0.2.7", "02:00:00:00:00:07")
    assert (granted["seconds"], granted["by"], granted["how"]) == (60, "login", "terms")
    assert revoked["event"] == "revoked"


def test_a_client_that_signs_in_and_out_all_the_time_ends_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    for _ in range(100):
        house.grant(3600)
        house.revoke()
        house.now += 1
    house.grant(3600)
    house.now += 3599
    assert [*house.session_events.ended()] == []
    house.now += 1
    assert [*house.session_events.ended()] == [CLIENT]
    assert [*house.session_events.ended()] == []
    assert [line["event"] for line in house.written()].count("expired") == 1


def test_a_session_that_ends_by_itself_has_expired(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.grant(60)
    house.now += 59
    assert [*house.session_events.ended()] == []
    house.now += 1
    assert [*house.session_events.ended()] == [CLIENT]
    assert [*house.session_events.ended()] == []
    assert [line["event"] for line in house.written()] == ["granted", "expired"]


def test_extending_is_a_grant_and_a_touch_is_not(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.grant(60, idle=20)
    house.now += 10
    house.store.touch(CLIENT, house.now)
    house.session_events.changed(CLIENT)
    house.now += 15
    assert [*house.session_events.ended()] == []
    house.grant(600, idle=20)
    assert [line["event"] for line in house.written()] == ["granted", "granted"]


def test_traffic_puts_the_end_of_an_idle_session_off(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.grant(100_000, idle=10_000)
    for _ in range(100):
        house.now += 90
        house.store.touch(CLIENT, house.now)
        house.session_events.changed(CLIENT)
        assert [*house.session_events.ended()] == []
    house.now += 9999
    assert [*house.session_events.ended()] == []
    house.now += 1
    assert [*house.session_events.ended()] == [CLIENT]
    assert [line["event"] for line in house.written()] == ["granted", "expired"]


def test_a_session_that_is_made_shorter_ends_at_its_new_end(tmp_path: Path) -> None:
    house = House(tmp_path)
    for seconds in (600, 60, 30):
        house.grant(seconds)
    house.now += 30
    assert [*house.session_events.ended()] == [CLIENT]
    house.now += 600
    assert [*house.session_events.ended()] == []


def test_a_touch_of_a_session_from_before_the_start_is_no_grant(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.store.put(Session(CLIENT, 100.0, 2000.0))
    house.session_events.changed(CLIENT)
    house.revoke()
    assert [line["event"] for line in house.written()] == ["revoked"]


def test_the_end_of_a_session_from_before_the_start_is_written(tmp_path: Path) -> None:
    house = House(tmp_path)
    for seconds in (-1, 60):  # one that is over already has ended before the start
        house.session_events.found(Session(CLIENT, 100.0, house.now + seconds))
        assert [*house.session_events.ended()] == []
    house.now += 60
    assert [*house.session_events.ended()] == [CLIENT]
    assert [line["event"] for line in house.written()] == ["expired"]


def test_a_touch_that_is_stored_after_the_end_is_no_second_end(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.grant(60)
    house.now += 60
    assert [*house.session_events.ended()] == [CLIENT]
    house.session_events.changed(CLIENT)
    house.grant(60)
    house.revoke()
    events = [line["event"] for line in house.written()]
    assert events == ["granted", "expired", "granted", "revoked"]


def test_a_session_that_was_opened_and_revoked_before_we_heard_of_it_is_one_event(
    tmp_path: Path,
) -> None:
    house = House(tmp_path)
    house.store.put(Session(CLIENT, house.now, house.now + 60))
    house.store.revoke(CLIENT)
    house.session_events.changed(CLIENT)
    house.session_events.changed(CLIENT)
    assert [line["event"] for line in house.written()] == ["revoked"]
