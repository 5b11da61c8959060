"""The connectivity checks of operating systems, and which of them need a 302 to show a sign-in."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """A system's connectivity check.

    `redirect` is whether the system needs a 302, because it does not read a 511 as "sign in".
    `body` is whether that 302 may have a body.
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
"""The paths that are a check at any host, unless the policy has others (`probe_paths`).

Makers of devices have their own hosts, and add new ones, but the path stays the same.
"""

CHECKED_BY_TLS = "www.google.com"
"""Android and ChromeOS also check this host over https. That must fail until they sign in."""

# Which statuses mean a portal: for Android's NetworkMonitor 200 to 399 (all others mean "no
# internet"), for ChromeOS's shill 302 and 307 only, for ConnMan not 511. Apple documents no 5xx.
_ANDROID_HOSTS = (
    "connectivitycheck.gstatic.com",  # also of ChromeOS and Chromium
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

# Chromium and Firefox read a 511. NetworkManager takes any unexpected answer for a portal, Windows
# any status but 200. The others compare the answer with the one that they expect.
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

CHECK_HOSTS = frozenset({*(host for host, _ in _PROBES), "dns.msftncsi.com"})
"""The hosts of all checks. A system shows the portal only if it can resolve their names.

Windows only resolves the name of the last one."""


def connectivity_check(
    host: str, path: str, method: str, anywhere: Collection[str]
) -> Probe | None:
    """The connectivity check that this plain HTTP request on port 80 is, or None.

    A check is a GET or HEAD for a known host (as `place.parse_host` returns it) with its path, or
    for one of the paths that are a check `anywhere`. User-Agent does not count, because anybody may
    send any. `path` includes the query, because other requests differ by it: Google's own pages
    send measurements to www.google.com/gen_204?..., and RFC 6585 appendix B warns of redirecting
    such requests.
    """
    if method not in {"GET", "HEAD"}:
        return None
    return _PROBES.get((host, path)) or (_ANY if path in anywhere else None)


def known_checks() -> Iterator[tuple[str, str, str]]:
    """The system, the host and the path of each check that has a host of its own."""
    yield from ((probe.system, host, path) for (host, path), probe in _PROBES.items())
