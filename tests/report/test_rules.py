"""Each rule: a client that breaks it, one that keeps it, and a record that cannot show it."""

import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from capport.report.findings import NotTested, Severity
from capport.report.rules import RULES
from report.broken import BROKEN, GO, HTTP_DATE, UNWATCHED
from report.recorded import (
    APP,
    BEGAN,
    BROWSER,
    Event,
    client_of,
    event,
    granted,
    passed,
    refused,
    reported,
    rule,
    shake,
    watched,
)

KEPT: list[tuple[str, list[Event]]] = [
    ("retries-511", [refused(0)]),
    ("retries-511", [refused(0), refused(0.1)]),  # once: a person, or a test
    ("retries-511", [refused(5 * 2**n, agent=GO) for n in range(5)]),
    ("retries-511", [refused(n / 10, query=f"{n}") for n in range(5)]),
    ("retries-511", [refused(n / 10, "/generate_204") for n in range(5)]),  # a check
    ("retries-511", [refused(0), granted(0.1), refused(0.2), refused(0.3)]),
    ("retries-handshake", [watched(), *(shake(n * 5, "refused") for n in range(6))]),
    (
        "retries-handshake",
        [watched(), *(shake(n / 99, "dropped") for n in range(4))],
    ),  # side by side
    ("no-back-off", [refused(2**n) for n in range(6)]),
    ("no-back-off", [refused(t) for t in (0, 0.01, 0.21, 0.61, 1.4)]),  # urllib3's Retry
    ("no-back-off", [refused(n * 300) for n in range(6)]),  # every five minutes
    ("never-recovers", [refused(1), granted(2), passed(3), event(60, "unwatched")]),
    (
        "never-recovers",
        [watched(), shake(1, "refused"), granted(2), shake(3, "passed"), passed(40)],
    ),
    ("never-recovers", [watched(), refused(1), granted(2), shake(3, "passed"), passed(40)]),
    ("takes-page-for-origin", [refused(0), passed(60), passed(61, "/other")]),
    ("takes-page-for-origin", [refused(0, length=512), passed(9, range=100)]),
    (
        "takes-page-for-origin",  # a browser shows the page to a person
        [
            refused(0, "/page", status=200, agent=BROWSER),
            refused(1, "/x.png", referer="http://api.example.org/page", agent=BROWSER),
        ],
    ),
    ("favicon-of-portal", [refused(0, "/", agent=BROWSER), passed(9, "/", agent=BROWSER)]),
    ("favicon-of-portal", [refused(0, "/favicon.ico", agent=BROWSER)]),
    ("caches-511", [refused(0), passed(60)]),
    ("caches-511", [refused(0), refused(60, traces="validator")]),  # of a page, in an earlier run
    ("caches-511", [refused(0), passed(90, modified_since="Tue, 01 Jan 2030 12:00:00 GMT")]),
    ("cookies-to-portal", [refused(0), passed(1, cookies=3)]),
    (
        "cookies-to-portal",  # the only cookie is the portal's own
        [refused(0, status=200, sets_cookie=True), refused(1, cookies=1)],
    ),
    ("authorization-to-portal", [refused(0), passed(1, authorizations=1)]),
    ("accepts-any-certificate", [shake(0, "rejected", alert="unknown_ca")]),
    ("pins-certificate", [shake(0, "accepted", trusts_ca=True)]),
    ("plain-http-after-tls", [shake(0, "rejected"), refused(1, host="other.test")]),
    ("plain-http-after-tls", [shake(0, "refused"), refused(1, agent=BROWSER)]),
    ("plain-http-after-tls", [refused(-1), shake(0, "refused"), refused(1)]),
    ("plain-http-after-tls", [shake(0, "refused"), refused(300)]),
    ("ignores-retry-after", [refused(0, status=429, retry_after="30"), refused(30)]),
    ("ignores-retry-after", [refused(0, status=429, retry_after="30"), refused(1, host="b.test")]),
    ("ignores-retry-after", [refused(0, status=429, retry_after="30"), granted(1), passed(2)]),
    ("follows-redirect", [refused(0, status=302, agent="curl/8.9"), refused(1, agent="curl/8.9")]),
]

NOT_TESTED: list[tuple[str, list[Event], str]] = [
    *((one.id, [passed(0)], "") for one in RULES if one.id != "never-recovers"),
    *(
        (name, [UNWATCHED, event(60, "refused", host="api.example.org", repeats=40)], "not watched")
        for name in ("retries-511", "no-back-off", "takes-page-for-origin", "caches-511")
    ),
    ("no-back-off", [refused(0)], "four times"),
    ("retries-511", [refused(n / 9, status=302) for n in range(9)], "no request got a 511"),
    ("no-back-off", [refused(n, status=429) for n in range(9)], "no request got a 511"),
    ("retries-handshake", [shake(0, "refused"), shake(60, "refused", repeats=9)], "not watched"),
    ("never-recovers", [refused(0)], "granted no session after a refusal"),
    ("never-recovers", [granted(0), passed(1)], "granted no session after a refusal"),
    ("never-recovers", [watched(), refused(1), granted(2)], "ends 0 s after the grant"),
    ("never-recovers", [UNWATCHED, granted(2), event(60, "revoked")], "not watched"),
    (
        "never-recovers",
        [watched(kernel_forwards=True), refused(1), granted(2), event(60, "unwatched")],
        "the kernel forwards",
    ),
    ("accepts-any-certificate", [shake(0, "refused")], "no certificate of another CA"),
    ("accepts-any-certificate", [shake(0, "accepted", trusts_ca=True)], "no certificate"),
    ("pins-certificate", [shake(0, "rejected")], "trusts_ca"),
    ("ignores-retry-after", [refused(0, status=429)], "Retry-After"),
    ("follows-redirect", [refused(0)], "redirected"),
    ("follows-redirect", [refused(0, "/generate_204", status=302)], "redirected"),
]


@pytest.mark.parametrize(("name", "events", "says"), BROKEN)
def test_a_client_that_breaks_a_rule_is_found(name: str, events: list[Event], says: str) -> None:
    (seen,) = rule(name).look(client_of(*events))
    assert says in seen.sentence
    assert seen.evidence


@pytest.mark.parametrize(("name", "events"), KEPT)
def test_a_client_that_keeps_it_is_not(name: str, events: list[Event]) -> None:
    assert list(rule(name).look(client_of(*events))) == []


@pytest.mark.parametrize(("name", "events", "because"), NOT_TESTED)
def test_what_a_record_cannot_show_is_not_tested(
    name: str, events: list[Event], because: str
) -> None:
    with pytest.raises(NotTested) as raised:
        list(rule(name).look(client_of(*events)))
    assert because in str(raised.value)


def test_each_rule_has_a_client_that_breaks_it_and_one_that_keeps_it() -> None:
    ids = [one.id for one in RULES]
    assert len(set(ids)) == len(ids)
    for cases in (BROKEN, KEPT, NOT_TESTED):
        assert {case[0] for case in cases} == set(ids)


def test_each_rule_says_what_to_change_and_when_it_is_no_fault() -> None:
    for one in RULES:
        assert one.section.startswith("RFC 6585 ")
        assert one.title[0].islower()
        assert one.change.endswith(".")
        assert one.no_fault.endswith(".")


def test_a_client_that_does_all_as_it_should_has_no_finding() -> None:
    report = reported(
        watched(),
        *(refused(n * n, agent=GO) for n in (0, 2, 4, 6)),
        shake(40, "rejected", alert="unknown_ca"),
        refused(50, status=429, retry_after="5"),
        granted(60),
        passed(61),
        event(120, "unwatched"),
    )
    assert report.findings == ()
    kept = {one.id for one in report.kept}
    assert kept >= {"retries-511", "no-back-off", "never-recovers", "accepts-any-certificate"}
    assert {it.rule.id for it in report.not_tested} == {"pins-certificate", "follows-redirect"}


def test_many_events_of_one_client_are_looked_at_in_linear_time() -> None:
    def rounds(count: int) -> int:
        """How many loop passes and function calls that many events take."""
        events = [
            refused(
                n / 100,
                f"/{n}" if n % 2 else "/same",
                status=(511, 429, 302)[n % 3],
                retry_after="3600",
                traces="url validator",
                modified_since=HTTP_DATE,
                cookies=1,
            )
            for n in range(count)
        ]
        client, counted = client_of(*events), Counter[str]()
        watch, tool = sys.monitoring, sys.monitoring.PROFILER_ID
        watch.use_tool_id(tool, "rounds")
        try:
            for event in (watch.events.JUMP, watch.events.PY_START):
                watch.register_callback(tool, event, lambda *_: counted.update("1"))
            watch.set_events(tool, watch.events.JUMP | watch.events.PY_START)
            for one in RULES:
                with suppress(NotTested):
                    list(one.look(client))
        finally:
            watch.set_events(tool, 0)
            watch.free_tool_id(tool)
        return counted.total()

    assert rounds(1_600) < 5 * rounds(400)


def test_the_time_of_a_report_is_that_of_its_events() -> None:
    report = reported(refused(0), refused(30))
    assert (report.recording.began, report.recording.until) == (BEGAN, BEGAN + 30)
    assert [str(one) for one in report.requests] == ["GET http://api.example.org/v1/items: 511"] * 2
    assert report.at_least(Severity.NOTE) == ()
    assert report.requests[0].agent == APP


def test_each_rule_is_in_the_table_of_findings() -> None:
    page = (Path(__file__).parents[2] / "scripts" / "README.md").read_text()
    table = re.findall(r"^\| `([a-z0-9-]+)` \| (note|warning|error) \|", page, re.MULTILINE)
    assert table == [(one.id, str(one.severity)) for one in RULES]
