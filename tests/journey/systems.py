"""Connectivity checks as the systems make them: each a model of the source or document it names.

What a system asks for, and what it concludes from the answer. Those that can run here do, in tests
of their own: Chromium, Firefox, NetworkManager and ConnMan.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Finding(StrEnum):
    """What a system tells its person."""

    ONLINE = "online"
    SIGN_IN = "sign in"
    NO_INTERNET = "no internet"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. The names of `fields` are in lower case; `spelt` has them as they came."""

    status: int
    fields: dict[str, str]
    body: str
    spelt: frozenset[str] = field(default_factory=frozenset)


type Model = Callable[[Answer], Finding]


def android(answer: Answer) -> Finding:
    """AOSP NetworkStack, CaptivePortalProbeResult: 200 to 399 but 204; an empty 200 fails."""
    if answer.status == 204:
        return Finding.ONLINE
    if answer.status == 200 and len(answer.body) <= 4:
        return Finding.NO_INTERNET
    return Finding.SIGN_IN if 200 <= answer.status <= 399 else Finding.NO_INTERNET


def chromeos(answer: Answer) -> Finding:
    """shill, PortalDetector::ProcessHTTPProbeResult: of the redirects 302 and 307 alone."""
    if answer.status == 204 or (answer.status == 200 and len(answer.body) <= 1):
        return Finding.ONLINE
    if answer.status == 200 or (answer.status in (302, 307) and "location" in answer.fields):
        return Finding.SIGN_IN
    return Finding.NO_INTERNET


def apple(answer: Answer) -> Finding:
    """Nothing is published about statuses beyond 399: the model takes them for no answer."""
    success = "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>"
    if answer.status == 200 and answer.body == success:
        return Finding.ONLINE
    return Finding.SIGN_IN if 200 <= answer.status <= 399 else Finding.NO_INTERNET


def windows(answer: Answer) -> Finding:
    """NCSI, ActiveHttpProbeFailedHotspotDetected: any answer but the text."""
    right = answer.status == 200 and answer.body == "Microsoft Connect Test"
    return Finding.ONLINE if right else Finding.SIGN_IN


def chromium(answer: Answer) -> Finding:
    """captive_portal_detector.cc: 511 first of all."""
    if answer.status == 511:
        return Finding.SIGN_IN
    if answer.status == 204 or (answer.status == 200 and len(answer.body) <= 1):
        return Finding.ONLINE
    return Finding.SIGN_IN if 200 <= answer.status <= 399 else Finding.NO_INTERNET


def firefox(answer: Answer) -> Finding:
    """CaptiveDetect.sys.mjs: other content, any redirect, or 511."""
    expected = (
        '<meta http-equiv="refresh" content="0;url=https://support.mozilla.org/kb/captive-portal"/>'
    )
    if answer.status == 200 and answer.body == expected:
        return Finding.ONLINE
    portal = answer.status in (200, 511) or 300 <= answer.status <= 399
    return Finding.SIGN_IN if portal else Finding.NO_INTERNET


def network_manager(answer: Answer) -> Finding:
    """nm-connectivity.c: the header or the text, under any status; all else is a portal."""
    if answer.fields.get("x-networkmanager-status") == "online":
        return Finding.ONLINE
    full = answer.body.startswith("NetworkManager is online")
    return Finding.ONLINE if full else Finding.SIGN_IN


def connman(answer: Answer) -> Finding:
    """wispr.c, as of 1.41 to 1.43: the header in this case only; a redirect without a body."""
    if answer.status == 200:
        return Finding.ONLINE if "X-ConnMan-Status" in answer.spelt else Finding.SIGN_IN
    redirect = 300 <= answer.status <= 399 and "location" in answer.fields and not answer.body
    return Finding.SIGN_IN if redirect else Finding.NO_INTERNET


def tailscale(answer: Answer) -> Finding:
    """net/captivedetection: any status but the expected one."""
    return Finding.ONLINE if answer.status == 204 else Finding.SIGN_IN


@dataclass(frozen=True, slots=True)
class Check:
    """A system's check. `compatible` is the status that an unknown client gets by default."""

    system: str
    url: str
    model: Model
    compatible: int


CHECKS = (
    Check("Android", "http://connectivitycheck.gstatic.com/generate_204", android, 302),
    Check("Android, fallback", "http://www.google.com/gen_204", android, 302),
    Check("Android, second fallback", "http://play.googleapis.com/generate_204", android, 302),
    Check("Android, older", "http://connectivitycheck.android.com/generate_204", android, 302),
    Check("Xiaomi", "http://connect.rom.miui.com/generate_204", android, 302),
    Check("Huawei", "http://connectivitycheck.platform.hicloud.com/generate_204", android, 302),
    Check("GrapheneOS", "http://connectivitycheck.grapheneos.network/generate_204", android, 302),
    Check("ChromeOS", "http://connectivitycheck.gstatic.com/generate_204", chromeos, 302),
    Check("ChromeOS, fallback", "http://www.gstatic.com/generate_204", chromeos, 302),
    Check("ChromeOS, third", "http://safebrowsing.google.com/generate_204", chromeos, 302),
    Check("iOS, macOS", "http://captive.apple.com/hotspot-detect.html", apple, 302),
    Check("ConnMan", "http://ipv4.connman.net/online/status.html", connman, 302),
    Check("ConnMan, IPv6", "http://ipv6.connman.net/online/status.html", connman, 302),
    Check("Windows", "http://www.msftconnecttest.com/connecttest.txt", windows, 511),
    Check("Chromium", "http://connectivitycheck.gstatic.com/generate_204", chromium, 302),
    Check("Firefox", "http://detectportal.firefox.com/canonical.html", firefox, 511),
    Check("NetworkManager, Debian", "http://network-test.debian.org/nm", network_manager, 511),
    Check("Tailscale", "http://derp1.tailscale.com/generate_204", tailscale, 302),
    Check("OPPO", "http://conn1.oppomobile.com/generate_204", android, 302),
    Check("vivo", "http://wifi.vivo.com.cn/generate_204", android, 302),
    Check("Honor", "http://connectivitycheck.hihonor.com/generate_204", android, 302),
    Check("Samsung in China", "http://connectivity.samsung.com.cn/generate_204", android, 302),
    Check("Amazon", "http://fireoscaptiveportal.com/generate_204", android, 302),
)
