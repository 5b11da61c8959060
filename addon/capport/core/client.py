"""A client: its address, its MAC, and the ids that its session can be filed under."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

type Address = IPv4Address | IPv6Address

Mac = NewType("Mac", str)
"""A MAC address as six lower-case pairs, `02:00:00:00:00:07`."""

ClientId = NewType("ClientId", str)
"""What a session is filed under: a MAC, an address, or `MAC@ADDRESS` for both bound together."""

UNSEEN = Mac("unseen")
"""Stands for the MAC of a frame that the kernel should have kept, but did not."""

_MAC = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}", re.ASCII)
# As ether_aton(3) and switches write it: 2:0:0:0:0:7, 0200.0000.0007, 020000-000007, 020000000007.
_OTHER_MAC = re.compile(
    r"[0-9a-f]{1,2}([:. -])[0-9a-f]{1,2}(?:\1[0-9a-f]{1,2}){4}"
    r"|[0-9a-f]{4}([:.-])[0-9a-f]{4}\2[0-9a-f]{4}"
    r"|[0-9a-f]{6}[:-]?[0-9a-f]{6}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Client:
    """A device on our side of the network (RFC 8952's User Equipment).

    `astray` is True if its frames do not come from the device that has `address`. What is filed
    under the address alone then belongs to another client, and does not count for this one.
    """

    address: Address
    mac: Mac | None = None
    astray: bool = False

    id: ClientId = field(init=False, repr=False, compare=False)
    """The id under which a new session is filed: the client's MAC, or else its address."""
    ids: tuple[ClientId, ...] = field(init=False, repr=False, compare=False)
    """Each id under which a session of this client may be filed, the narrowest first.

    Empty if the client is astray and has no MAC, because then nothing distinguishes it from others.
    """

    def __post_init__(self) -> None:
        address, mac = ClientId(str(self.address)), self.mac
        of_mac = (ClientId(f"{mac}@{address}"), ClientId(mac)) if mac else ()
        object.__setattr__(self, "id", ClientId(mac or address))
        object.__setattr__(self, "ids", of_mac if self.astray else (*of_mac, address))

    def __str__(self) -> str:
        return f"{self.address} ({self.mac})" if self.mac else self.id


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection: its address, and the MAC that its first frame came from.

    `frame` is None where frames have no MAC or none is kept (loopback, a tunnel, UDP). It is
    UNSEEN where the kernel should have kept one, but did not.
    """

    address: Address
    frame: Mac | None = None
    _last: Client | None = field(default=None, init=False, repr=False, compare=False)

    def client(self, mac: Mac | None = None, *, astray: bool = False) -> Client:
        """The client at this end. It is made again only if something about it has changed."""
        last = self._last
        if last is None or last.mac != mac or last.astray is not astray:
            last = Client(self.address, mac, astray)
            object.__setattr__(self, "_last", last)
        return last


@dataclass(frozen=True, slots=True)
class Way:
    """How frames reach an address over a link on the clients' side.

    `hop` is the address whose MAC those frames carry: the address itself, or the router in front
    of it. It is None on a link without MACs.
    """

    hop: Address | None


@lru_cache(4096)
def parse_address(text: str) -> Address:
    """The address in `text`, without its zone. An IPv4 address mapped into IPv6 becomes IPv4.

    Raises ValueError. Sockets really name their peers `::ffff:10.0.0.1` and `fe80::1%eth0`.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def parse_mac(text: str) -> Mac:
    """The MAC address in `text`, in any usual spelling and either case. Raises ValueError."""
    lower = text.lower()
    if _MAC.fullmatch(lower):
        return Mac(lower.replace("-", ":"))
    if not _OTHER_MAC.fullmatch(lower):
        raise ValueError(f"{text!r} is not a MAC address, such as 02:00:00:00:00:07")
    groups = re.split(r"[:. -]", lower)  # one group if there is no separator
    digits = "".join(group.zfill(12 // len(groups)) for group in groups)
    return Mac(bytes.fromhex(digits).hex(":"))


def parse_frame(text: str) -> Mac:
    """As `parse_mac`, but the text may also be UNSEEN."""
    return UNSEEN if text == UNSEEN else parse_mac(text)


def parse_client_id(text: str) -> ClientId:
    """The id in `text`: an address, a MAC, or `MAC@ADDRESS`. Raises ValueError."""
    mac, at, address = text.partition("@")
    if at:
        return ClientId(f"{parse_mac(mac)}@{parse_address(address)}")
    for parse in (parse_mac, parse_address):
        with suppress(ValueError):
            return ClientId(str(parse(text)))
    raise ValueError(f"{text!r} is neither an address nor a MAC address")


def parts_of(client: ClientId) -> tuple[Mac | None, Address | None]:
    """The MAC and the address in an id. One of them may be None, never both."""
    mac, at, address = client.partition("@")
    if at:
        return Mac(mac), parse_address(address)
    if _MAC.fullmatch(client):
        return Mac(client), None
    return None, parse_address(client)


def is_random(mac: Mac) -> bool:
    """Whether the device made this MAC up: the locally administered bit (IEEE 802, 8.2)."""
    return bool(int(mac[:2], 16) & 0b10)
