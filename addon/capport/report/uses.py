"""The uses of HTTP that a portal disturbs, as RFC 6585 appendix B and section 7.4 list them.

A use is recognised by what a request says of itself, so it is a guess that may be wrong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from capport.core.probes import ANYWHERE, connectivity_check
from capport.report.agents import agent_of
from capport.report.recording import Request


@dataclass(frozen=True, slots=True)
class HttpUse:
    """A use of HTTP by something other than a person at a page."""

    name: str
    section: str = "RFC 6585 appendix B"


_DAV = {
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT"),
    *("SEARCH", "ACL", "BIND", "UNBIND", "REBIND", "MKREDIRECTREF", "ORDERPATCH"),
    *("VERSION-CONTROL", "CHECKOUT", "CHECKIN", "UNCHECKOUT", "MKWORKSPACE", "UPDATE", "LABEL"),
    *("MERGE", "MKACTIVITY", "BASELINE-CONTROL"),
}


type _Test = Callable[[Request], bool]


def _path(pattern: re.Pattern[str]) -> _Test:
    return lambda request: bool(pattern.search(request.path))


def _agent(*words: str) -> _Test:
    """Whether a User-Agent has one of these words, or begins with it if it has a ^ before it."""
    return lambda request: any(word in f"^{request.agent.lower()}" for word in words)


_PACKAGES = (
    *("debian apt", "^libdnf", "^dnf", "^yum", "zypp", "^pacman", "^apk-tools", "^opkg", "^pip/"),
    *("^uv/", "^poetry", "^npm/", "^yarn/", "^pnpm/", "^cargo", "^bundler", "rubygems"),
    *("^composer", "^apache-maven", "^gradle", "^nuget", "^git/", "^docker/", "^containerd"),
    *("homebrew", "flatpak", "snapd", "^conda", "^mamba"),
)
_UPDATES = (
    *("sparkle/", "windows-update-agent", "microsoft bits", "google update", "softwareupdate"),
    *("fwupd", "squirrel", "electron-updater", "winget", "omaha", "mozilla-update"),
)
_FEEDS = (
    *("feed", "rss", "tiny tiny", "newsboat", "netnewswire", "miniflux", "liferea"),
    *("podcast", "gpodder"),
)

_FEED_TYPES = re.compile(r"application/(?:rss|atom|feed)")

# Each use with its tests, of which one has to hold. The first use that matches counts.
_USES: dict[str, tuple[_Test, ...]] = {
    "favicon": (_path(re.compile(r"^/favicon\.ico$|^/apple-touch-icon")),),
    "P3P": (_path(re.compile(r"^/w3c/p3p\.xml$")),),
    "WebFinger": (_path(re.compile(r"^/\.well-known/(webfinger|host-meta)")),),
    "OAuth": (
        _path(re.compile(r"/oauth2?/|/oauth2?$|/openid-connect/")),
        _path(re.compile(r"^/\.well-known/(openid-configuration|oauth-authorization-server)")),
    ),
    "CORS preflight": (lambda request: request.preflight and request.method == "OPTIONS",),
    "CalDAV or CardDAV": (
        lambda request: request.method in {"MKCALENDAR", "MKADDRESSBOOK"},
        _path(
            re.compile(r"^/\.well-known/(caldav|carddav)|/(caldav|carddav|calendars|addressbooks)/")
        ),
        _agent("caldav", "carddav", "davx", "dataaccessd", "calendaragent", "evolution/"),
    ),
    "WebDAV": (
        lambda request: request.method in _DAV,
        _agent("webdav", "davfs2", "cadaver", "^svn/", "gvfs/"),
        _path(re.compile(r"/remote\.php/(web)?dav")),
    ),
    "package manager": (_agent(*_PACKAGES),),
    "software update": (
        _agent(*_UPDATES),
        _path(re.compile(r"/appcast\.xml$|/latest(-\w+)?\.yml$")),
    ),
    "feed": (
        lambda request: bool(_FEED_TYPES.search(request.accept)),
        _path(re.compile(r"\.(rss|atom)$")),
        _agent(*_FEEDS),
    ),
    "widget": (_agent("widget", "dashboard", "conky", "weather", "watchface"),),
}


def use_of(request: Request) -> HttpUse | None:
    """The use that a request is of; None for pages, and for programs that are none of these."""
    if (system := checking(request)) is not None:
        return HttpUse(f"connectivity check: {system}", "RFC 6585 section 6")
    for name, tests in _USES.items():
        if any(test(request) for test in tests):
            return HttpUse(name)
    is_program = request.detailed and request.agent and not agent_of(request.agent).browser
    return HttpUse("program that is no browser") if is_program else None


def checking(request: Request) -> str | None:
    """The system that asks whether it is online, which it is meant to ask again and again."""
    if request.scheme != "http" or request.port not in {None, 80}:
        return None
    check = connectivity_check(request.host, request.path, request.method, ANYWHERE)
    # With a query, www.google.com/gen_204 is a measurement of Google's pages.
    return check.system if check and not (request.query and request.path == "/gen_204") else None
