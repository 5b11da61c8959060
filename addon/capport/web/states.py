"""The `{state}` in a login URL: who was refused, and for which page, in a token that shows neither.

A token is sealed (AES-GCM), not stored: a flood of 511s costs the router no memory, and a token
minted by the addon can be read by a login server that runs as a process of its own. Each is sealed
with a key of its own, derived from a 128-bit salt, so that any number may be minted under one
secret; the boot is part of the key, so no token outlives a reboot, whatever the clocks say.
"""

import hashlib
import hmac
import re
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from capport.core.bounded_map import BoundedMap
from capport.core.client import Address, Client, parse_mac
from capport.core.policy import Policy
from capport.core.session import Instant

LIFETIME = 900.0
"""Seconds from the 511 to the end of its link: long enough to read terms and fetch a voucher."""

MAX_PAGE = 1024
"""Characters. The page asked for is left out where it is longer: most are far shorter, and the
token is part of a URL."""

_REMEMBERED = 4096  # clients whose agents ask again
_SALT = 16
_HEAD = struct.Struct(">dBB")  # when, length of the address, length of the MAC
_TOKEN = re.compile(r"[A-Za-z0-9_-]{40,2048}", re.ASCII)
# What a URL may have in it (RFC 3986), so that nothing in it needs a second look when it is shown.
_PAGE = re.compile(r"http://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)


class StateError(ValueError):
    """A state that this portal did not mint, or not lately."""


@dataclass(frozen=True, slots=True)
class State:
    """What a token says. `id` names it where single use is noted; `page` is an http URL."""

    id: bytes
    client: Client
    page: str | None
    minted: Instant

    @property
    def expires(self) -> Instant:
        """From here on it is no good."""
        return self.minted + LIFETIME

    def is_of(self, client: Client) -> bool:
        """Whether `client` is who was refused: by its MAC, and by its address where it had none.

        A device asks for its page over IPv6, and meets the login server over IPv4.
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
        self._lately = BoundedMap[Client, tuple[Instant, str]](_REMEMBERED)

    def mint(self, client: Client, page: str | None = None) -> str:
        """A token for `client`, who asked for `page`. 9 us; no two are the same."""
        address = client.address.packed
        mac = bytes.fromhex(client.mac.replace(":", "")) if client.mac else b""
        asked = (safe_page(page) or "") if page else ""
        head = _HEAD.pack(self._clock(), len(address), len(mac))
        salt = secrets.token_bytes(_SALT)
        return _encode(
            salt + self._box(salt).encrypt(_NONCE, head + address + mac + asked.encode(), None)
        )

    def link(self, client: Client, page: str | None = None) -> str | None:
        """What `mint` gives; None for a client that nothing tells from others."""
        return self.mint(client, page) if client.ids else None

    def for_agent(self, client: Client) -> str | None:
        """A `link` for an agent that asks often: it stays the same for half its life.

        RFC 8908 section 4: repeated queries should be answered alike.
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
        """`state` lets nobody on again: the client's agent gets another when it asks."""
        self._lately.pop(state.client, None)

    def read(self, token: str) -> State:
        """What `token` says. Raises StateError; the message never says more than a client knows."""
        if not _TOKEN.fullmatch(token):
            raise StateError("that is not a state")
        try:
            sealed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except Base64Error:
            raise StateError("that is not a state") from None
        if _encode(sealed) != token:  # one state, one spelling: single use is by its bytes
            raise StateError("that is not a state")
        try:
            said = self._box(sealed[:_SALT]).decrypt(_NONCE, sealed[_SALT:], None)
        except InvalidTag:
            raise StateError("that state is not of this portal, or of an earlier boot") from None
        state = _unpack(sealed[:_SALT], said)
        if not state.minted <= self._clock() < state.expires:
            raise StateError(f"that state is over: it holds for {LIFETIME:g} s")
        return state

    def _box(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._secret, b"state\0" + salt + self._boot, hashlib.sha256))


# Each key seals one message, so the nonce has nothing to keep apart.
_NONCE = bytes(12)


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


def safe_page(url: str) -> str | None:
    """`url`, where it is a page that a person may be sent back to: plain http, and whole."""
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


def login_url(policy: Policy, address: Address | None, token: str | None) -> str:
    """The login URL for a client at `address`, its `{state}` filled in: with nothing, if no token.

    The embedded login server is given its state also where the policy's `login_url` has no place
    for one.
    """
    url = policy.login_for(address).url
    if token and "{state}" not in url and policy.login_server is not None:
        return f"{url}{'&' if '?' in url else '?'}state={token}"
    return url.replace("{state}", token or "")
