"""What a report looks like: as text, as JSON, and beside another one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.report import as_text, comparison
from capport.report import recording as recording_module
from capport.report.findings import Severity
from capport.report.recording import Recording, events_in, record
from capport.report.rules import RULES
from capport.report.summary import document, report_on
from json_schemas import schema_errors
from report.broken import BROKEN
from report.recorded import (
    BROWSER,
    EVERYTHING,
    RETRIES,
    Event,
    client_of,
    event,
    refused,
    reported,
    shake,
)

SCHEMA = "report/report.schema.json"


def texts(*events: Event) -> str:
    return "\n".join(as_text.lines_of(reported(*events)))


def test_the_text_has_what_was_seen_what_to_change_and_what_each_client_did() -> None:
    said = texts(*EVERYTHING)
    for part in (
        "2 clients: 35 requests refused, 2 TLS handshakes",
        "ERROR accepts-any-certificate (RFC 6585 section 7.4)",
        "192.0.2.7 (Anna's phone): it accepted a certificate of an unknown CA",
        "WARNING retries-511",
        "  Change: Do not retry a 511",
        "  No fault: A person pressed reload",
        "    and 25 more",
        "Not tested:\n  pins-certificate: no handshake of a client with trusts_ca",
        "offered    60 cookies, 30 HTTP credentials for api.example.org",
        "TLS        1 accepted, 1 rejected (unknown_ca)",
        "CalDAV or CardDAV: 1 request by DAVx5/4.3 [RFC 6585 appendix B]",
        "then       asked again, was dropped for a time, went to the login server, was",
    ):
        assert part in said, part


def test_no_line_of_the_text_has_more_than_80_columns() -> None:
    everything = [it for case in BROKEN for it in case[1]]
    long = refused(0, "/" + "x" * 199, host="a" * 300, agent="y" * 200, cookies=1)
    assert all(len(line) <= 80 for line in texts(*EVERYTHING, *everything, long).splitlines())


def test_nothing_that_a_client_sent_is_obeyed_by_a_terminal() -> None:
    said = texts(
        *(refused(n / 9, "/\x1b[2J\r\n", host="\x9b\u202e", agent="\x07") for n in range(4))
    )
    assert all(character.isprintable() or character == "\n" for character in said)
    assert "\\x1b[2J" in said


@pytest.mark.parametrize(
    "events",
    [[], EVERYTHING, *(case[1] for case in BROKEN)],
    ids=lambda it: str(len(it)),
)
def test_the_json_is_as_its_schema_says(events: list[Event]) -> None:
    said = json.loads(json.dumps(document(reported(*events))))
    assert schema_errors(SCHEMA, said) == []
    assert len(said["not_tested"]) + len(said["kept"]) + len(
        {f["id"] for f in said["findings"]}
    ) == (len(RULES))


def test_a_report_on_nothing_says_that_nothing_was_tested() -> None:
    report = reported()
    assert {it.because for it in report.not_tested} == {"no client was seen"}
    assert report.kept == ()


def test_errors_print_what_a_person_needs_in_an_assertion() -> None:
    said = repr(reported(*EVERYTHING).errors())
    assert "error accepts-any-certificate: it accepted a certificate" in said
    assert "TLS for other.test: intercept, accepted" in said
    assert "change: Check the certificate's chain" in said
    assert repr(reported().errors()) == "()"


def test_a_fingerprint_has_neither_client_nor_time_nor_version() -> None:
    here = reported(*RETRIES).findings
    there = reported(
        *(refused(500 + n / 50, client="192.0.2.99", agent="axios/9.9") for n in range(9))
    ).findings
    assert [it.fingerprint for it in here] == [it.fingerprint for it in there]
    assert here[0].fingerprint == "retries-511 axios api.example.org"


def test_findings_in_a_baseline_are_passed_over() -> None:
    report = reported(*RETRIES, refused(9, "/other", cookies=1))
    known = set(comparison.fingerprints(document(reported(*RETRIES))))
    assert len(report.warnings()) == 3
    (left,) = report.without(known).warnings()
    assert left.rule.id == "cookies-to-portal"
    assert "(known before)" in "\n".join(as_text.lines_of(report.without(known)))


def test_two_reports_are_compared_by_what_is_new_gone_still_there_or_not_tested() -> None:
    before = document(reported(*RETRIES, shake(20, "accepted"), refused(9, "/b", cookies=1)))
    after = document(reported(refused(0, authorizations=1), refused(9, cookies=1)))
    compared = comparison.compare(before, after)
    found = {
        name: [it["fingerprint"] for it in compared[name]] for name in ("new", "gone", "still")
    }
    assert found["new"] == ["authorization-to-portal axios api.example.org"]
    assert found["gone"] == ["retries-511 axios api.example.org"]
    assert found["still"] == ["cookies-to-portal axios api.example.org"]
    assert {it["id"] for it in compared["not_tested"]} == {
        *("accepts-any-certificate", "no-back-off")
    }
    said = "\n".join(comparison.lines_of(compared))
    assert said.startswith("Requests refused: 5 in the first, 2 in the second\n")
    assert "New: 1\n  error authorization-to-portal: axios/1.7.2 sent 1 HTTP credential" in said


def test_one_device_is_one_client_by_its_mac_whatever_its_addresses() -> None:
    mac = "02:00:00:00:00:07"
    recording = record(
        [
            refused(0, mac=mac),
            refused(1, client="2001:db8::7", mac=mac),
            event(2, "granted", client=None, mac=mac, seconds=60, name="phone"),
            refused(3, client="2001:db8::7"),
            refused(4, client="192.0.2.8"),
        ]
    )
    assert [(it.id, len(it.requests)) for it in recording.clients] == [
        ("192.0.2.7 (02:00:00:00:00:07, phone)", 3),
        ("192.0.2.8", 1),
    ]
    assert len(recording.clients[0].grants) == 1


def test_repeats_are_counted_as_often_as_they_happened() -> None:
    client = client_of(
        event(0, "refused", status=511, host="a.test", cookies=2),
        event(60, "refused", status=511, host="a.test", cookies=2, repeats=9),
    )
    assert sum(request.count for request in client.requests) == 10
    assert not any(request.detailed for request in client.requests)


def test_events_are_bounded_and_lines_that_are_none_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording_module, "MOST", 100)
    recording = Recording()
    lines = [json.dumps(refused(0)), "{half a li", "[]", "", '{"event": "refused"}', "null"]
    record(events_in(lines, recording), recording)
    assert (len(recording.clients), recording.unread) == (1, 4)
    many = record(refused(0) for _ in range(105))
    assert (len(many.clients[0].requests), many.left_out) == (100, 5)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    *("client", "mac", "status", "host", "method", "scheme", "port", "path", "query", "agent"),
    *("accept", "referer", "range", "modified_since", "traces", "retry_after", "length", "sni"),
    *("action", "outcome", "alert", "repeats", "cookies", "time", "name", "kernel_forwards"),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["refused", "passed", "tls", "granted", "watched", "policy"]),
            st.floats(0, 100),
            st.dictionaries(
                st.sampled_from(FIELDS),
                JSON
                | st.sampled_from(
                    ["http", "192.0.2.7", "Sat, 99 Foo", "url validator", BROWSER, 511]
                ),
                max_size=6,
            ),
        ),
        max_size=8,
    )
)
def test_whatever_is_in_a_file_of_events_gives_a_report(given_: Any) -> None:
    events = [event(at, kind) | fields for kind, at, fields in given_]
    report = report_on(events)
    said = json.loads(json.dumps(document(report)))
    assert schema_errors(SCHEMA, said) == []
    for line in as_text.lines_of(report):
        assert line.isprintable()
    assert report.at_least(Severity.NOTE) == report.findings
