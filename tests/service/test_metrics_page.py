"""Prometheus reads the portal's counts and its health on loopback."""

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from capport import extras
from capport.core.client import ClientId, parse_address
from capport.core.place import Place
from capport.core.policy import Policy
from capport.gate import Gate
from capport.metrics import Timing
from capport.proxy import mitmproxy_options
from capport.service.metrics_page import metrics_page
from capport.service.service import Service
from capport.service.settings import SettingError, Settings
from capport.stores.memory import MemoryStore
from conftest import SOON, Origin, StartPortal
from ports import free_port

type Samples = dict[tuple[str, str], float]


def scraped(port: int) -> Samples:
    """Each sample by its name and label values."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SOON) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def showing(port: int) -> Callable[[Any], Settings]:
    """The settings of the options, with metrics at `port`: tests start a portal in two steps."""
    settings_of, place = mitmproxy_options.settings_of, Place(parse_address("127.0.0.1"), port)
    return lambda options: replace(settings_of(options), metrics=place)


async def test_what_the_portal_does_is_counted(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr(mitmproxy_options, "settings_of", showing(port))
    async with portal() as it:
        for _ in range(3):
            assert b" 511 " in await it.talk(
                b"GET http://x.example/ HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n"
            )
        it.grant("127.0.0.1")
        ask = f"GET http://127.0.0.1:{origin.port}/ HTTP/1.1\r\nHost: 127.0.0.1:{origin.port}\r\n"
        await it.talk(f"{ask}Connection: close\r\n\r\n".encode())
        known = await asyncio.to_thread(scraped, port)
        it.revoke("127.0.0.1")
        monkeypatch.setattr(it.gate, "client", lambda peer: 1 / 0)
        await it.talk(b"GET http://x.example/ HTTP/1.1\r\nHost: x.example\r\n\r\n")
        after = await asyncio.to_thread(scraped, port)
    assert known["capport_clients", "known"] == 1
    assert known["capport_verdicts_total", "NetworkAuthenticationRequired"] == 3
    assert known["capport_decision_seconds_count", ""] >= 3
    assert known["capport_grant_seconds_count", ""] == 1
    assert known["capport_grant_seconds_bucket", "+Inf"] == 1
    assert (known["capport_up", "store"], known["capport_up", "neighbours"]) == (1, 1)
    assert known["capport_events_lost_total", ""] == 0
    assert not [where for name, where in known if name == "capport_denied_total"]
    assert (after["capport_clients", "known"], after["capport_revocation_seconds_count", ""]) == (
        0,
        1,
    )
    assert after["capport_denied_total", "the front"] == 1


def test_a_part_that_fails_is_down() -> None:
    gate = Gate(Policy(login_url="https://l/", login_place=Place("l", 443)), MemoryStore())
    port, works = free_port(), True
    place = Place(parse_address("127.0.0.1"), port)
    with metrics_page(place, gate, lambda: {"kernel": works}, lambda: 7):
        assert scraped(port)["capport_up", "kernel"] == 1
        works = False
        gate.revoke(ClientId("192.0.2.7"))
        found = scraped(port)
        assert found["capport_up", "kernel"] == 0
        assert found["capport_clients", "unknown"] == 7


def test_a_timing_counts_each_in_one_bucket() -> None:
    timing = Timing((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 2.0):
        timing.add(seconds)
    assert timing.counts == [2, 1, 1]
    assert timing.seconds == pytest.approx(2.65)


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "prometheus_client" else found(name)
    )
    metrics = Place(parse_address("127.0.0.1"), free_port())
    says = r"portal_metrics needs prometheus_client, .*\[metrics\]"
    with pytest.raises(SettingError, match=says):
        Service(Settings(sessions=":memory:", metrics=metrics))


async def test_a_port_that_is_taken_stops_the_start(origin: Origin) -> None:
    taken = Place(parse_address("127.0.0.1"), origin.port)
    service = Service(Settings(sessions=":memory:", metrics=taken))
    with pytest.raises(SettingError, match=f"portal_metrics: {taken}: Address already in use"):
        await service.start()
    await service.stop()
