"""The portal that an app's tests start: what they can do with it, and what it reports to them."""

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capport.testing import Portal, PortalError
from conftest import SOON
from lab.namespaces import wait_for
from testing.asking import ask, connection_for


@pytest.fixture(scope="module")
def app_portal() -> Iterator[Portal]:
    with Portal() as it:
        yield it


@pytest.fixture
def subject(app_portal: Portal) -> Portal:
    app_portal.reset()
    return app_portal


def test_it_refuses_until_a_test_grants_and_again_when_it_revokes(subject: Portal) -> None:
    url = subject.url_for("/data?q=1")
    assert url == "http://origin.test/data?q=1"
    refused = ask(subject, url)
    assert refused.status == 511
    assert subject.login_url.encode() in refused.body
    subject.grant()
    assert ask(subject, url).body == b'{"method": "GET", "host": "origin.test", "path": "/data"}'
    subject.revoke()
    assert ask(subject, url).status == 511


def test_tls_to_any_name_reaches_the_origin_whose_ca_is_trusted(subject: Portal) -> None:
    for host in ("origin.test", "api.example.com", "192.0.2.80"):
        url = subject.url_for("/data", scheme="https", host=host)
        with pytest.raises(OSError, match="511"):
            ask(subject, url)
        subject.grant()
        if host != "192.0.2.80":  # an address is not a name, and is dialled as it is
            assert ask(subject, url).status == 200
        subject.revoke()


def test_the_origin_answers_as_a_test_says_until_the_next_reset(subject: Portal) -> None:
    subject.serve("/json", {"a": [1]}, headers={"ETag": '"1"'})
    subject.serve("/text", "für alle", status=404)
    subject.serve("/bytes", b"\x00\xff")
    subject.grant()
    got = ask(subject, subject.url_for("/json"))
    assert (got.body, got.headers["ETag"]) == (b'{"a": [1]}', '"1"')
    assert got.headers["Content-Type"] == "application/json"
    assert ask(subject, subject.url_for("/text")).body.decode() == "für alle"
    assert ask(subject, subject.url_for("/bytes")).body == b"\x00\xff"
    subject.reset()
    subject.grant()
    assert b"origin.test" in ask(subject, subject.url_for("/json")).body


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("end", ["expire", "revoke"])
def test_a_session_ends_in_the_middle_of_an_answer(subject: Portal, scheme: str, end: str) -> None:
    subject.serve("/large", b"x" * 100_000, hold_after=50_000)
    subject.grant()
    url = subject.url_for("/large", scheme=scheme)
    connection = connection_for(subject, url)
    connection.request("GET", url if scheme == "http" else "/large")
    answer = connection.getresponse()
    assert len(answer.read(50_000)) == 50_000
    getattr(subject, end)()
    with contextlib.suppress(http.client.IncompleteRead, ssl.SSLError, ConnectionError):
        assert answer.read() == b""
    connection.close()
    said = {"expire": "expired", "revoke": "revoked"}[end]
    subject.wait_for(lambda report: any(one["event"] == said for one in subject.events()))
    assert ask(subject, subject.url_for("/large")).status == 511


def test_a_session_lasts_as_long_as_a_test_says(subject: Portal) -> None:
    subject.grant(seconds=0.2)
    subject.wait_for(lambda report: any(one["event"] == "expired" for one in subject.events()))
    assert ask(subject, subject.url_for("/")).status == 511


def test_the_button_of_the_sign_in_page_grants(subject: Portal) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=SOON)
    connection.request("POST", subject.login_url)  # through the proxy, as most clients do
    assert connection.getresponse().status == 200
    connection.close()
    assert ask(subject, subject.url_for("/")).status == 200


def test_after_a_reset_nothing_of_before_is_known_or_reported(subject: Portal) -> None:
    port = subject.port
    subject.grant()
    assert ask(subject, subject.url_for("/")).status == 200
    subject.reset(kind="page", policy="network: Another")
    assert [one["event"] for one in subject.events()] == ["watched"]
    assert ask(subject, subject.url_for("/")).status == 200
    subject.reset()
    assert ask(subject, subject.url_for("/")).status == 511
    assert subject.port == port


def test_a_policy_of_the_test_s_own_is_in_force(subject: Portal) -> None:
    subject.reset(policy="walled_garden: [status.example.org]\nprobes: strict\n")
    assert ask(subject, "http://status.example.org/").status == 200
    assert ask(subject, "http://connectivitycheck.gstatic.com/generate_204").status == 511
    subject.reset()
    assert ask(subject, "http://status.example.org/").status == 511


def test_a_known_client_s_tls_is_inspected_if_the_policy_says_so(subject: Portal) -> None:
    subject.reset(policy="tls: {known: inspect}")
    subject.grant()
    url = subject.url_for("/inspected", scheme="https")
    assert ask(subject, url, trusts=subject.own_ca_file).status == 200
    assert "/inspected" in {request.path for request in subject.report.requests}
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(subject, url)


def test_limits_count_again_from_the_start_after_a_reset(subject: Portal) -> None:
    for _ in range(2):
        subject.reset(policy="limits: {unknown_requests: {count: 2, per: 1h}}")
        got = [ask(subject, subject.url_for("/")).status for _ in range(3)]
        assert got == [511, 511, 429]


def test_a_policy_that_cannot_be_used_is_an_error_that_says_why(subject: Portal) -> None:
    with pytest.raises(PortalError, match=r"tls: \{unknwon: refuse\}"):
        subject.reset(policy="tls: {unknwon: refuse}")
    subject.reset()
    assert ask(subject, subject.url_for("/")).status == 511
    with pytest.raises(PortalError, match="did you mean 'unknown'"):
        Portal(policy="tls: {unknwon: refuse}").start()


def test_the_report_has_what_the_client_did(subject: Portal) -> None:
    ask(
        subject, subject.url_for("/a?secret=1"), headers={"Cookie": "canary=1", "User-Agent": "app"}
    )
    with pytest.raises(OSError, match="511"):
        ask(subject, subject.url_for("/b", scheme="https"))
    subject.reset(policy="tls: {unknown: intercept, connect: alert}")
    ask(subject, subject.url_for("/a"), headers={"Cookie": "canary=1", "User-Agent": "app"})
    with pytest.raises(ssl.SSLError):
        ask(subject, subject.url_for("/b", scheme="https"))
    assert ask(subject, subject.url_for("/c", scheme="https"), checks=False).status == 511
    report = subject.report
    assert [(one.path, one.cookies) for one in report.requests] == [("/a", 1), ("/c", 0)]
    assert [one.outcome for one in report.handshakes] == ["rejected", "accepted"]
    ids = {finding.rule.id for finding in report.findings}
    assert {"accepts-any-certificate", "cookies-to-portal"} <= ids
    assert "accepts-any-certificate" in repr(report.errors())
    assert "canary=1" not in "".join(p.read_text() for p in subject.folder.glob("*.jsonl"))


def test_a_test_can_wait_for_what_an_app_does_in_the_background(subject: Portal) -> None:
    with ThreadPoolExecutor(1) as background:
        asked = background.submit(ask, subject, subject.url_for("/sync"))
        report = subject.wait_for(lambda report: report.requests)
        assert asked.result().status == 511
    assert report.requests[0].path == "/sync"
    with pytest.raises(TimeoutError):
        subject.wait_for(lambda report: len(report.requests) > 1, seconds=0.1)


class InUnittest(unittest.TestCase):
    it: Portal

    @classmethod
    def setUpClass(cls) -> None:
        cls.it = cls.enterClassContext(Portal(listen=("0.0.0.0", 0)))

    def test_it_serves_other_machines_and_grants_them_one_by_one(self) -> None:
        assert "127.0.0.1" in self.it.proxy_url
        assert "0.0.0.0" not in self.it.login_url
        self.it.grant("192.0.2.77")
        assert ask(self.it, self.it.url_for("/")).status == 511
        self.it.grant()  # all clients that were seen
        assert ask(self.it, self.it.url_for("/")).status == 200


def is_listening(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_it_ends_and_leaves_no_file_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = """\
        import time
        from capport.testing import Portal
        portal = Portal()
        portal.start()
        print(portal.port, portal.folder, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    port, folder = parent.stdout.readline().split()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not Path(folder).exists() and not is_listening(int(port)), SOON)
