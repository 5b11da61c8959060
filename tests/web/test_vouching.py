"""`Capport-Client`: only the addon can write it, and only for a moment."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import UNSEEN, Mac, Peer, parse_address
from capport.web.vouching import LIFETIME, AskingError, sign_client, verify_client

SECRET = b"secret"
times = st.floats(0, 1e9)


@given(
    address=st.ip_addresses(),
    frame=st.sampled_from([None, UNSEEN, Mac("02:00:00:00:00:07")]),
    now=times,
)
def test_what_was_signed_is_what_is_read(
    address: IPv4Address | IPv6Address, frame: Mac | None, now: float
) -> None:
    # An IPv4 address in IPv6 is the IPv4 address.
    same = Peer(parse_address(str(address)), frame)
    assert verify_client(sign_client(same, SECRET, now), SECRET, now) == same


@given(value=st.text(max_size=120))
def test_no_other_text_is_a_signature(value: str) -> None:
    with pytest.raises(AskingError):
        verify_client(value, SECRET, 1000.0)


@given(st.data())
def test_one_character_changed_is_noticed(data: st.DataObject) -> None:
    value = sign_client(_CLIENT, SECRET, 1000.0)
    at = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(st.sampled_from("0123456789abcdef.: v").filter(lambda c: c != value[at]))
    with pytest.raises(AskingError):
        verify_client(value[:at] + other + value[at + 1 :], SECRET, 1000.0)


@pytest.mark.parametrize(
    ("secret", "now"),
    [(b"other", 1000.0), (SECRET, 1000.0 + LIFETIME + 0.01), (SECRET, 999.9)],
)
def test_it_is_for_one_secret_and_one_moment(secret: bytes, now: float) -> None:
    value = sign_client(_CLIENT, SECRET, 1000.0)
    assert verify_client(value, SECRET, 1000.0 + LIFETIME - 0.01) == _CLIENT
    with pytest.raises(AskingError):
        verify_client(value, secret, now)


_CLIENT = Peer(IPv4Address("192.0.2.7"), Mac("02:00:00:00:00:07"))
