"""Which requests are connectivity checks, and which of them need a 302."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.place import parse_host
from capport.core.probes import (
    ANYWHERE,
    CHECK_HOSTS,
    CHECKED_BY_TLS,
    Probe,
    connectivity_check,
    known_checks,
)

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


def sign_in_probe(host: str, path: str, method: str) -> Probe | None:
    """A check that needs a 302, by its host alone."""
    probe = connectivity_check(host, path, method, ())
    return probe if probe and probe.redirect else None


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
        if sign_in_probe(host, path, "GET") == Probe("ConnMan", body=False)
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
        ("detectportal.firefox.com", "/success.txt?ipv4"),
        ("detectportal.firefox.com", "/success.txt?ipv6"),
        ("www.msftconnecttest.com", "/connecttest.txt"),
        ("ipv6.msftconnecttest.com", "/connecttest.txt"),
        ("ipv6.msftncsi.com", "/ncsi.txt"),
        ("networkcheck.kde.org", "/"),
        ("spectrum.s3.amazonaws.com", "/kindle-wifi/wifistub.html"),
        ("conntest.nintendowifi.net", "/"),
        ("test.steampowered.com", "/204"),
        ("www.msftconnecttest.com", "/redirect"),
        ("www.msftncsi.com", "/ncsi.txt"),
        ("network-test.debian.org", "/nm"),
        ("nmcheck.gnome.org", "/check_network_status.txt"),
        ("connectivity-check.ubuntu.com", "/"),
        ("fedoraproject.org", "/static/hotspot.txt"),
        ("ping.archlinux.org", "/nm-check.txt"),
        ("edge-http.microsoft.com", "/captiveportal/generate_204"),
    ],
)
def test_a_check_that_knows_a_511_gets_one(host: str, path: str) -> None:
    probe = connectivity_check(host, path, "GET", ANYWHERE)
    assert probe is not None
    assert not probe.redirect


@pytest.mark.parametrize(
    "host",
    [
        "conn1.oppomobile.com",
        "wifi.vivo.com.cn",
        "connectivitycheck.cbg-app.huawei.com",
        "connectivitycheck.hihonor.com",
        "connectivity.samsung.com.cn",
        "fireoscaptiveportal.com",
        "www.google.cn",
        "192.0.2.7",  # some devices let people choose
    ],
)
def test_a_path_that_is_a_check_at_whatever_host_needs_a_302_there(host: str) -> None:
    for method, sign_in in (("GET", True), ("HEAD", True), ("POST", False)):
        probe = connectivity_check(host, "/generate_204", method, ANYWHERE)
        assert (probe is not None and probe.redirect) == sign_in
    assert connectivity_check(host, "/generate_204", "GET", ("/check",)) is None
    assert connectivity_check(host, "/check", "GET", ("/check",)) is not None
    for path in ("/generate_204?a", "/a/generate_204", "/generate_204/", "/Generate_204"):
        assert connectivity_check(host, path, "GET", ANYWHERE) is None


def test_the_names_of_all_checks_are_known() -> None:
    assert {host for _, host, _ in known_checks()} | {"dns.msftncsi.com"} == CHECK_HOSTS
    assert CHECKED_BY_TLS == "www.google.com"
    probe = connectivity_check("192.0.2.7", "/generate_204", "GET", ANYWHERE)
    assert probe == Probe("a system")


def test_no_check_is_for_a_host_that_would_not_be_found() -> None:
    assert len({(host, path) for _, host, path in known_checks()}) > 45
    for _, host, path in known_checks():
        assert connectivity_check(host, path, "GET", ()) is not None
        assert (parse_host(host), path[0]) == (host, "/")


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
def test_a_request_that_is_not_exactly_a_check_is_not_one(
    host: str, path: str, method: str
) -> None:
    assert sign_in_probe(host, path, method) is None


@given(st.sampled_from(CHECKS), st.text(min_size=1), st.sampled_from(["host", "path"]))
def test_nothing_added_to_a_check_leaves_it_one(
    check: tuple[str, str, str], added: str, where: str
) -> None:
    _, host, path = check
    host, path = (host + added, path) if where == "host" else (host, path + added)
    assert sign_in_probe(host, path, "GET") is None
