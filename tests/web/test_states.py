"""States: only the portal can read what it put in, and only for their lifetime."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import Address, Client, Mac
from capport.web.states import LIFETIME, StateError, States, safe_page

SECRET = bytes(range(32))
clients = st.builds(
    Client,
    st.ip_addresses(),
    st.none() | st.binary(min_size=6, max_size=6).map(lambda b: Mac(b.hex(":"))),
)
pages = st.none() | st.from_regex(
    r"http://[a-z]{1,9}(:[1-9][0-9]{1,3})?/[a-z?&=%]{0,40}", fullmatch=True
)


def states(at: float = 1000.0, secret: bytes = SECRET, boot: str = "b") -> States:
    return States(secret, boot, lambda: at)


@given(client=clients, page=pages)
def test_a_state_says_what_was_put_in(client: Client, page: str | None) -> None:
    read = states().read(states().mint(client, page))
    assert (read.client, read.page, read.minted) == (client, page, 1000.0)


@given(client=clients, page=pages)
def test_a_state_shows_nothing_and_is_never_the_same(client: Client, page: str | None) -> None:
    one, two = (states().mint(client, page) for _ in range(2))
    assert one != two
    assert states().read(one).id != states().read(two).id
    for text in (str(client.address), client.mac or "-", page or "-"):
        assert len(text) < 8 or text not in one


@given(token=st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{40,300}", fullmatch=True))
def test_what_we_did_not_mint_is_refused(token: str) -> None:
    with pytest.raises(StateError):
        states().read(token)


@given(client=clients, data=st.data())
def test_a_state_with_one_character_changed_is_refused(client: Client, data: st.DataObject) -> None:
    token = states().mint(client, "http://example.org/")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCabc019_-=. ").filter(lambda c: c != token[at]))
    with pytest.raises(StateError):
        states().read(token[:at] + other + token[at + 1 :])


@pytest.mark.parametrize(
    "reader",
    [
        states(at=1000.0 + LIFETIME),
        states(at=999.0),
        states(secret=bytes(32)),
        states(boot="another"),
    ],
)
def test_a_state_is_good_for_its_time_its_boot_and_its_portal(reader: States) -> None:
    token = states().mint(Client(_address()))
    assert states(at=1000.0 + LIFETIME - 0.001).read(token)
    with pytest.raises(StateError):
        reader.read(token)


def test_an_agent_that_asks_often_gets_the_same_state_for_half_its_life() -> None:
    now = 1000.0
    minting = States(SECRET, "b", lambda: now)
    client = Client(_address())
    first = minting.for_agent(client)
    now += LIFETIME / 2
    assert minting.for_agent(client) == first
    now += 1
    assert minting.for_agent(client) != first


@pytest.mark.parametrize(
    ("page", "safe"),
    [
        ("http://www.example.org/a?b=c#d", True),
        ("http://[2001:db8::1]:8080/", True),
        ("https://www.example.org/", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//www.example.org/", False),
        ("http:///nowhere", False),
        ("http://user@www.example.org/", False),
        ("http://a.example\\@b.example/", False),
        ("http://a.example/\r\nSet-Cookie: a=b", False),
        ("http://a.example/\n", False),
        ("http://a.example:99999/", False),
        ('http://a.example/"><script>', False),
        ("http://a.example/" + "x" * 2000, False),
        ("http://[::1/", False),
    ],
)
def test_only_a_whole_http_url_is_a_page_to_go_back_to(page: str, *, safe: bool) -> None:
    assert (safe_page(page) == page) is safe
    assert (states().read(states().mint(Client(_address()), page)).page == page) is safe


@given(st.text(max_size=60) | st.from_regex(r"http:[ -~]{0,30}", fullmatch=True))
def test_no_text_is_too_strange_to_be_asked_about(text: str) -> None:
    assert safe_page(text) in (None, text)


def _address() -> Address:
    return ip_address("192.0.2.7")
