"""An app on requests."""

import pytest
import requests

from capport.testing import Portal


def news(session: requests.Session, url: str) -> list[str]:
    """The app: it reads its news, and does not take a portal's page for them."""
    answer = session.get(url, timeout=10, allow_redirects=False)
    answer.raise_for_status()
    if answer.headers["Content-Type"] != "application/json":
        session.cookies.clear()  # a portal's page may have set some in the origin's name
        raise requests.RequestException("these are not the news")
    found: list[str] = answer.json()["news"]
    return found


@pytest.fixture
def session(portal: Portal) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # this machine's own proxy and CA variables
    session.proxies, session.verify = portal.proxies, str(portal.ca_file)
    return session


@pytest.mark.parametrize("portal_kind", ["511", "redirect", "page", "script", "reset"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_app_withstands_the_portal_and_recovers(
    portal: Portal, session: requests.Session, scheme: str
) -> None:
    portal.serve("/news", {"news": ["one"]})
    url = portal.url_for("/news", scheme=scheme)
    with pytest.raises(requests.RequestException):
        news(session, url)
    portal.grant()
    assert news(session, url) == ["one"]
    assert not portal.report.errors()


@pytest.mark.parametrize("portal_kind", ["forged-tls"])
def test_the_app_checks_certificates(portal: Portal, session: requests.Session) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        news(session, portal.url_for("/news", scheme="https"))
    assert [shake.outcome for shake in portal.report.handshakes] == ["rejected"]
    assert not portal.report.errors()


def test_a_download_that_is_cut_off_is_an_error(portal: Portal, session: requests.Session) -> None:
    portal.serve("/large", b"x" * 100_000, hold_after=50_000)
    portal.grant()
    answer = session.get(portal.url_for("/large"), timeout=10, stream=True)
    parts = answer.iter_content(50_000)
    next(parts)
    portal.expire()
    with pytest.raises(requests.RequestException):
        next(parts)
