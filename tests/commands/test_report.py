"""`capport report`: from event files and from mitmproxy's flows; its exit status."""

import json
from pathlib import Path
from typing import Any

import pytest

from capport.cli import main
from json_schemas import schema_errors
from report.recorded import Event, refused, shake

RETRIES = [refused(n / 100) for n in range(4)]


def written(path: Path, *events: Event) -> str:
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["report", *arguments]) == status
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, *arguments, "--json"))
    assert schema_errors("report/report.schema.json", found) == []
    return found


def test_it_reports_on_one_file_or_on_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = written(tmp_path / "e.1", *RETRIES[:2]), written(tmp_path / "e", *RETRIES[2:])
    assert "retries-511" in said(capsys, old, new)
    assert "Tested and not seen: retries-511" in said(capsys, new)


def test_the_file_is_events_jsonl_where_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 1
    assert "events.jsonl: there is no such file; name the one" in capsys.readouterr().err
    written(tmp_path / "events.jsonl", *RETRIES)
    assert "WARNING retries-511" in said(capsys)


@pytest.mark.parametrize(
    ("level", "events", "status"),
    [
        ("error", RETRIES, 0),
        ("warning", RETRIES, 3),
        ("error", [shake(0, "accepted")], 3),
        ("note", [refused(0), refused(1, "/favicon.ico")], 3),
        ("warning", [refused(0), refused(1, "/favicon.ico")], 0),
    ],
)
def test_its_exit_status_is_3_if_a_finding_is_as_bad_as_fail_on_says(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    level: str,
    events: list[Event],
    status: int,
) -> None:
    said(capsys, written(tmp_path / "e", *events), "--fail-on", level, status=status)


def test_a_baseline_is_a_report_or_a_file_of_events_and_passes_findings_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before", *RETRIES)
    now = written(tmp_path / "now", *RETRIES, refused(9, cookies=1, host="b.test"))
    (tmp_path / "before.json").write_text(said(capsys, before, "--json"))
    for baseline in (before, str(tmp_path / "before.json")):
        assert len(document(capsys, now, "--baseline", baseline)["findings"]) == 3
        said(capsys, now, "--baseline", baseline, "--fail-on", "warning", status=3)
        said(capsys, before, "--baseline", baseline, "--fail-on", "warning")


def test_a_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    events = written(tmp_path / "e", *RETRIES)
    assert said(capsys, events, "--html", str(page)) == f"Wrote {page}.\n"
    assert page.read_text("utf-8").startswith('<!DOCTYPE html>\n<html lang="en">')
    assert main(["report", events, "--html", str(tmp_path / "no" / "page")]) == 1


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "before", *RETRIES)
    after = written(tmp_path / "after", refused(0), shake(1, "accepted"))
    text = said(capsys, "--compare", before, after, "--fail-on", "error", status=3)
    assert "New: 1\n  error accepts-any-certificate" in text
    assert "Gone: 1\n  warning retries-511" in text
    said(capsys, "--compare", before, before, "--fail-on", "note")
    found = json.loads(said(capsys, "--compare", before, after, "--json"))
    assert [it["id"] for it in found["new"]] == ["accepts-any-certificate"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["no-such"], "no-such: there is no such file"),
        (["--flows", "no-such"], "no-such: No such file"),
        (["--flows", "events", "events"], "not both"),
        (["--flows", "events"], "not a flow file of mitmproxy"),
        (["events", "--baseline", "empty"], "neither a report (--json) nor a file of events"),
        (["--compare", "events", "policy.yaml"], "neither a report"),
        (["--compare", "events", "nested"], "neither a report"),
        (["events", "--baseline", "old.json"], "a report of another version"),
    ],
)
def test_what_cannot_be_read_is_an_error_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "events", *RETRIES)
    (tmp_path / "empty").touch()
    (tmp_path / "nested").write_text("[" * 100_000)
    (tmp_path / "old.json").write_text('{"version": 0, "findings": []}')
    (tmp_path / "policy.yaml").write_text("login_url: https://login.example.net/\n")
    assert main(["report", *arguments]) == 1
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


def test_a_line_that_is_nested_too_deeply_is_no_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events"
    written(path, *RETRIES)
    before = document(capsys, str(path))
    with path.open("a") as file:
        file.write("[" * 100_000 + "\n")
    after = document(capsys, str(path))
    assert after["clients"] == before["clients"]
    assert after["lines_not_read"] == before["lines_not_read"] + 1
