"""The connectivity checks of systems that take a 302, and not a 511, for "sign in"."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """A system's connectivity check. `body` is whether the 302 may carry a body."""

    system: str
    body: bool = True


_ANDROID = Probe("Android")
_CHROMEOS = Probe("ChromeOS")
_APPLE = Probe("Apple")
# ConnMan 1.41-3 drops its context at the first byte of a body (and more of it: reply.py).
_CONNMAN = Probe("ConnMan", body=False)

# Who knows a 511 is not here: Chromium and Firefox read it, for NetworkManager any unexpected
# answer is a portal, for Windows any status but 200.
#
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
}


def sign_in_probe(host: str, path: str, method: str) -> Probe | None:
    """The check that this plain HTTP request on port 80 is, if it is one that needs the 302.

    By exact host (as `place.parse_host` has it) and path, GET or HEAD, and never by User-Agent,
    which anybody may send. `path` is the request's, with its query: no system's check has one,
    but other requests to the same path do (www.google.com/gen_204?... is where Google's own pages
    send what they measure), and RFC 6585 appendix B warns of redirecting those.
    """
    if method not in {"GET", "HEAD"}:
        return None
    return _PROBES.get((host, path))
