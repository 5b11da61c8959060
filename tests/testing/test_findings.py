"""Real clients behind a portal of a kind: one that breaks a rule, and one that keeps it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import requires
from capport.report.rules import RULES
from capport.report.summary import report_on
from capport.testing import Portal
from conftest import SOON
from report.clients import CLIENTS as BY_PROXY

TRUSTED = """
tls: {unknown: intercept, connect: alert}
clients: [{address: 127.0.0.1, trusts_ca: true}]
"""
RETRIES = """
import sys, urllib3
retry = urllib3.Retry(6, status_forcelist=[511], allowed_methods=None)
retry.raise_on_status = False
urllib3.ProxyManager(sys.argv[1]).request("GET", sys.argv[2], retries=retry)
"""


@dataclass(frozen=True)
class Behaviour:
    """What a client does before it is granted a session and afterwards, and what is found."""

    before: str
    after: str = "curl -sf $URL"
    kind: str = "511"
    policy: str = ""
    found: frozenset[str] = frozenset()


def finds(*names: str) -> frozenset[str]:
    return frozenset(names)


CLIENTS = {
    "urllib3 with Retry, which begins a TLS handshake again at once": Behaviour(
        "retries https://x.test/", found=finds("retries-handshake"), kind="reset"
    ),
    "urllib3 with Retry and no back-off, on 511": Behaviour(
        "retries $URL", found=finds("retries-511", "no-back-off")
    ),
    "curl --retry, which waits longer each time": Behaviour(
        "curl -sf --retry 3 --retry-all-errors $URL", found=finds("retries-511")
    ),
    "curl that has given up when it is granted a session": Behaviour(
        "curl -sf $URL", "true", found=finds("never-recovers")
    ),
    "curl that waits until it may": Behaviour("curl -sf $URL"),
    "curl that keeps a 511 as a file, and asks whether it is fresh": Behaviour(
        "curl -s -o page $URL; sleep 3", "curl -s -z page $URL", found=finds("caches-511")
    ),
    "curl -f, which keeps none": Behaviour(
        "curl -sf -o page $URL; sleep 3", "curl -s -z page $URL"
    ),
    "curl that keeps the ETag of a portal's page": Behaviour(
        "curl -sf --etag-save tag -o page $URL",
        "curl -s --etag-compare tag $URL",
        "page",
        found=finds("takes-page-for-origin"),
    ),
    "curl that keeps the ETag of the origin's page alone": Behaviour(
        "curl -sf --etag-save tag -o page $URL", "curl -sf --etag-compare tag $URL"
    ),
    "curl that pins a key": Behaviour(
        "curl -sf --cacert $OWN_CA --pinnedpubkey sha256//AAAA= https://x.test/",
        policy=TRUSTED,
        found=finds("pins-certificate"),
    ),
    "curl that trusts the CA of its device": Behaviour(
        "curl -sf --cacert $OWN_CA https://x.test/", policy=TRUSTED
    ),
    "wget, which follows a redirect": Behaviour(
        "wget -q -O page $URL", kind="redirect", found=finds("follows-redirect")
    ),
    "curl, which does not": Behaviour("curl -sf -o page $URL", kind="redirect"),
}


@pytest.fixture(scope="module")
def app_portal() -> Iterator[Portal]:
    with Portal() as it:
        yield it


@requires.tool("curl", "wget")
@pytest.mark.parametrize("name", CLIENTS)
def test_what_a_client_does_is_found_and_nothing_else(
    app_portal: Portal, tmp_path: Path, name: str
) -> None:
    client = CLIENTS[name]
    app_portal.reset(kind=client.kind, policy=client.policy)
    (tmp_path / "retries.py").write_text(RETRIES)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        **app_portal.environment,
        "URL": app_portal.url_for("/data"),
        "OWN_CA": str(app_portal.own_ca_file),
    }

    def run(command: str) -> None:
        asking = f"{sys.executable} retries.py {app_portal.proxy_url} "
        argv = ["sh", "-c", command.replace("retries ", asking, 1)]
        subprocess.run(argv, cwd=tmp_path, env=environment, timeout=100, check=False)

    run(client.before)
    app_portal.grant()
    run(client.after)
    report = report_on(app_portal.events(), until=time.time() + 60)
    assert {finding.rule.id for finding in report.findings} == client.found


def test_each_rule_has_a_real_client_that_shows_it() -> None:
    shown = {"favicon-of-portal"}.union(*(client.found for client in CLIENTS.values()))
    assert shown.union(*(found for _, _, found in BY_PROXY.values())) == {it.id for it in RULES}


@requires.tool("firefox-esr")
@pytest.mark.browser
def test_a_browser_asks_for_the_icon_of_a_site_whose_page_the_portal_gave_it(
    app_portal: Portal, tmp_path: Path
) -> None:
    app_portal.reset(kind="page")
    settings = {
        "network.proxy.type": 1,
        "network.proxy.http": "127.0.0.1",
        "network.proxy.http_port": app_portal.port,
        "network.captive-portal-service.enabled": False,
    }
    lines = [f"user_pref({name!r}, {json.dumps(value)});" for name, value in settings.items()]
    (tmp_path / "user.js").write_text("\n".join(lines))
    argv = ("firefox-esr", "--headless", "--no-remote", "--profile", str(tmp_path))
    with (tmp_path / "log").open("wb") as log:
        browser = subprocess.Popen([*argv, app_portal.url_for("/")], stdout=log, stderr=log)
    try:
        found = app_portal.wait_for(lambda report: report.findings).findings
    finally:
        browser.terminate()
        browser.wait(SOON)
    assert {finding.rule.id for finding in found} == {"favicon-of-portal"}
