import contextlib
import errno
import os
import random
import re
import socket
import stat
import time
import tracemalloc
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import BinaryIO

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capport.core.client import Client, parse_address, parse_mac
from capport.core.place import Place
from capport.core.policy import (
    Access,
    ClientRules,
    Conditions,
    Connect,
    KnownHttp,
    KnownTls,
    Limits,
    LoginServer,
    Policy,
    Probes,
    Rate,
    Router,
    Sessions,
    Tls,
    UnknownTls,
)
from capport.linux.safe_files import open_regular
from capport.policy import clients_file, hints, policy_file, tree, values
from capport.policy import section as policysection
from capport.policy.policy_file import PolicyError, Problem
from login.certificates import certificate

HERE = Path(__file__).parent / "files"
POLICIES = Path(__file__).parents[2] / "policies"
SAMPLE = (HERE / "sample.yaml").read_text()
LOGIN = "login_url: https://login.example.net/\n"
ROUTER = "router: {client_interface: br-lan, origin_interface: wan}\n"
BAD = sorted((HERE / "bad").glob("*.txt"))


def parsed(text: str, folder: Path = HERE) -> Policy:
    return policy_file.parse(text, "lab.yaml", folder)


def error_of(text: str, folder: Path = HERE) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        policy_file.parse(text, "lab.yaml", folder)
    return caught.value


def warnings_of(text: str, folder: Path) -> list[str]:
    (folder / "lab.yaml").write_text(text)
    return [problem.message for problem in policy_file.load_with_warnings(folder / "lab.yaml")[1]]


def access(policy: Policy, address: str, mac: str | None = None) -> Access | None:
    client = Client(parse_address(address), parse_mac(mac) if mac else None)
    rule = policy.clients.find(client)
    return rule.access if rule else None


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.stem)
def test_a_wrong_policy_gets_the_message_it_must(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = re.split(r"(?m)^-{40}\n", case.read_text())
    monkeypatch.chdir(HERE)
    with pytest.raises(PolicyError) as caught:
        policy_file.parse(text, "policy.yaml", Path())
    assert str(caught.value) == message.removesuffix("\n")


@pytest.mark.parametrize(
    "key", ["sessions: {store: %s}", "login_url: %s", "%s: 1", "network: [%s]"]
)
@pytest.mark.parametrize("url", ["redis://ann:pa55@word@h/0", f"rediss://:{'pa55word' * 9}@h/0"])
def test_no_message_has_a_password_of_redis(
    key: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "lacking", "needs {}".format)
    found = str(error_of(LOGIN + key.replace("%s", f"'{url}'")))
    assert "://...@h/0" in found
    assert "word" not in found


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.stem)
def test_without_libyaml_the_same_lines_are_wrong(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = re.split(r"(?m)^-{40}\n", case.read_text())
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(tree, "Loader", yaml.SafeLoader)
    with pytest.raises(PolicyError) as caught:
        policy_file.parse(text, "policy.yaml", Path())
    places = [f"{problem.file}:{problem.line}" for problem in caught.value.problems]
    assert places == re.findall(r"(?m)^((?:policy\.yaml|staff\.csv):\d+):\d+: ", message)


def test_there_are_wrong_policies_to_try() -> None:
    assert len(BAD) > 90


def test_the_sample_of_the_interface_is_read_as_it_says() -> None:
    policy = parsed(SAMPLE)
    assert policy.network == "Lab Wi-Fi"
    assert policy.login_url == "https://login.example.net/"
    assert policy.login_place == Place("login.example.net", 443)
    assert policy.refresh == 10
    assert policy.tls == Tls(UnknownTls.REFUSE, KnownTls.TUNNEL, Connect.AUTO)
    assert policy.http_known is KnownHttp.STREAM
    store = "sqlite:///var/lib/capport/sessions.db"
    assert policy.sessions == Sessions(store, 28800.0, 1800.0, most=20_000)
    conditional = frozenset({"api.example.org"})
    assert policy.limits == Limits(
        Rate(600, 60.0),
        *(16384, 65536, conditional),
        unknown_requests=Rate(300, 60.0),
        drop_after=Rate(6000, 60.0),
    )
    assert policy.probes is Probes.COMPATIBLE
    assert policy.probe_paths == ("/generate_204",)
    assert policy.login_server == LoginServer(
        (Place(ip_address("192.0.2.1"), 8511),),
        str(HERE / "fullchain.pem"),
        str(HERE / "key.pem"),
        Conditions.TERMS,
        "https://venue.example.net/",
    )
    assert policy.router == Router("br-lan", "wan")
    assert policy.file == "lab.yaml"
    assert access(policy, "198.51.100.1", "02:00:00:00:00:07") is Access.KNOWN
    assert access(policy, "192.0.2.20") is Access.KNOWN
    assert access(policy, "10.0.9.200") is Access.BLOCKED
    assert access(policy, "192.0.2.7") is Access.KNOWN  # staff.csv
    assert access(policy, "198.51.100.1") is None
    garden = policy.walled_garden
    for host, port in (
        ("www.example.org", 80),
        ("www.example.org", 443),
        ("a.b.example.org", 443),
        ("status.example.org", 8080),
    ):
        assert garden.find(host, port) is not None, host
    for host, port in (
        ("example.org", 443),
        ("www.example.org", 8080),
        ("notexample.org", 443),
        ("www.example.org.evil.example", 443),
    ):
        assert garden.find(host, port) is None, host
    assert garden.find(ip_address("192.0.2.53"), 443) is not None
    assert garden.find(ip_address("192.0.2.54"), 443) is None
    assert garden.find(ip_address("2001:db8::1"), 443) is not None
    assert garden.find(ip_address("2001:db9::1"), 443) is None


def test_a_client_that_has_mitmproxys_ca_needs_no_access_and_decides_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "phones.csv").write_text("192.0.2.9\n")
    policy = parsed(
        f"{LOGIN}clients:\n"
        "  - {address: 192.0.2.7, trusts_ca: true}\n"
        "  - {mac: 02:00:00:00:00:08, access: blocked, trusts_ca: true}\n"
        "  - {address: 192.0.2.0/24, access: known, trusts_ca: false}\n"
        "  - {file: phones.csv, trusts_ca: true}\n",
        tmp_path,
    )
    assert access(policy, "192.0.2.7") is access(policy, "192.0.2.9") is Access.KNOWN
    assert access(policy, "198.51.100.1", "02:00:00:00:00:08") is Access.BLOCKED
    trusting = [
        policy.trusting.find(Client(ip_address(address), mac)) is not None
        for address, mac in (
            ("192.0.2.7", None),
            ("192.0.2.8", parse_mac("02:00:00:00:00:08")),
            ("192.0.2.9", None),
            ("192.0.2.10", None),
        )
    ]
    assert trusting == [True, True, True, False]


def test_a_file_of_clients_with_access_and_trusts_ca_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "phones.csv"
    file.write_text("192.0.2.9\n")
    opened: list[Path] = []

    def opening(path: Path) -> BinaryIO:
        opened.append(path)
        return open_regular(path)

    monkeypatch.setattr(clients_file, "open_regular", opening)
    rule = "{file: phones.csv, access: blocked, trusts_ca: true}"
    policy = parsed(f"{LOGIN}clients: [{rule}]\n", tmp_path)
    assert access(policy, "192.0.2.9") is Access.BLOCKED
    assert policy.trusting.find(Client(ip_address("192.0.2.9"))) is not None
    assert opened == [file]


def test_a_rule_knows_the_line_it_stands_on() -> None:
    found = parsed(SAMPLE).clients.find(Client(ip_address("192.0.2.7")))
    assert found is not None
    assert (found.name, found.where) == ("front desk", f"{HERE / 'good.csv'}:4")
    printer = Client(ip_address("198.51.100.1"), parse_mac("02:00:00:00:00:07"))
    found = parsed(SAMPLE).clients.find(printer)
    line = SAMPLE[: SAMPLE.index("name: printer")].count("\n") + 1
    assert found is not None
    assert (found.name, found.where) == ("printer", f"lab.yaml:{line}")


@pytest.mark.parametrize("name", ["lab", "cafe", "hotel"])
def test_each_policy_we_ship_is_good_and_draws_no_warning(name: str) -> None:
    path = POLICIES / f"{name}.yaml"
    policy, warnings = policy_file.load_with_warnings(path)
    assert policy.file == str(path)
    assert warnings == ()


def test_the_default_is_the_embedded_login_server_on_loopback() -> None:
    policy = policy_file.default()
    assert policy.file is None
    assert policy.login_url == "http://127.0.0.1:8511/"
    assert policy.login_server == LoginServer((Place(ip_address("127.0.0.1"), 8511),))
    assert len(policy.clients) == 0


@pytest.mark.parametrize(
    ("text", "url", "place"),
    [
        ("https://login.example.net", "https://login.example.net/", "login.example.net:443"),
        ("HTTPS://Login.Example.NET./a?b=c", "https://login.example.net/a?b=c", None),
        ("http://login.lan:8080/", "http://login.lan:8080/", "login.lan:8080"),
        ("https://login.example.net:443/", "https://login.example.net/", "login.example.net:443"),
        ("https://[2001:db8::1]:8511/", "https://[2001:db8::1]:8511/", "[2001:db8::1]:8511"),
        ("http://[::ffff:192.0.2.1]/", "http://192.0.2.1/", "192.0.2.1:80"),
        ("https://bücher.example/ü?q=ß", "https://xn--bcher-kva.example/%C3%BC?q=%C3%9F", None),
        ("https://login.example.net/{state}", "https://login.example.net/{state}", None),
        (
            "https://login.example.net?s={state}&a=1",
            "https://login.example.net/?s={state}&a=1",
            None,
        ),
    ],
)
def test_a_login_url_is_normalised(text: str, url: str, place: str | None) -> None:
    policy = parsed(f'login_url: "{text}"\n')
    assert policy.login_url == url
    assert place is None or str(policy.login_place) == place


@pytest.mark.parametrize(
    ("listen", "more", "url"),
    [
        ("192.0.2.1:8511", "", "http://192.0.2.1:8511/"),
        ("192.0.2.1:80", "", "http://192.0.2.1/"),
        ("'[2001:db8::1]:8511'", "", "http://[2001:db8::1]:8511/"),
        ("192.0.2.1:443", ", certificate: fullchain.pem, key: key.pem", "https://192.0.2.1/"),
    ],
)
def test_a_login_url_is_where_the_login_server_listens(listen: str, more: str, url: str) -> None:
    policy = parsed(f"login_server: {{listen: {listen}{more}}}\n")
    assert policy.login_url == url
    assert policy.login_server is not None
    assert (policy.login_place,) == policy.login_server.listen


def test_a_login_server_on_several_addresses_has_a_login_url_for_each_family() -> None:
    places = "192.0.2.1:8511, '[2001:db8::1]:8511', 192.0.2.2:8511"
    policy = parsed(f"login_server: {{listen: [{places}]}}\n")
    assert policy.login_server is not None
    assert [str(place) for place in policy.login_server.listen] == places.replace("'", "").split(
        ", "
    )
    assert [str(place) for place in policy.login_places] == places.replace("'", "").split(", ")
    assert policy.login_lacks is None
    for client, url in (
        ("192.0.2.7", "http://192.0.2.1:8511/"),
        ("2001:db8::7", "http://[2001:db8::1]:8511/"),
    ):
        assert policy.login_for(ip_address(client)).url == url


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("login_server: {listen: 192.0.2.1:8511}\n", 6),
        ("login_server: {listen: '[2001:db8::1]:8511'}\n", 4),
        ("login_url: https://192.0.2.9/\nlogin_server: {listen: '[::]:8511'}\n", 6),
        (LOGIN, None),
        (LOGIN + "login_server: {listen: 192.0.2.1:8511}\n", None),
    ],
)
def test_a_policy_says_which_family_of_addresses_has_no_login_url(
    text: str, lacks: int | None
) -> None:
    policy = parsed(text)
    assert policy.login_lacks == lacks
    for client in ("192.0.2.7", "2001:db8::7"):
        assert policy.login_for(ip_address(client)).url == policy.login_url


def test_a_login_server_may_listen_anywhere_where_a_login_url_says_how_to_get_there() -> None:
    policy = parsed(LOGIN + "login_server: {listen: 0.0.0.0:8511}\n")
    assert policy.login_url == "https://login.example.net/"


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("WWW.Example.ORG.", "www.example.org", 443),
        ("bücher.example", "xn--bcher-kva.example", 80),
        ('"*.bücher.example:8080"', "a.xn--bcher-kva.example", 8080),
        ("192.0.2.53:53", "192.0.2.53", 53),
        ("'[2001:db8::1]:8080'", "2001:db8::1", 8080),
        ("'[2001:db8::1]'", "2001:db8::1", 80),
        ("2001:db8::1", "2001:db8::1", 80),
        ("::ffff:192.0.2.53", "192.0.2.53", 80),
        ("::ffff:192.0.2.0/120", "192.0.2.53", 80),
        ("_x.example.org", "_x.example.org", 443),
        ("router", "router", 443),
    ],
)
def test_a_garden_entry_holds_what_it_looks_like(entry: str, host: str, port: int) -> None:
    garden = parsed(f"{LOGIN}walled_garden:\n  - {entry}\n").walled_garden
    try:
        assert garden.find(ip_address(host), port) is not None
    except ValueError:
        assert garden.find(host, port) is not None
    assert garden.find(host, 25) is None


@pytest.mark.parametrize("mac", ["10:20:30:40:50:59", "12:34:56:12:34:56", "AA-BB-CC-00-11-22"])
def test_a_mac_is_no_number_in_base_60(mac: str) -> None:
    policy = parsed(f"{LOGIN}clients: [{{mac: {mac}, access: known}}]\n")
    assert access(policy, "192.0.2.1", mac) is Access.KNOWN


@pytest.mark.parametrize("word", ["no", "yes", "on", "null", "~x", "1e3", "0x10", "2024-01-01"])
def test_a_scalar_is_what_it_looks_like(word: str) -> None:
    assert parsed(f"{LOGIN}network: {word}\n").network == word


def test_what_is_left_empty_is_an_empty_list_or_map() -> None:
    policy = parsed(f"{LOGIN}clients:\nwalled_garden:\ntls:\nhttp:\nsessions:\nlimits:\n")
    assert len(policy.clients) == 0
    assert policy.walled_garden.entries == []
    assert policy.tls == Tls()
    assert policy.limits == Limits()


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0), ("10", 10), ("86400", 86400), ("never", None), ('"7"', 7)]
)
def test_refresh_is_seconds_or_never(value: str, seconds: int | None) -> None:
    assert parsed(f"{LOGIN}refresh: {value}\n").refresh == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90), ("30m", 1800), ("8h", 28800), ("7d", 604800), ("366d", 31622400)],
)
def test_a_duration_is_in_seconds(value: str, seconds: float) -> None:
    assert parsed(f"{LOGIN}sessions: {{lifetime: {value}}}\n").sessions.lifetime == seconds


@pytest.mark.parametrize(("value", "size"), [("4096", 4096), ("16KiB", 16384), ("1MiB", 1 << 20)])
def test_a_size_is_in_bytes(value: str, size: int) -> None:
    assert parsed(f"{LOGIN}limits: {{header_field: {value}}}\n").limits.header_field == size


@pytest.mark.parametrize(
    ("store", "kept"),
    [
        (":memory:", ":memory:"),
        ("sqlite:///var/lib/capport/s.db", "sqlite:///var/lib/capport/s.db"),
        ("sqlite:////var/lib/capport/s.db", "sqlite:///var/lib/capport/s.db"),
        ("/var/lib/capport/s.db", "/var/lib/capport/s.db"),
        ("s.db", str(HERE / "s.db")),
    ],
)
def test_a_store_is_a_url_or_a_path_from_the_policy_on(store: str, kept: str) -> None:
    assert parsed(f"{LOGIN}sessions: {{store: '{store}'}}\n").sessions.store == kept


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("login_url: http://login.example.net/\n", "http to a public name"),
        ("login_url: http://portal.local/\n", "write a name such as login.home.arpa"),
        ("login_url: https://portal/\n", "no dot in the name portal"),
        ("login_url: http://0.0.0.0/\n", "0.0.0.0, which no client can reach"),
        ("login_url: 'http://[fe80::1]/'\n", "fe80::1, which no client can reach"),
        (f"login_url: http://localhost:8511/\n{ROUTER}", "where each client reaches only itself"),
        (
            f"login_server: {{listen: 127.0.0.1:8511}}\n{ROUTER}",
            "where each client reaches only itself",
        ),
        (LOGIN + "walled_garden: ['2001:db8::1:443']\n", 'write "[2001:db8::1]:443"'),
        (LOGIN + "walled_garden: ['*.com']\n", "a whole top-level domain"),
        (LOGIN + "walled_garden: [0.0.0.0/0]\n", "4294967296 addresses"),
        (
            LOGIN + "walled_garden: ['*.apple.com']\n",
            "*.apple.com does not let connectivity checks through, such as"
            " http://captive.apple.com/hotspot-detect.html: Apple would not ask people to sign in",
        ),
        (LOGIN + "walled_garden: ['*.gstatic.com']\n", "Android and ChromeOS would not ask"),
        (LOGIN + "walled_garden: ['*.amazonaws.com:80']\n", "Fire OS would not ask"),
        (
            LOGIN + "walled_garden: [www.gstatic.com]\n",
            "www.gstatic.com lets the connectivity check http://www.gstatic.com/generate_204"
            " through: ChromeOS may not ask people to sign in",
        ),
        (
            LOGIN + "walled_garden: ['*.google.com:443']\n",
            "the connectivity check https://www.google.com/generate_204 is let through",
        ),
        (LOGIN + "sessions: {lifetime: 1h, idle: 2h}\n", "idle: it is longer than lifetime"),
        (
            LOGIN + "login_server: {listen: '192.0.2.1:8511', conditions: password}\n"
            "sessions: {store: redis://192.0.2.5/0}\n",
            "conditions: password, but each router has its own users",
        ),
        (LOGIN + "limits: {header_field: 2KiB, header_section: 1KiB}\n", "it has no effect"),
        (
            LOGIN
            + "login_server: {listen: '192.0.2.1:8511', venue_info_url: 'https://v.example/'}",
            "only the Captive Portal API serves it",
        ),
        (
            "login_server: {listen: 192.0.2.1:443, certificate: cert.pem, key: key.pem}\n",
            "most certificates are for a name",
        ),
        (
            LOGIN + "clients:\n  - {address: 10.0.0.0/8, access: blocked}\n"
            "  - {address: 10.0.9.7, access: known}\n",
            "the client 10.0.9.7/32 never matches",
        ),
        (
            LOGIN + "clients:\n  - {mac: 02:00:00:00:00:07, access: blocked}\n"
            "  - {mac: 02-00-00-00-00-07, access: known}\n",
            "lab.yaml:3 comes first",
        ),
    ],
)
def test_what_is_hardly_meant_draws_one_warning(text: str, warning: str, tmp_path: Path) -> None:
    certificate(tmp_path)
    (found,) = warnings_of(text, tmp_path)
    assert warning in found


@pytest.mark.parametrize(
    "text",
    [
        "login_url: http://login.lan/\n",
        "login_url: http://localhost:8511/\n",
        f"login_server: {{listen: 192.0.2.1:8511}}\n{ROUTER}",
        LOGIN + "walled_garden: ['2001:db8::1', '[2001:db8::1]:443']\n",
        "login_url: http://192.0.2.1/\n",
        "login_url: http://login.home.arpa/\n",
        LOGIN + "walled_garden: ['*.example.org', 10.0.0.0/16]\n",
        LOGIN + "walled_garden: [apple.com, '*.www.apple.com', '*.gstatic.com:443']\n",
        LOGIN + "clients:\n  - {address: 10.0.9.7, access: known}\n"
        "  - {address: 10.0.0.0/8, access: blocked}\n",
    ],
)
def test_what_is_meant_draws_none(text: str, tmp_path: Path) -> None:
    assert warnings_of(text, tmp_path) == []


# Files that are not policies.


def load_error(path: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        policy_file.load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "lab.yaml:1:1: is empty"),
        (b"# only this\n", "lab.yaml:1:1: is empty"),
        (b"---", "lab.yaml:1:1: is empty"),
        (b"\xef\xbb\xbf" + LOGIN.encode(), "lab.yaml:1:1: a byte order mark"),
        (LOGIN.encode("utf-16"), "lab.yaml:1:1: is not UTF-8, but UTF-16"),
        (LOGIN.encode("utf-16-le"), "lab.yaml:1:1: is not UTF-8, but UTF-16"),
        (b"network: x\nlogin\xff: y\n", "lab.yaml:2:6: the byte 0xff is not UTF-8"),
        (b"network: Caf\xe9\n", "lab.yaml:1:13: the byte 0xe9 is not UTF-8"),
        (b"network: \xc3\xa9\xed\xa0\x80\n", "lab.yaml:1:11: the byte 0xed is not UTF-8"),
        (LOGIN.encode() + b"network: a\0b\n", "lab.yaml:2:11: the character U+0000"),
        (LOGIN.encode() + b"network: a\x1b[2Jb\n", "lab.yaml:2:11: the character U+001B"),
        (LOGIN.encode() + "network: a\u2028b\n".encode(), "lab.yaml:2:11: the character U+2028"),
        (b"x" * ((1 << 20) + 1), "lab.yaml: is larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_a_policy_is_reported_as_such(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.yaml").write_bytes(data)
    assert load_error(Path("lab.yaml")).startswith(message)


def test_a_message_never_carries_what_a_terminal_obeys(tmp_path: Path) -> None:
    path = tmp_path / "lab\x1b[2J.yaml"
    path.write_bytes(LOGIN.encode() + b"network: \x1b]0;mine\x07\n" + b"\x1b[31m: x\n")
    assert load_error(path).replace("\n", "").isprintable()


def test_what_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    assert load_error(tmp_path / "no.yaml").endswith(
        "no.yaml: cannot be read: No such file or directory"
    )
    assert "Not a directory" in load_error(Path("/dev/null/lab.yaml"))
    assert "File name too long" in load_error(tmp_path / ("x" * 300))
    assert "is not a file name" in load_error(tmp_path / "a\0b")


def test_what_is_no_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        with contextlib.chdir(tmp_path):
            listening.bind("socket")
        kinds = {"pipe": "a pipe", "socket": "a socket", ".": "a folder"}
        for name, kind in kinds.items():
            assert f"is {kind}: name a file" in load_error(tmp_path / name)
    for device in ("/dev/zero", "/dev/null"):
        assert stat.S_ISCHR(Path(device).stat().st_mode)
        assert "is a device: name a file" in load_error(Path(device))


def test_an_unreadable_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(LOGIN)
    path.chmod(0)
    if os.geteuid() != 0:
        assert "Permission denied" in load_error(path)
        return
    child = os.fork()
    if child == 0:  # root may read everything, so read as the user nobody
        code = 1
        try:
            tmp_path.parent.chmod(0o755)
            tmp_path.chmod(0o755)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            code = 0 if "Permission denied" in load_error(path) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_hundred_megabytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    try:
        assert "is larger than 1 MiB" in load_error(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 1_000_000,
        "{" * 1_000_000,
        "a: " + "[" * 900_000 + "]" * 100_000,
        "- " * 500_000,
        "? " * 500_000,
        "a:\n" * 300_000,
        "".join(f"k{n}:\n" for n in range(120_000)),
        ":" * 1_000_000,
        "- -\n" * 250_000,
        LOGIN + "walled_garden: [" + "!," * 400_000 + "]",
        LOGIN + "network: " + '"' + "\\x41" * 250_000 + '"',
        LOGIN + "refresh: " + "9" * 1_000_000,
        LOGIN + "sessions: {lifetime: " + "1h" * 500_000 + "}",
        "a: &a [x]\nb: &b [" + "*a, " * 200_000 + "]",
        "ä" * 500_000,
        "login_url: https://" + "ä" * 500_000,
    ],
    ids=lambda bomb: bomb[:12],
)
def test_a_bomb_is_an_error_within_seconds(bomb: str) -> None:
    start = time.thread_time()
    assert len(str(error_of(bomb))) < 100_000
    assert time.thread_time() - start < 20  # the slowest takes 2 s


def test_after_a_hundred_errors_no_more_are_looked_for() -> None:
    error = error_of("".join(f"key{n}: x\n" for n in range(1000)))
    assert len(error.problems) == 101
    assert error.problems[-1].message == "100 errors: the rest of the file was not read"
    assert [problem.line for problem in error.problems[:100]] == list(range(1, 101))


# Whatever comes in.

PIECES = [
    *SAMPLE.split(),
    *policysection.KEYS,
    *(key for keys in policysection.KEYS.values() for key in keys),
    *"[]{}:,-?*&!|>'\"%@`#\n\t \\",
    "\n  - ",
    "\n\n",
    ": ",
    "{state}",
    "0",
    "-1",
    "::ffff:",
    "::",
    "/0",
    "/129",
    "999999999999999999",
    "1" * 5000,
    "\r",
    "\r\n",
    "\0",
    "\x1b",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "é",
    "\U0010ffff",
    '"\\ud800"',
    '"\\U99999999"',
    "...",
    "---",
    "<<",
    "null",
    "~",
    "\ufffe",
]


def mutated(text: str, random: random.Random) -> str:
    """As radamsa does: pieces repeated, lost, swapped, put in, and bytes changed."""
    for _ in range(random.randint(1, 6)):
        a, b = sorted(random.randint(0, len(text)) for _ in range(2))
        lines = text.splitlines(keepends=True)
        n, m = (random.randrange(len(lines)) if lines else 0 for _ in range(2))
        match random.randrange(7):
            case 0:
                text = text[:a] + text[min(b, a + 20) :]
            case 1:
                text = text[:a] + random.choice(PIECES) + text[a:]
            case 2:
                text = text[:b] + text[a : a + 40] * random.randint(1, 30) + text[b:]
            case 3 if lines:
                lines[n], lines[m] = lines[m], lines[n]
                text = "".join(lines)
            case 4 if lines:
                text = "".join([*lines[:n], lines[m], *lines[n:]])
            case 5:
                text = (
                    text[:a] + chr(random.choice([0, 9, 10, 32, 127, 160, 0x2028])) + text[a + 1 :]
                )
            case _:
                text = text[:a] + random.choice(PIECES) + text[min(b, a + 8) :]
    return text[: 1 << 20]


def outcome(text: str) -> Policy | PolicyError:
    try:
        return policy_file.parse(text, "lab.yaml", HERE)
    except PolicyError as error:
        return error


def policy_or_error(text: str) -> None:
    """Any other exception fails the test that called this."""
    got = outcome(text)
    if isinstance(got, Policy):
        assert got.login_url.isascii()
        assert got.login_url.startswith(("http://", "https://"))
        assert not re.search(r"[\s\"'<>\\^`|]", got.login_url)
        return
    assert got.problems
    assert str(got).replace("\n", "").isprintable()
    lines = len(re.split(r"\r\n|\r|\n", text))
    for problem in got.problems:
        assert problem.message
        assert 0 <= problem.line <= lines or problem.file != "lab.yaml"


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_mutation_of_the_sample_is_a_policy_or_a_policy_error(random: random.Random) -> None:
    policy_or_error(mutated(SAMPLE, random))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join))
def test_any_heap_of_pieces_is_a_policy_or_a_policy_error(text: str) -> None:
    policy_or_error(text)


def test_any_mutation_is_that_without_libyaml_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "Loader", yaml.SafeLoader)
    chance = random.Random(6585)
    for _ in range(60):
        policy_or_error(mutated(SAMPLE, chance))
    for word in (r'"\U99999999"', r'"\ud800"'):
        assert error_of(f"{LOGIN}network: {word}\n").problems[0].line == 2


@settings(max_examples=300, deadline=None)
@example(b"\xef\xbb")
@example(b"\xed\xa0\x80")
@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_a_policy_error(data: bytes) -> None:
    with contextlib.suppress(PolicyError):
        text = tree.decode(data, "lab.yaml")
        assert text.encode() == data
        policy_or_error(text)


TEXTS = st.text(max_size=40) | st.text("0123456789abcdefx.:/%[]*-@ \u3002\uff0e\uff11", max_size=40)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_word_is_a_value_or_a_value_error(text: str) -> None:
    for read in (
        values.garden_entry,
        values.network,
        values.subject,
        values.host,
        values.login_url,
        values.listen,
        values.probe_path,
        values.mac,
        values.interface,
        values.refresh,
        values.for_people,
        values.duration(1, 100),
        values.size(1, 100),
        values.store(HERE),
    ):
        with contextlib.suppress(ValueError):
            read(text)
    with contextlib.suppress(ValueError):
        values.login_url(f"https://{text}")


@settings(max_examples=500, deadline=None)
@given(
    st.text("0123456789abcdefx.:/*@-[]*, tcpudp\u200b\x1b\xa0", max_size=40)
    | st.text(max_size=200).map(lambda text: f"tcp/{text}")
    | st.text(max_size=200).map(lambda text: f"02:00:00:00:00:07;{text}")
)
def test_what_would_do_can_be_printed(text: str) -> None:
    for hint in (
        hints.of_place(text),
        hints.of_network(text),
        hints.of_mac(text),
        hints.of_subject(text),
        hints.of_listen(text),
        hints.of_login_url(text),
        hints.of_client_line(text, hints.is_mac, first=True),
    ):
        assert hint is None or hint.isprintable()


@settings(max_examples=300)
@given(st.ip_addresses() | st.ip_addresses(network="::ffff:0:0/96"), st.booleans())
def test_an_address_in_a_clients_file_is_read_as_one_on_the_wire(
    address: object, upper: bool
) -> None:
    text = str(address).upper() if upper else str(address)
    assert values.subject(text) == parse_address(text)


@settings(max_examples=300)
@given(st.text("0123456789abcdef.:", max_size=20))
def test_a_clients_file_takes_no_address_that_the_wire_would_not(text: str) -> None:
    try:
        subject = values.subject(text)
    except ValueError:
        return
    if not isinstance(subject, str):
        assert str(subject) == str(parse_address(text))


@settings(max_examples=200)
@given(st.ip_addresses(), st.integers(0, 128))
def test_host_bits_get_the_network_that_would_do(address: object, length: int) -> None:
    version, bits = (4, 32) if "." in str(address) and ":" not in str(address) else (6, 128)
    length = min(length, bits)
    network = ip_network(f"{address}/{length}", strict=False)
    if str(network.network_address) == str(address):
        assert network.version == version
        return
    with pytest.raises(ValueError, match="has host bits set") as caught:
        values.network(f"{address}/{length}")
    assert f"write {network}, or {address}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "would_do"),
    [
        (".example.org", ['"*.example.org"', "example.org"]),  # squid, no_proxy, CoovaChilli
        ("*example.org", ['"*.example.org"', "example.org"]),
        ("/example.org/", ['"*.example.org"', "example.org"]),  # dnsmasq
        (".example.org:8080", ['"*.example.org:8080"', "example.org:8080"]),
        ("tcp/example.org", ["example.org"]),
        ("tcp:example.org:443", ["example.org:443"]),  # CoovaChilli's uamallowed
        ("tcp://192.0.2.9:80", ["192.0.2.9:80"]),
        ("example.org:443/tcp", ["example.org:443"]),
        ("udp/192.0.2.1:123", ["192.0.2.1:123"]),
        ("10.0.0.1-10.0.0.9", ["10.0.0.1", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/31"]),
        ("10.0.0.1 - 10.0.0.9", ["10.0.0.1", "10.0.0.8/31"]),
        ("10.0.0.1-10.0.0.9:8080", ["10.0.0.1:8080"]),
        ("10.0.0.0-255", ["10.0.0.0/24"]),  # could be a name, by its letters
        ("2001:db8::-2001:db8::ffff", ["2001:db8::/112"]),
        ("10.0.0.*", ["10.0.0.0/24"]),
        ("10.0.*.*", ["10.0.0.0/16"]),
        ("10.0.0", ["10.0.0.0/24"]),
        ("10.0.0.0/255.255.255.0", ["10.0.0.0/24"]),
        ("10.0.0.0 255.255.0.0", ["10.0.0.0/16"]),
        ("example.org:80,443", ["example.org:80", "example.org:443"]),
        ("example.org:8000-8010", ["example.org:8000"]),
        ("example.org:https", ["example.org:443"]),
        ("example.org:*", ["example.org:8080"]),
        ("example.org 8080", ["example.org:8080"]),
    ],
)
def test_a_garden_entry_in_the_syntax_of_another_program_gets_a_hint(
    text: str, would_do: list[str]
) -> None:
    with pytest.raises(ValueError, match=": write ") as caught:
        values.garden_entry(text)
    assert text in str(caught.value)
    for each in would_do:
        assert each in str(caught.value)
        assert values.garden_entry(each.strip('"'))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "www.example.org www.example.com",
            "is 2 values in one: write an item for each",
        ),  # openNDS
        ("www.example.org,www.example.com", "is 2 values in one"),
        ("any", "is everything"),
        ("*", "is everything"),
        (r"^.*\.example\.org$", "is an expression"),  # CoovaChilli's uamregex
        ("udp/192.0.2.1:53", "is for UDP"),
        ("02:00:00:00:00:07", "add the device under clients"),
        ("0200.0000.0007", "add the device under clients"),
        ("10.0.0.9-10.0.0.1", "is a range that ends before it begins"),
        ("10.0.0.9-1", "is a range that ends before it begins"),
    ],
)
def test_a_garden_entry_that_cannot_be_one_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        values.garden_entry(text)


def test_a_name_that_looks_like_a_mac_is_a_name_all_the_same() -> None:
    assert values.garden_entry("face.beef.cafe") == ("face.beef.cafe", frozenset({80, 443}))


@pytest.mark.parametrize(
    ("rule", "would_do"),
    [
        ("address: 10.0.0.1-9", "write 10.0.0.1, 10.0.0.2/31, 10.0.0.4/30 and 10.0.0.8/31"),
        ("address: 10.0.0.1-10.9.0.9", "is a range: write networks, such as 10.0.0.1"),
        ("address: '10.0.0.*'", "write 10.0.0.0/24"),
        ("address: '10.0.0.1, 10.0.0.2'", "is 2 values in one: write an item for each"),
        ("address: 0200.0000.0007", "write mac: 0200.0000.0007"),
        ("address: www.example.org", "is a name: write the client's address"),
        (
            "mac: '02:00:00:00:00:07,02:00:00:00:00:08'",
            "is 2 values in one: write an item for each",
        ),
        ("mac: '02:00:00:*'", "is only a part of a MAC address"),
        ("mac: 02:00:00:00:00:00/24", "is only a part of a MAC address"),
        ("mac: 02:00:00:00:00:07@192.0.2.7", "mac: 02:00:00:00:00:07 or address: 192.0.2.7"),
        ("mac: 02:00:00:00:00:07, access: allow", "write known"),
        ("mac: 02:00:00:00:00:07, access: Deny", "write blocked"),
    ],
)
def test_a_client_in_the_syntax_of_another_program_gets_a_hint(rule: str, would_do: str) -> None:
    access = "" if "access" in rule else ", access: known"
    assert would_do in str(error_of(f"{LOGIN}clients: [{{{rule}{access}}}]\n"))


@pytest.mark.parametrize("mac", ["0200.0000.0007", "020000000007", "2:0:0:0:0:7", "020000-000007"])
def test_a_client_has_one_mac_however_it_is_written(mac: str, tmp_path: Path) -> None:
    policy = parsed(f"{LOGIN}clients: [{{mac: '{mac}', access: known}}]\n")
    assert access(policy, "192.0.2.1", "02:00:00:00:00:07") is Access.KNOWN
    (tmp_path / "staff.csv").write_text(f"{mac},printer\n")
    policy = parsed(f"{LOGIN}clients: [{{file: staff.csv, access: known}}]\n", tmp_path)
    assert access(policy, "192.0.2.1", "02:00:00:00:00:07") is Access.KNOWN


@pytest.mark.parametrize(
    ("listen", "would_do"),
    [
        ("[2001:db8::1]:8511", 'takes quotes: "[2001:db8::1]:8511"'),
        ("[::1]:8511", 'takes quotes: "[::1]:8511"'),
        ("8511", "write 0.0.0.0:8511"),
        ("'*:8511'", "write 0.0.0.0:8511"),
        ("http://192.0.2.1:8511/", "write 192.0.2.1:8511"),
        ("192.0.2.1 8511", "write 192.0.2.1:8511"),
        ("'[fe80::1]:8511'", "write another, such as 192.0.2.1:8511"),
        ("'192.0.2.1:8511, 192.0.2.2:8511'", "is 2 values in one: write an item for each"),
    ],
)
def test_a_place_to_listen_in_the_syntax_of_another_program_gets_a_hint(
    listen: str, would_do: str
) -> None:
    assert would_do in str(error_of(f"{LOGIN}login_server:\n  listen: {listen}\n"))


# Clients files.


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("mac,name\n02:00:00:00:00:07,printer\n", ["mac,name' is a heading: remove it"]),
        ('# ours\n"IP address","Name"\n192.0.2.1,x\n', ["is a heading: remove it"]),
        ("sep=;\n", ["is a heading: remove it"]),
        ("192.0.2.1,x\nmac,name\n", ["mac is neither an address nor"]),  # not the first
        ("02:00:00:00:00:07;printer\n", ["write 02:00:00:00:00:07,printer"]),
        ('"02:00:00:00:00:07";"the printer"\n', ["write 02:00:00:00:00:07,the printer"]),
        ("02:00:00:00:00:07\tprinter\n", ["write 02:00:00:00:00:07,printer"]),  # /etc/ethers
        ("printer,02:00:00:00:00:07\n", ["write 02:00:00:00:00:07,printer"]),
        ("dhcp-host=0200.0000.0007,printer\n", ["write 0200.0000.0007,dhcp-host printer"]),
        ("02:00:00:00:00:07,02:00:00:00:00:08\n", ["several clients on one line"]),  # nodogsplash
        ("02:00:00:00:00:07,192.0.2.7\n", ["several clients on one line"]),
        ("10.0.0.1-10.0.0.9\n", ["is a range: write 10.0.0.1, 10.0.0.2/31"]),
        ("10.0.0.0 255.255.255.0\n", ["write 10.0.0.0/24"]),
        ("// staff\n; staff\n", ["is not a comment here: write # before it"] * 2),
        ("192.0.2.1,St. Mary's\n192.0.2.2,room 7-9\n192.0.2.3,5.1\n", []),
    ],
)
def test_a_line_of_a_clients_file_in_the_syntax_of_another_program_gets_a_hint(
    text: str, errors: list[str], tmp_path: Path
) -> None:
    _, problems = read_clients(text.encode(), tmp_path)
    assert len(problems) == len(errors)
    for problem, error in zip(problems, errors, strict=True):
        assert error in problem.message


def read_clients(text: bytes, folder: Path) -> tuple[ClientRules, list[Problem]]:
    path = folder / "staff.csv"
    path.write_bytes(text)
    rules = ClientRules()
    rules.section(Access.KNOWN, "staff.csv")
    return rules, clients_file.read(path, [rules])


def test_a_clients_file_has_subjects_names_comments_and_blank_lines(tmp_path: Path) -> None:
    rules, problems = read_clients(
        b"\xef\xbb\xbf02:00:00:00:00:01,printer #2\r\n"
        b"\r\n"
        b"# staff, and others\n"
        b'  192.0.2.1 ,  "Smith, ""J""" \n'
        b"192.0.2.2 # no name, here\n"
        b"2001:db8::/48,caf\xc3\xa9\n"
        b"192.0.2.1,again\n"
        b'"192.0.2.3"',
        tmp_path,
    )
    assert problems == []
    assert len(rules) == 6
    expected = {
        "192.0.2.1": ('Smith, "J"', 4),
        "192.0.2.2": (None, 5),
        "2001:db8::9": ("café", 6),
        "192.0.2.3": (None, 8),
    }
    for address, (name, line) in expected.items():
        found = rules.find(Client(ip_address(address)))
        assert found is not None, address
        assert (found.name, found.where) == (name, f"staff.csv:{line}")
    found = rules.find(Client(ip_address("203.0.113.1"), parse_mac("02:00:00:00:00:01")))
    assert found is not None
    assert found.name == "printer #2"


def test_of_a_clients_file_twenty_errors_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    _, problems = read_clients(b"nobody\n" * 1000, tmp_path)
    assert len(problems) == 21
    assert [problem.line for problem in problems[:20]] == list(range(1, 21))
    assert problems[20].message == "980 more lines have errors"
    error = error_of(f"{LOGIN}clients: [{{file: staff.csv, access: known}}]\n", tmp_path)
    assert f"file: {tmp_path / 'staff.csv'}: 980 more lines have errors" in str(error)


def test_a_clients_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (long,) = read_clients(b"x" * 3_000_000 + b"\n192.0.2.1\n", tmp_path)
    assert str(long).endswith(
        "staff.csv:1:1: a line of 1025 bytes or more: at most 1024 are allowed"
    )
    monkeypatch.setattr(clients_file, "MOST_LINES", 2)
    rules, (lines,) = read_clients(b"192.0.2.1\n" * 3, tmp_path)
    assert "has more than 2 lines" in str(lines)
    assert len(rules) == 2
    monkeypatch.setattr(clients_file, "MOST_BYTES", 2 << 20)
    for text in (b"#" * 1000 + b"\n", b"y" * 5_000_000):
        monkeypatch.setattr(clients_file, "MOST_LINES", 1 << 30)
        _, problems = read_clients(text * 3000 if len(text) < 2000 else text, tmp_path)
        assert "is larger than 2 MiB" in str(problems[-1])


def test_a_clients_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), ("/dev/zero", "a device"), (".", "a folder")):
        text = f"{LOGIN}clients: [{{file: {name}, access: known}}]\n"
        assert f"is {kind}: name a file" in str(error_of(text, tmp_path))


def test_a_clients_file_is_sought_beside_the_policy(tmp_path: Path) -> None:
    (tmp_path / "staff.csv").write_text("192.0.2.7\n")
    (tmp_path / "lab.yaml").write_text(f"{LOGIN}clients: [{{file: staff.csv, access: known}}]\n")
    opened: list[str] = []
    policy = policy_file.load(tmp_path / "lab.yaml", opened.append)
    assert access(policy, "192.0.2.7") is Access.KNOWN
    assert opened == [str(tmp_path / "lab.yaml"), str(tmp_path / "staff.csv")]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.text('0123456789abcdef.:/,#"\n% ;', max_size=200).map(str.encode)
)
def test_any_bytes_are_clients_or_problems(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "clients"
    folder.mkdir(exist_ok=True)
    rules, problems = read_clients(text, folder)
    assert len(rules) + len(problems) <= text.count(b"\n") + 1
    for problem in problems:
        assert str(problem).replace("\n", "").isprintable()


def test_200_000_clients_take_a_second_and_50_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "staff.csv"
    with path.open("w") as file:
        for n in range(200_000):
            file.write(f"02:00:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x},guest {n}\n")
    before = resident()
    start = time.thread_time()
    policy = parsed(f"{LOGIN}clients: [{{file: staff.csv, access: known}}]\n", tmp_path)
    assert time.thread_time() - start < 12  # 0.6 s; what is not linear would take hours
    assert resident() - before < 60 << 20
    last = Client(ip_address("192.0.2.1"), parse_mac("02:00:00:03:0d:3f"))
    found = policy.clients.find(last)
    assert found is not None
    assert (found.name, found.where) == ("guest 199999", f"{path}:200000")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_an_error_while_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def seek(self, *_: int) -> int:
            return 0

        def readline(self, _: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(clients_file, "open_regular", lambda _: Failing())
    (problem,) = clients_file.read(tmp_path / "staff.csv", [ClientRules()])
    assert str(problem).endswith("staff.csv: cannot be read: Input/output error")


@pytest.mark.rfc(
    8908,
    "4.1",
    "could permit connections to OCSP responders or Certificate Revocation Lists",
)
@pytest.mark.rfc(
    8908,
    "4.1",
    "if the certificates do require the use of AIA, the captive network MUST allow client "
    "access to the host specified in the URI",
)
def test_where_the_apis_certificate_is_checked_is_in_the_garden(tmp_path: Path) -> None:
    """RFC 8908 section 4.1."""
    certificate(tmp_path, places=True)
    text = "login_server: {listen: 192.0.2.1:8511, certificate: cert.pem, key: key.pem}"
    garden = policy_file.parse(text, "lab.yaml", tmp_path).walled_garden
    for host, port in (("ocsp.example.org", 80), ("ca.example.org", 8080), ("crl.example.org", 80)):
        assert garden.find(host, port)
    assert not garden.find("ocsp.example.org", 443)


TLS = LOGIN + "login_server:\n  listen: 192.0.2.1:8511\n  certificate: cert.pem\n  key: key.pem\n"


def test_a_certificate_and_its_key_for_the_login_urls_host_draw_no_word(tmp_path: Path) -> None:
    certificate(tmp_path)
    assert warnings_of(TLS, tmp_path) == []


def test_a_wildcard_holds_the_login_urls_host(tmp_path: Path) -> None:
    certificate(tmp_path, "*.example.net")
    assert warnings_of(TLS, tmp_path) == []


@pytest.mark.rfc(
    8908,
    "7",
    "the API server MUST present a valid certificate on which the client can perform "
    "revocation checks",
)
@pytest.mark.parametrize("name", ["www.example.org", "example.net", "*.login.example.net", "*.net"])
def test_a_certificate_of_another_name_draws_a_warning_with_both(name: str, tmp_path: Path) -> None:
    certificate(tmp_path, name)
    (found,) = warnings_of(TLS, tmp_path)
    where = f"{tmp_path / 'cert.pem'} is for {name} and not for login.example.net"
    assert found == f"certificate: {where}, the host of login_url"


@pytest.mark.rfc(
    8908,
    "7",
    "the API server MUST present a valid certificate on which the client can perform "
    "revocation checks",
)
def test_an_expired_certificate_draws_a_warning_with_the_date(tmp_path: Path) -> None:
    certificate(tmp_path, days=-3)
    (tmp_path / "lab.yaml").write_text(TLS)
    (found,) = policy_file.load_with_warnings(tmp_path / "lab.yaml")[1]
    assert (found.line, found.column) == (4, 16)
    assert re.search(r"cert\.pem expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC", found.message)


@pytest.mark.parametrize("content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\n", b"\0" * 99])
def test_a_file_without_a_certificate_is_an_error(content: bytes, tmp_path: Path) -> None:
    certificate(tmp_path)
    (tmp_path / "cert.pem").write_bytes(content)
    (problem,) = error_of(TLS, tmp_path).problems
    assert (problem.line, problem.column) == (4, 16)
    assert f"certificate: {tmp_path / 'cert.pem'} is not a PEM certificate" in problem.message


@pytest.mark.parametrize("content", [b"", b"not PEM", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_file_without_a_private_key_is_an_error(content: bytes, tmp_path: Path) -> None:
    certificate(tmp_path)
    (tmp_path / "key.pem").write_bytes(content)
    (problem,) = error_of(TLS, tmp_path).problems
    assert (problem.line, problem.column) == (5, 8)
    assert f"key: {tmp_path / 'key.pem'} is not a PEM private key" in problem.message


def test_a_key_with_a_passphrase_is_an_error(tmp_path: Path) -> None:
    _, key = certificate(tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (problem,) = error_of(TLS, tmp_path).problems
    assert f"key: {key} has a passphrase" in problem.message


def test_a_certificate_whose_names_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    certificate(tmp_path, names=b"no sequence of names")
    (problem,) = error_of(TLS, tmp_path).problems
    cannot = f"certificate: {tmp_path / 'cert.pem'} has extensions that cannot be read: "
    assert problem.message.startswith(cannot)


def test_the_key_of_another_certificate_is_an_error(tmp_path: Path) -> None:
    _, key = certificate(tmp_path)
    other = key.read_bytes()
    certificate(tmp_path)
    key.write_bytes(other)
    (problem,) = error_of(TLS, tmp_path).problems
    assert (problem.line, problem.column) == (5, 8)
    assert problem.message == f"key: {key} is the key of another certificate"


def test_a_certificate_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    certificate(tmp_path)
    with (tmp_path / "cert.pem").open("wb") as file:
        file.truncate(1 << 30)
    (problem,) = error_of(TLS, tmp_path).problems
    assert "is larger than 1 MiB" in problem.message
