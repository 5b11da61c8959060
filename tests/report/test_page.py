"""The page of a report is valid, safe and accessible, and loads nothing."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import requires
from capport.report.as_page import page_of
from login.chromium import axe, chromium
from report.broken import BROKEN
from report.recorded import EVERYTHING, event, granted, refused, reported, watched

EVIL = "</style></title><script>alert(1)</script><img src=x onerror='1'>\"&\x00\x1b[2J\u202e"


@pytest.fixture(autouse=True, scope="module")
def utc() -> Iterator[None]:
    """Times are in UTC, whatever zone an earlier test has set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def parsed(page: str) -> Element:
    """The page as a tree; raises for the first thing in it that is not valid."""
    root: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    return root


def named(root: Element, name: str) -> list[Element]:
    return [it for it in root.iter() if isinstance(it.tag, str) and it.tag.endswith(name)]


@pytest.mark.parametrize("events", [[], EVERYTHING, *(case[1] for case in BROKEN)])
def test_the_page_is_valid(events: list[Any]) -> None:
    root = parsed(page_of(reported(*events)))
    assert root.get("lang") == "en"
    assert len(named(root, "h1")) == 1


def test_it_has_each_finding_with_its_evidence_and_what_was_not_tested() -> None:
    said = " ".join("".join(parsed(page_of(reported(*EVERYTHING))).itertext()).split())
    for part in (
        "errorauthorization-to-portal",
        "Does not check certificates. RFC 6585 section 7.4",
        "12:00:00.010GET http://api.example.org/v1/items: 511",
        "and 10 more",
        "Change: Do not retry a 511",
        "pins-certificate: no handshake of a client with trusts_ca was intercepted",
        "192.0.2.7 (Anna's phone)",
        "Requests refused: 34",
        "Sessions: 1",
        "34 attempts in 34 s; waits from 10 ms to 5.0 s",
    ):
        assert part in said, part


def test_each_client_has_a_timeline_and_each_request_that_was_repeated_a_plot() -> None:
    root = parsed(page_of(reported(*EVERYTHING)))
    charts = [it for it in named(root, "svg") if it.get("role") == "img"]
    labels = [str(it.get("aria-label")) for it in charts]
    assert [it.partition(" ")[0] for it in labels] == ["Timeline", "GET", "Timeline"]
    assert "Requests refused: 34, Requests forwarded: 2" in labels[0]
    plot = next(it for it in charts if it.get("class") == "retries")
    assert len([it for it in plot.iter() if it.get("class") == "dot"]) == 34


def test_nothing_that_a_client_sent_is_markup() -> None:
    fields = {"host": EVIL, "agent": EVIL, "method": EVIL, "because": EVIL, "query": EVIL}
    page = page_of(
        reported(
            watched(),
            *(refused(n / 9, EVIL, cookies=1, **fields) for n in range(4)),
            event(3, "tls", sni=EVIL, action="intercept", outcome="accepted", alert=EVIL),
            granted(4, name=EVIL, client=EVIL),
        )
    )
    root = parsed(page)
    assert named(root, "script") == named(root, "img") == []
    assert len(named(root, "style")) == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    assert not any(name.startswith("on") for it in root.iter() for name in it.attrib)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(BROKEN), st.text(), st.floats(0, 1e6)), max_size=3))
def test_whatever_clients_send_the_page_is_valid(cases: Any) -> None:
    events = [
        one | {"host": text, "agent": text, "sni": text}
        for case, text, _ in cases
        for one in case[1]
    ]
    parsed(page_of(reported(*events, *(refused(at, text) for _, text, at in cases))))


def test_it_loads_nothing_from_anywhere() -> None:
    page = page_of(reported(*EVERYTHING))
    root = parsed(page)
    assert "default-src 'none'" in page
    links = [it.get("href") for it in root.iter() if it.get("href")]
    assert all(str(link).startswith("https://www.rfc-editor.org/rfc/rfc6585") for link in links)
    assert all(it.tag == "a" for it in root.iter() if it.get("href"))
    assert not any(it.get("src") or it.get("srcset") for it in root.iter())
    assert "url(" not in page
    assert "@import" not in page


def test_many_events_and_clients_give_a_page_of_bounded_size() -> None:
    busy = [refused(n / 50, cookies=1) for n in range(5_000)]
    many = [refused(n, client=f"10.0.{n >> 8}.{n & 255}", cookies=1) for n in range(300)]
    assert len(page_of(reported(*busy))) < 200_000
    page = page_of(reported(*many))
    assert len(page) < 1_000_000
    assert "200 more clients did less" in page


@pytest.mark.browser
@requires.tool("chromium")
@pytest.mark.timeout(300)
async def test_axe_finds_nothing_in_light_and_dark_and_on_paper_of_80_mm(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(reported(*EVERYTHING)), "utf-8")
    async with chromium(tmp_path / "profile") as tab:
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 302), ("dark", 302)):
            await tab.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            await tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=900, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            await tab.open(file.as_uri())
            assert await axe(tab) == [], (scheme, width)
            assert await tab.run("document.documentElement.scrollWidth") <= width
