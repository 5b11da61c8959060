"""The uses of HTTP that RFC 6585 appendix B lists are recognised by what a request says."""

import pytest

from capport.report.agents import agent_of
from capport.report.uses import use_of
from report.recorded import BROWSER, client_of, refused

APPLE = "CaptiveNetworkSupport-464.60.1 wispr"


def used(path: str = "/", **fields: object) -> str | None:
    (request,) = client_of(refused(0, path, **fields)).requests
    use = use_of(request)
    return use.name if use else None


@pytest.mark.parametrize(
    ("path", "fields", "use"),
    [
        ("/", {"agent": BROWSER}, None),
        ("/favicon.ico", {"agent": BROWSER}, "favicon"),
        ("/w3c/p3p.xml", {}, "P3P"),
        ("/.well-known/webfinger", {}, "WebFinger"),
        ("/oauth2/token", {"method": "POST"}, "OAuth"),
        ("/.well-known/openid-configuration", {"agent": BROWSER}, "OAuth"),
        ("/api", {"method": "OPTIONS", "preflight": True, "agent": BROWSER}, "CORS preflight"),
        ("/api", {"method": "OPTIONS", "agent": BROWSER}, None),
        ("/docs", {"method": "PROPFIND"}, "WebDAV"),
        ("/docs", {"method": "GET", "agent": "gvfs/1.50"}, "WebDAV"),
        ("/x", {"method": "MKCALENDAR"}, "CalDAV or CardDAV"),
        ("/.well-known/carddav", {"method": "PROPFIND"}, "CalDAV or CardDAV"),
        ("/", {"agent": "DAVx5/4.3 (dav4jvm; okhttp/4.11)"}, "CalDAV or CardDAV"),
        ("/blog/index.rss", {}, "feed"),
        ("/blog", {"accept": "application/atom+xml, */*"}, "feed"),
        ("/", {"agent": "Miniflux/2.1"}, "feed"),
        ("/", {"agent": "Weather Widget/1.0"}, "widget"),
        ("/appcast.xml", {}, "software update"),
        ("/dists/stable/InRelease", {"agent": "Debian APT-HTTP/1.3 (2.6.1)"}, "package manager"),
        ("/simple/", {"agent": "pip/23.2.1 {}"}, "package manager"),
        ("/left-pad", {"agent": "npm/10.2 node/v20"}, "package manager"),
        ("/info/refs", {"agent": "git/2.39.5"}, "package manager"),
        ("/v1", {"agent": "axios/1.7"}, "program that is no browser"),
        ("/v1", {"agent": None}, None),
        ("/generate_204", {"agent": None}, "connectivity check: a system"),
        (
            "/hotspot-detect.html",
            {"host": "captive.apple.com", "agent": APPLE},
            "connectivity check: Apple",
        ),
        (
            "/canonical.html",
            {"host": "detectportal.firefox.com", "agent": BROWSER},
            "connectivity check: Firefox",
        ),
        ("/gen_204", {"host": "www.google.com", "query": "0a", "agent": BROWSER}, None),
    ],
)
def test_a_use_is_recognised(path: str, fields: dict[str, object], use: str | None) -> None:
    assert used(path, **fields) == use


@pytest.mark.parametrize(
    ("text", "name", "version", "browser"),
    [
        (BROWSER, "Firefox", "128.0", True),
        (
            "Mozilla/5.0 (X11) AppleWebKit/537.36 Chrome/130.0 Safari/537.36",
            "Chrome",
            "130.0",
            True,
        ),
        ("Mozilla/5.0 (X11) HeadlessChrome/130.0 Safari/537.36", "Chrome", "130.0", True),
        ("Mozilla/5.0 (Mac) Version/17.4 Mobile Safari/604.1", "Safari", "17.4", True),
        ("Mozilla/5.0 (compatible; Miniflux/2.1)", "Mozilla", "5.0", False),
        ("Debian APT-HTTP/1.3 (2.6.1)", "Debian APT-HTTP", "1.3", False),
        ("python-requests/2.32", "python-requests", "2.32", False),
        ("Wget", "Wget", "", False),
        ("", "", "", False),
    ],
)
def test_an_agent_is_its_first_product(text: str, name: str, version: str, browser: bool) -> None:
    agent = agent_of(text)
    assert (agent.name, agent.version, agent.browser) == (name, version, browser)
