"""The connectivity checks of systems: some take a 302 for "sign in", others a 511 too."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """A system's connectivity check.

    `redirect` is whether only a 302 tells it to sign in; `body`, whether that may carry a body.
    """

    system: str
    redirect: bool = True
    body: bool = True


_ANDROID = Probe("Android")
_CHROMEOS = Probe("ChromeOS")
_APPLE = Probe("Apple")
# ConnMan 1.41-3 drops its context at the first byte of a body (and more of it: reply.py).
_CONNMAN = Probe("ConnMan", body=False)
_ANY = Probe("a system")

ANYWHERE = ("/generate_204",)
"""The paths that are a check at whatever host, if the policy names no others (`probe_paths`).

Makers of devices have hosts of their own, and new ones; the path is what stays the same.
"""

CHECKED_BY_TLS = "www.google.com"
"""Where Android and ChromeOS also ask over https; that must fail until they have signed in."""

# Android's NetworkMonitor: 200 to 399 is a portal, everything else is "no internet".
# ChromeOS's shill: 302 and 307 only. Apple says nothing of 5xx. ConnMan: 511 is not in its switch.
_ANDROID_HOSTS = (
    "connectivitycheck.gstatic.com",  # ChromeOS and Chromium ask here, too
    "connectivitycheck.android.com",
    "clients3.google.com",
    "play.googleapis.com",
    "connect.rom.miui.com",
    "connectivitycheck.platform.hicloud.com",
    "connectivitycheck.grapheneos.network",
)
_CHROMEOS_HOSTS = (
    "www.gstatic.com",
    "safebrowsing.google.com",
    "www.googleapis.com",
    "www.play.googleapis.com",
)
_APPLE_ALIASES = (
    "appleiphonecell.com",
    "thinkdifferent.us",
    "airport.us",
    "ibook.info",
    "itools.info",
)

# Chromium and Firefox read a 511; for NetworkManager any unexpected answer is a portal, for Windows
# any status but 200; the others compare what they get with what they expect.
_READ_A_511 = (
    ("Windows", "www.msftconnecttest.com", "/connecttest.txt"),
    ("Windows", "ipv6.msftconnecttest.com", "/connecttest.txt"),
    ("Windows", "www.msftconnecttest.com", "/redirect"),
    ("Windows", "www.msftncsi.com", "/ncsi.txt"),
    ("Windows", "ipv6.msftncsi.com", "/ncsi.txt"),
    ("Edge", "edge-http.microsoft.com", "/captiveportal/generate_204"),
    ("Firefox", "detectportal.firefox.com", "/canonical.html"),
    ("Firefox", "detectportal.firefox.com", "/success.txt"),
    ("Firefox", "detectportal.firefox.com", "/success.txt?ipv4"),
    ("Firefox", "detectportal.firefox.com", "/success.txt?ipv6"),
    ("Debian", "network-test.debian.org", "/nm"),
    ("GNOME", "nmcheck.gnome.org", "/check_network_status.txt"),
    ("Ubuntu", "connectivity-check.ubuntu.com", "/"),
    ("Fedora", "fedoraproject.org", "/static/hotspot.txt"),
    ("Arch Linux", "ping.archlinux.org", "/nm-check.txt"),
    ("KDE", "networkcheck.kde.org", "/"),
    ("Fire OS", "spectrum.s3.amazonaws.com", "/kindle-wifi/wifistub.html"),
    ("Nintendo", "conntest.nintendowifi.net", "/"),
    ("Steam", "test.steampowered.com", "/204"),
)

_PROBES: dict[tuple[str, str], Probe] = {
    **{(host, "/generate_204"): _ANDROID for host in _ANDROID_HOSTS},
    ("www.google.com", "/gen_204"): _ANDROID,
    **{(host, "/generate_204"): _CHROMEOS for host in _CHROMEOS_HOSTS},
    ("captive.apple.com", "/hotspot-detect.html"): _APPLE,
    ("www.apple.com", "/library/test/success.html"): _APPLE,
    **{
        (www + host, path): _APPLE
        for host in _APPLE_ALIASES
        for www in ("", "www.")
        for path in ("/", "/library/test/success.html")
    },
    **{(f"ipv{n}.connman.net", "/online/status.html"): _CONNMAN for n in (4, 6)},  # its two URLs
    **{(host, path): Probe(system, redirect=False) for system, host, path in _READ_A_511},
}

# Those that read a 511, or anything unexpected, as a portal: Firefox, Windows, NetworkManager.
_OTHER_HOSTS = (
    "detectportal.firefox.com",
    "www.msftconnecttest.com",
    "ipv6.msftconnecttest.com",
    "www.msftncsi.com",
    "dns.msftncsi.com",
    "nmcheck.gnome.org",
    "network-test.debian.org",
    "connectivity-check.ubuntu.com",
    "fedoraproject.org",
    "ping.archlinux.org",
)

CHECK_HOSTS = frozenset({*(host for host, _ in _PROBES), *_OTHER_HOSTS})
"""Where systems ask whether there is a portal: names that have to be found for one to be shown."""


def connectivity_check(
    host: str, path: str, method: str, anywhere: Collection[str]
) -> Probe | None:
    """The check that this plain HTTP request on port 80 is, if it is one.

    By exact host (as `place.parse_host` has it) and path, or by a path that is one `anywhere`; GET
    or HEAD, and never by User-Agent, which anybody may send. `path` is the request's, with its
    query: other requests to the same path have one (www.google.com/gen_204?... is where Google's
    own pages send what they measure), and RFC 6585 appendix B warns of redirecting those.
    """
    if method not in {"GET", "HEAD"}:
        return None
    return _PROBES.get((host, path)) or (_ANY if path in anywhere else None)


def known_checks() -> Iterator[tuple[str, str, str]]:
    """Each check that is known by host and path: its system, the host, and the path."""
    yield from ((probe.system, host, path) for (host, path), probe in _PROBES.items())
