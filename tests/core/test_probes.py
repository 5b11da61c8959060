"""Which requests are connectivity checks that need a 302."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.probes import Probe, sign_in_probe

CHECKS = [
    ("Android", "connectivitycheck.gstatic.com", "/generate_204"),
    ("Android", "www.google.com", "/gen_204"),
    ("Android", "play.googleapis.com", "/generate_204"),
    ("Android", "connectivitycheck.android.com", "/generate_204"),
    ("Android", "clients3.google.com", "/generate_204"),
    ("Android", "connect.rom.miui.com", "/generate_204"),
    ("Android", "connectivitycheck.platform.hicloud.com", "/generate_204"),
    ("Android", "connectivitycheck.grapheneos.network", "/generate_204"),
    ("ChromeOS", "www.gstatic.com", "/generate_204"),
    ("ChromeOS", "safebrowsing.google.com", "/generate_204"),
    ("ChromeOS", "www.googleapis.com", "/generate_204"),
    ("ChromeOS", "www.play.googleapis.com", "/generate_204"),
    ("Apple", "captive.apple.com", "/hotspot-detect.html"),
    ("Apple", "www.apple.com", "/library/test/success.html"),
    ("Apple", "www.appleiphonecell.com", "/"),
    ("Apple", "www.thinkdifferent.us", "/"),
    ("Apple", "www.airport.us", "/"),
    ("Apple", "www.ibook.info", "/"),
    ("Apple", "itools.info", "/library/test/success.html"),
    ("ConnMan", "ipv4.connman.net", "/online/status.html"),
    ("ConnMan", "ipv6.connman.net", "/online/status.html"),
]


@pytest.mark.parametrize(("system", "host", "path"), CHECKS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_check_that_does_not_know_a_511_is_found(
    system: str, host: str, path: str, method: str
) -> None:
    probe = sign_in_probe(host, path, method)
    assert probe is not None
    assert probe.system == system


def test_only_connmans_answer_has_no_body() -> None:
    bodiless = {
        host
        for _, host, path in CHECKS
        if sign_in_probe(host, path, "GET") == Probe("ConnMan", False)
    }
    assert bodiless == {"ipv4.connman.net", "ipv6.connman.net"}
    assert all(
        (probe := sign_in_probe(host, path, "GET")) and probe.body
        for system, host, path in CHECKS
        if system != "ConnMan"
    )


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("detectportal.firefox.com", "/canonical.html"),
        ("detectportal.firefox.com", "/success.txt"),
        ("www.msftconnecttest.com", "/connecttest.txt"),
        ("www.msftconnecttest.com", "/redirect"),
        ("www.msftncsi.com", "/ncsi.txt"),
        ("network-test.debian.org", "/nm"),
        ("nmcheck.gnome.org", "/check_network_status.txt"),
        ("connectivity-check.ubuntu.com", "/"),
        ("fedoraproject.org", "/static/hotspot.txt"),
        ("ping.archlinux.org", "/nm-check.txt"),
        ("edge-http.microsoft.com", "/captiveportal/generate_204"),
        ("controlplane.tailscale.com", "/generate_204"),
    ],
)
def test_a_check_that_knows_a_511_gets_one(host: str, path: str) -> None:
    assert sign_in_probe(host, path, "GET") is None


@pytest.mark.parametrize(
    ("host", "path", "method"),
    [
        (
            "www.google.com",
            "/gen_204?atyp=i&ei=x",
            "GET",
        ),  # where Google's pages send what they see
        ("connectivitycheck.gstatic.com", "/generate_204?", "GET"),
        ("connectivitycheck.gstatic.com", "/generate_204/", "GET"),
        ("connectivitycheck.gstatic.com", "//generate_204", "GET"),
        ("connectivitycheck.gstatic.com", "/Generate_204", "GET"),
        ("connectivitycheck.gstatic.com", "/generate%5F204", "GET"),
        ("connectivitycheck.gstatic.com", "", "GET"),
        ("connectivitycheck.gstatic.com", "*", "OPTIONS"),
        ("a.connectivitycheck.gstatic.com", "/generate_204", "GET"),
        ("gstatic.com", "/generate_204", "GET"),
        ("www.apple.com", "/", "GET"),
        ("www.apple.com", "/hotspot-detect.html", "GET"),
        ("captive.apple.com", "/library/test/success.html", "GET"),
        ("example.org", "/generate_204", "GET"),
        ("captive.apple.com", "/hotspot-detect.html", "POST"),
        ("captive.apple.com", "/hotspot-detect.html", "CONNECT"),
        ("captive.apple.com", "/hotspot-detect.html", "get"),
    ],
)
def test_anything_that_is_not_exactly_a_check_is_none(host: str, path: str, method: str) -> None:
    assert sign_in_probe(host, path, method) is None


@given(st.sampled_from(CHECKS), st.text(min_size=1), st.sampled_from(["host", "path"]))
def test_nothing_added_to_a_check_leaves_it_one(
    check: tuple[str, str, str], added: str, where: str
) -> None:
    _, host, path = check
    host, path = (host + added, path) if where == "host" else (host, path + added)
    assert sign_in_probe(host, path, "GET") is None
