from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import Address, parse_address
from capport.core.place import Host, Place, in_url, parse_authority, parse_host, parse_port

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = st.builds(
    lambda labels, last: ".".join([*labels, last]),
    st.lists(LABELS, max_size=4),
    st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z]", fullmatch=True),
)
ADDRESSES = st.ip_addresses().map(lambda address: parse_address(str(address)))
HOSTS: st.SearchStrategy[Host] = NAMES | ADDRESSES
PORTS = st.integers(1, 65535)
HOSTILE = st.text(max_size=60) | st.text("0123456789abxX.:-_*[]/@%# \t\n\u3002\uff0e", max_size=60)


@given(HOSTS, PORTS, st.integers(1, 65535) | st.none())
def test_a_place_is_read_as_it_is_written(host: Host, port: int, default: int | None) -> None:
    place = Place(host, port)
    assert parse_authority(str(place), default) == place
    assert parse_authority(place.authority(443), 443) == place


@given(NAMES, st.booleans())
def test_a_name_is_lower_case_and_without_its_trailing_dot(name: str, dot: bool) -> None:
    assert parse_host(name.upper() + ("." if dot else "")) == name


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_may_stand_in_brackets(address: IPv6Address) -> None:
    assert parse_host(f"[{address}]") == parse_host(str(address)) == parse_address(str(address))


@given(HOSTILE)
def test_any_text_is_a_host_in_normal_form_or_a_value_error(text: str) -> None:
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert parse_host(str(host)) == host
    if isinstance(host, str):
        assert host.isascii()
        assert host == host.lower()
        assert not set(host) & set(" \t\r\n/:@?#[]%*\\")


@given(HOSTILE, st.integers(1, 65535) | st.none())
def test_any_text_is_a_place_or_a_value_error(text: str, default: int | None) -> None:
    try:
        place = parse_authority(text, default)
    except ValueError:
        return
    assert parse_authority(str(place), None) == place
    assert 0 < place.port < 65536


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a..b", ".a", "-a", "a-", "a b", "a\n", "*", "*.a", "a/b", "a@b", "a:b"),
        *("127.1", "1", "0x7f.0.0.1", "0x", "a.0x1", "a.1", "127.0.0.1.", "192.0.2.256"),
        *("2001:db8::1]", "[2001:db8::1"),
        *("010.0.0.1", "[192.0.2.1]", "[::1", "::1]", "[]", "[a]", "[[::1]]", "fe80::1%eth0"),
        *(
            "a" * 64,
            ("a" * 50 + ".") * 5 + "example",
            "bücher.example",
            "\uff41.example",
            "a\u3002b",
        ),
    ],
)
def test_what_is_no_host_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fe80::1%eth0", "has a zone, which means nothing on another machine"),
        ("[192.0.2.1]", "has brackets around an IPv4 address"),
        ("a b", "is neither a host name nor an address"),
        ("127.1", "ends in a number, but is not an address"),
        ("a.0x1", "ends in a number, but is not an address"),
    ],
)
def test_what_is_no_host_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_host(text)
    assert str(caught.value) == f"{text!r} {why}"


def test_a_name_has_at_most_253_characters_and_a_label_63() -> None:
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert parse_host(longest) == longest
    assert parse_host(f"{longest}.") == longest
    for text in (f"{longest}a", "a" * 64):
        with pytest.raises(ValueError, match="is neither"):
            parse_host(text)


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+1", "1.0", "080000", " 80", "8\uff10", "http"]
)
def test_what_is_no_port_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        parse_port(text)


@pytest.mark.parametrize(
    "text",
    [
        "a:",
        ":80",
        "a:b:80",
        "2001:db8::1",
        "2001:db8::1:80",
        "[::1]80",
        "[::1]:",
        "a]:80",
        "u@a:80",
        "[::1%lo]:80",
    ],
)
def test_what_is_no_authority_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_authority(text, 80)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[::1:80", "is not HOST or HOST:PORT"),
        ("a]:80", "is not HOST or HOST:PORT"),
        ("2001:db8::1:80", "is not HOST or HOST:PORT"),
        ("a:", "'' is not a port, 1 to 65535"),
    ],
)
def test_what_is_no_authority_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_authority(text, 80)


def test_an_authority_without_a_port_takes_the_default_where_there_is_one() -> None:
    assert parse_authority("www.example.org", 80) == Place("www.example.org", 80)
    assert parse_authority("[2001:db8::1]", 443) == Place(ip_address("2001:db8::1"), 443)
    with pytest.raises(ValueError, match="has no port"):
        parse_authority("www.example.org", None)


@pytest.mark.parametrize(
    ("place", "scheme", "url"),
    [
        (Place("www.example.org", 80), "http", "http://www.example.org/"),
        (Place("www.example.org", 443), "http", "http://www.example.org:443/"),
        (Place(ip_address("2001:db8::1"), 443), "https", "https://[2001:db8::1]/"),
    ],
)
def test_a_places_url_lacks_the_default_port(place: Place, scheme: str, url: str) -> None:
    assert place.url(scheme) == url


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("www.example.org", "www.example.org"),
        (ip_address("192.0.2.1"), "192.0.2.1"),
        (ip_address("2001:db8::1"), "[2001:db8::1]"),
    ],
)
def test_ipv6_stands_in_brackets_in_a_url(host: str | Address, text: str) -> None:
    assert in_url(host) == text
    assert Place(host, 80).authority(80) == text
    assert Place(host, 8080).authority(80) == str(Place(host, 8080)) == f"{text}:8080"
