"""Portals of other kinds: what each sends, and that they exist only for tests."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from capport import cli
from capport.core.reply import Asked, reply_to
from capport.core.verdict import Imitated, NetworkAuthenticationRequired
from capport.policy import policy_file
from capport.policy.policy_file import PolicyError
from capport.proxy.mitmproxy_options import OURS as OPTIONS
from capport.testing import Portal
from capport.testing.kinds import KINDS, OURS
from json_schemas import wrong_events
from testing.asking import ask

OTHERS = [name for name in KINDS if name != OURS]
BY_PROXY = [name for name, kind in KINDS.items() if not kind.needs]


@pytest.fixture(scope="module")
def app_portal() -> Iterator[Portal]:
    with Portal() as it:
        yield it


@pytest.fixture
def behind(app_portal: Portal, kind: str) -> Iterator[Portal]:
    app_portal.reset(kind=kind)
    yield app_portal
    assert wrong_events(app_portal.events()) == []


@pytest.mark.parametrize("kind", ["redirect", "forged-tls"])
def test_a_redirect_leads_to_the_sign_in_page_and_may_be_stored(behind: Portal) -> None:
    got = ask(behind, behind.url_for("/"))
    assert (got.status, got.headers["Location"]) == (302, behind.login_url)
    assert "Cache-Control" not in got.headers


@pytest.mark.parametrize("kind", ["page"])
def test_a_page_of_a_portal_speaks_in_the_origin_s_name(behind: Portal) -> None:
    got = ask(behind, behind.url_for("/"))
    assert got.status == 200
    assert got.headers["ETag"]
    assert got.headers["Set-Cookie"]
    assert behind.login_url.encode() in got.body
    headers = {"If-None-Match": got.headers["ETag"]}
    ask(behind, behind.url_for("/"), headers=headers)
    assert "takes-page-for-origin" in {it.rule.id for it in behind.report.findings}


@pytest.mark.parametrize("kind", ["script"])
def test_a_script_goes_to_the_sign_in_page(behind: Portal) -> None:
    got = ask(behind, behind.url_for("/"))
    assert got.status == 200
    assert f'window.location="{behind.login_url}"'.encode() in got.body


@pytest.mark.parametrize("kind", ["reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_is_answered_by_a_reset(behind: Portal, method: str) -> None:
    with pytest.raises(ConnectionResetError):
        ask(behind, behind.url_for("/"), method=method)
    (request,) = behind.report.requests
    assert (request.refused, request.status) == (True, None)


@pytest.mark.parametrize("kind", ["redirect", "page", "script", "reset"])
def test_tls_is_reset(behind: Portal) -> None:
    with pytest.raises(ConnectionResetError):
        ask(behind, behind.url_for("/", scheme="https"))
    assert [shake.outcome for shake in behind.report.handshakes] == ["dropped"]


@pytest.mark.parametrize("kind", ["forged-tls"])
def test_a_forged_certificate_is_for_any_name_and_of_no_ca_that_is_known(behind: Portal) -> None:
    url = behind.url_for("/", scheme="https", host="www.example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
        ask(behind, url)
    assert ask(behind, url, checks=False).status == 302
    assert [it.rule.id for it in behind.report.errors()] == ["accepts-any-certificate"]


@pytest.mark.parametrize("kind", BY_PROXY)
def test_a_client_that_is_granted_a_session_reaches_the_origin_behind_each(behind: Portal) -> None:
    behind.grant()
    for scheme in ("http", "https"):
        assert b"origin.test" in ask(behind, behind.url_for("/", scheme=scheme)).body
    behind.revoke()
    behind.reset()
    assert ask(behind, behind.url_for("/")).status == 511


def test_a_kind_that_takes_a_network_is_refused_with_the_reason(app_portal: Portal) -> None:
    for start in (lambda: Portal(kind="silent"), lambda: app_portal.reset(kind="dns-lie")):
        with pytest.raises(ValueError, match="only in a network of its own"):
            start()
    with pytest.raises(ValueError, match="use one of 511, redirect, "):
        Portal(kind="pages")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "text", ["kind: {}", "as: {}", "portal: {}", "tls: {{unknown: {}}}", "probes: {}"]
)
def test_a_policy_cannot_ask_for_another_kind(kind: str, text: str, tmp_path: Path) -> None:
    policy = f"login_url: https://login.example.net/\n{text.format(kind)}\n"
    with pytest.raises(PolicyError):
        policy_file.parse(policy, "policy.yaml", tmp_path)


def test_neither_the_router_nor_the_proxy_has_an_option_for_it(tmp_path: Path) -> None:
    assert not any("kind" in option for option in OPTIONS)
    for command in ("router up", "run", "login"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command.split(), "--as", "page", str(tmp_path)])
        assert ended.value.code == 2


def test_an_imitated_reply_has_nothing_that_the_portals_own_adds() -> None:
    login = NetworkAuthenticationRequired("why", "https://login.example.net/?a=1&b=<")
    for kind in ("redirect", "page", "script"):
        reply = reply_to(KINDS[kind].imitate(login), Asked())
        assert {"Cache-Control", "Vary"}.isdisjoint(name for name, _ in reply.fields)
        assert ("Content-Length", str(len(reply.body))) in reply.fields
        assert b"b=<" not in reply.body
        assert reply_to(KINDS[kind].imitate(login), Asked(method="HEAD")).body == b""


def test_http2_which_has_no_reset_of_its_kind_gets_502() -> None:
    assert reply_to(Imitated("why"), Asked()).status == 502
