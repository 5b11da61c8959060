from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import (
    UNSEEN,
    Address,
    Client,
    ClientId,
    Mac,
    Peer,
    is_random,
    parse_address,
    parse_client_id,
    parse_frame,
    parse_mac,
    parts_of,
)

ADDRESSES: st.SearchStrategy[Address] = st.ip_addresses()
MACS = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))


@given(ADDRESSES)
def test_an_address_is_read_as_written(address: Address) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        assert parse_address(str(address)) == address.ipv4_mapped
    else:
        assert parse_address(str(address)) == address


@given(st.ip_addresses(v=4))
def test_ipv4_mapped_into_ipv6_is_that_ipv4_address(address: IPv4Address) -> None:
    assert parse_address(f"::ffff:{address}") == address
    assert parse_address(f"::FFFF:{int(address) >> 16:x}:{int(address) & 65535:x}") == address


@given(st.ip_addresses(v=6, network="fe80::/10"), st.from_regex(r"[a-z]+[0-9]*", fullmatch=True))
def test_a_zone_is_dropped(address: IPv6Address, zone: str) -> None:
    assert parse_address(f"{address}%{zone}") == address


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "010.0.0.1", "1", "0x7f.1", "::1::", "a", " ::1", "٣.0.0.1"]
)
def test_what_is_no_address_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@given(MACS, st.booleans(), st.booleans())
def test_a_mac_is_six_lower_case_pairs_however_written(mac: str, upper: bool, hyphen: bool) -> None:
    text = mac.upper() if upper else mac
    assert parse_mac(text.replace(":", "-") if hyphen else text) == mac


@pytest.mark.parametrize(
    "text",
    [
        "2:0:0:a:b:7",  # ether_aton(3), and arp -a where it is BSD's
        "2-0-0-A-B-7",
        "02.00.00.0a.0b.07",
        "02 00 00 0A 0B 07",
        "0200.000a.0B07",  # Cisco
        "0200-000a-0b07",
        "0200:000a:0b07",
        "020000-0a0b07",  # HP
        "020000:0A0B07",
        "0200000a0b07",
    ],
)
def test_a_mac_is_read_as_other_systems_write_it(text: str) -> None:
    assert parse_mac(text) == "02:00:00:0a:0b:07"
    assert parse_client_id(text) == "02:00:00:0a:0b:07"
    assert parse_client_id(f"{text}@192.0.2.7") == "02:00:00:0a:0b:07@192.0.2.7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:07:08",
        "02:00-00:00:00:07",
        "2:0:0:0:7",
        "2:0:0:0-0:7",
        "02000000007",
        "0200.0000.007",
        "0200.0000-0007",
        "020.000.000.007",
        "020000:0000:07",
        "02:00:00:00:00:007",
        "02:00:00:00:00:0g",
        " 02:00:00:00:00:07",
        "02:00:00:00:00:07\n",
        "02:00:00:00:00:0\uff17",
    ],
)
def test_what_is_no_mac_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a MAC address"):
        parse_mac(text)


@given(st.text(max_size=40) | st.text("0123456789abcdefABCDEF:.-%@/", max_size=50))
def test_any_text_is_a_client_id_or_a_value_error(text: str) -> None:
    try:
        client = parse_client_id(text)
    except ValueError:
        return
    assert parse_client_id(client) == client  # the normal form is its own
    assert client.isascii()


@given(ADDRESSES, MACS)
def test_each_id_of_a_client_is_read_as_itself(address: Address, mac: str) -> None:
    client = Client(parse_address(str(address)), Mac(mac))
    assert [parse_client_id(each) for each in client.ids] == list(client.ids)
    assert client.ids == (f"{mac}@{client.address}", mac, str(client.address))
    assert client.id == mac
    bare = Client(client.address)
    assert bare.ids == (bare.id,) == (str(client.address),)


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("02-00-00-00-00-0A", "02:00:00:00:00:0a"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("02-00-00-00-00-07@2001:DB8::1", "02:00:00:00:00:07@2001:db8::1"),
    ],
)
def test_a_client_id_is_normalised(text: str, client: str) -> None:
    assert parse_client_id(text) == client


@pytest.mark.parametrize(
    ("client", "mac", "address"),
    [
        ("02:00:00:00:00:07@192.0.2.7", "02:00:00:00:00:07", "192.0.2.7"),
        ("02:00:00:00:00:07", "02:00:00:00:00:07", None),
        ("192.0.2.7", None, "192.0.2.7"),
        ("2001:db8::7", None, "2001:db8::7"),
    ],
)
def test_an_id_has_a_mac_or_an_address_or_both(
    client: str, mac: str | None, address: str | None
) -> None:
    assert parts_of(ClientId(client)) == (mac, ip_address(address) if address else None)


@pytest.mark.parametrize(
    "text", ["", "@", "@192.0.2.1", "02:00:00:00:00:07@", "192.0.2.1@02:00:00:00:00:07", "a@b@c"]
)
def test_half_an_id_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a MAC|does not appear|is neither an address nor"):
        parse_client_id(text)


@given(MACS)
def test_a_mac_is_random_where_the_second_bit_says_so(mac: str) -> None:
    assert is_random(Mac(mac)) == (mac[1] in "2367abef")


def test_a_client_shows_its_address_and_its_mac() -> None:
    address = ip_address("192.0.2.7")
    assert str(Client(address)) == "192.0.2.7"
    assert str(Client(address, Mac("02:00:00:00:00:07"))) == "192.0.2.7 (02:00:00:00:00:07)"


def test_a_peer_is_the_same_client_until_something_about_it_changes() -> None:
    peer = Peer(parse_address("192.0.2.7"))
    first, mac = peer.client(), Mac("02:00:00:00:00:07")
    assert peer.client() is first
    assert peer.client(mac) == Client(peer.address, mac)
    assert peer.client(mac, astray=True) == Client(peer.address, mac, astray=True)
    assert peer.client(astray=True) == Client(peer.address, astray=True)
    assert peer.client() == first
    assert peer == Peer(peer.address)


def test_an_astray_client_has_no_id_that_is_an_address() -> None:
    address, mac = parse_address("198.51.100.7"), Mac("02:00:00:00:00:07")
    both = f"{mac}@198.51.100.7"
    assert [*Client(address, mac).ids] == [both, mac, "198.51.100.7"]
    assert [*Client(address, mac, astray=True).ids] == [both, mac]
    assert Client(address, astray=True).ids == ()


def test_a_client_and_a_peer_are_written_as_what_they_are_made_of() -> None:
    client = Client(parse_address("198.51.100.7"))
    assert repr(client) == f"Client(address={client.address!r}, mac=None, astray=False)"
    peer = Peer(client.address)
    peer.client()
    assert repr(peer) == f"Peer(address={client.address!r}, frame=None)"
    with pytest.raises(TypeError):
        Peer(client.address, None, client)  # type: ignore[call-arg]


def test_the_mac_of_a_frame_may_be_unseen() -> None:
    assert parse_frame("unseen") == UNSEEN
    assert parse_frame("2:0:0:0:0:7") == "02:00:00:00:00:07"
    with pytest.raises(ValueError, match="is not a MAC"):
        parse_frame("seen")
