"""The `{state}` in a login URL: an encrypted token with the refused client and the page it wanted.

We encrypt a token (AES-GCM) and do not store it. So a flood of 511s costs the router no memory, and
a login server in another process can read the tokens that the addon mints. A token begins with the
number of its key and a nonce, both random. The key is derived from the secret, its number and the
boot id, so no token outlives a reboot, whatever the clocks say. Each process takes another key
after 2^28 tokens: the chance that two of them have one nonce (96 random bits) is then 2^-41, and
NIST SP 800-38D section 8.3 permits 2^-32.
"""

import hashlib
import hmac
import os
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from capport.core.bounded_map import BoundedMap
from capport.core.client import Client, parse_mac
from capport.core.session import Instant

LIFETIME = 900.0
"""Seconds that the link in a 511 is valid: long enough to read terms and to fetch a voucher."""

MAX_PAGE = 1024
"""Characters. A token leaves a longer page out, because the token is part of a URL. Most pages'
URLs are far shorter."""

_PAGES = 512  # pages that are remembered, because refused clients repeat themselves
_REMEMBERED = 4096  # clients whose last token for their agent is remembered
_NUMBER, _NONCE = 4, 12  # bytes of the number of a key, and of a nonce
_SALT = _NUMBER + _NONCE
_TOKENS_A_KEY = 2**28
_HEAD = struct.Struct(">dBB")  # time, length of the address, length of the MAC
_TOKEN = re.compile(r"[A-Za-z0-9_-]{40,2048}", re.ASCII)
# The characters that a URL may have (RFC 3986): such a page can be shown without another check.
_PAGE = re.compile(r"http://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)


class StateError(ValueError):
    """A state that this portal did not mint, or that has expired."""


@dataclass(frozen=True, slots=True)
class State:
    """The content of a token. The records note its `id` when it is used; `page` is an http URL."""

    id: bytes
    client: Client
    page: str | None
    minted: Instant

    @property
    def expires(self) -> Instant:
        """The instant from which on it is not valid."""
        return self.minted + LIFETIME

    def is_of(self, client: Client) -> bool:
        """Whether `client` is the one that was refused: by its MAC, or by its address without one.

        By MAC first, because a device may ask for its page over IPv6 and sign in over IPv4.
        """
        if self.client.mac is not None:
            return self.client.mac == client.mac
        return self.client.address == client.address


class States:
    """Mints and reads states. `boot` names this boot: `/proc/sys/kernel/random/boot_id`."""

    def __init__(self, secret: bytes, boot: str, clock: Callable[[], Instant]) -> None:
        self._secret = secret
        self._boot = boot.encode()
        self._clock = clock
        self._take_key()
        self._lately = BoundedMap[Client, tuple[Instant, str]](_REMEMBERED)

    def mint(self, client: Client, page: str | None = None) -> str:
        """A new token for `client`, which asked for `page`. Takes 2 us; no two are the same."""
        address = client.address.packed
        mac = bytes.fromhex(client.mac.replace(":", "")) if client.mac else b""
        asked = _asked(page) if page and len(page) <= MAX_PAGE else b""
        head = _HEAD.pack(self._clock(), len(address), len(mac))
        self._left -= 1
        if self._left < 0:
            self._take_key()
        nonce = os.urandom(_NONCE)
        sealed = self._key.encrypt(nonce, head + address + mac + asked, None)
        return _encode(self._number + nonce + sealed)

    def link(self, client: Client, page: str | None = None) -> str | None:
        """A new token, as `mint`; None for a client that looks like others."""
        return self.mint(client, page) if client.ids else None

    def for_agent(self, client: Client) -> str | None:
        """A token for an agent that asks often: the same one for half its lifetime.

        Repeated queries should get the same answer. None as for `link`.
        """
        if not client.ids:
            return None
        now = self._clock()
        minted, token = self._lately.get(client, (-LIFETIME, ""))
        if now - minted > LIFETIME / 2:
            minted, token = now, self.mint(client)
        self._lately[client] = (minted, token)
        return token

    def spent(self, state: State) -> None:
        """Notes that `state` was used, so the client's agent gets another one when it asks."""
        self._lately.pop(state.client, None)

    def read(self, token: str) -> State:
        """The content of `token`. Raises StateError; its message tells a client nothing new."""
        if not _TOKEN.fullmatch(token):
            raise StateError("that is not a state")
        try:
            sealed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except Base64Error:
            raise StateError("that is not a state") from None
        if _encode(sealed) != token:  # each state has one spelling, so nobody can use it twice
            raise StateError("that is not a state")
        try:
            key = self._key_with(sealed[:_NUMBER])
            said = key.decrypt(sealed[_NUMBER:_SALT], sealed[_SALT:], None)
        except InvalidTag:
            raise StateError("that state is not this portal's, or from an earlier boot") from None
        state = _unpack(sealed[:_SALT], said)
        if not state.minted <= self._clock() < state.expires:
            raise StateError(f"that state has expired: a state is valid for {LIFETIME:g} s")
        return state

    def _take_key(self) -> None:
        self._number = os.urandom(_NUMBER)
        self._key, self._left = self._key_with(self._number), _TOKENS_A_KEY

    def _key_with(self, number: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._secret, b"state\0" + number + self._boot, hashlib.sha256))


def _encode(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).rstrip(b"=").decode()


def _unpack(name: bytes, said: bytes) -> State:
    when, address_length, mac_length = _HEAD.unpack_from(said)
    start = _HEAD.size
    packed = said[start : start + address_length]
    mac = said[start + address_length : start + address_length + mac_length]
    page = said[start + address_length + mac_length :].decode()
    address = IPv4Address(packed) if address_length == 4 else IPv6Address(packed)
    return State(
        name, Client(address, parse_mac(mac.hex(":")) if mac else None), page or None, when
    )


@lru_cache(_PAGES)
def _asked(page: str) -> bytes:
    """What a token has of the page that a client wanted: nothing if it must not be shown."""
    return (safe_page(page) or "").encode()


def safe_page(url: str) -> str | None:
    """`url` if it is http and well formed, so that the login server may link to it; else None."""
    if len(url) > MAX_PAGE or not _PAGE.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or "@" in parts.netloc or port == 0:
        return None
    return url
