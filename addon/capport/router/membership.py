"""Asks the kernel which table is loaded, what its sets hold, and which clients they let through.

libnftables serves one thread at a time. It takes 0.5 ms for what takes 10 us here, and for a set
with 100 000 elements some seconds, for which a grant would have to wait.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from capport.core.client import Address, Mac
from capport.linux import netlink
from capport.linux.libnftables import Nftables
from capport.router.ruleset import LEASE, LEASED

# linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES, NFT_MSG_*, and the attributes.
_GET_TABLE, _GET_ELEMENTS = 10 << 8 | 1, 10 << 8 | 13
_FAMILY = netlink.NETFILTER_HEADER.pack(1, 0, 0)  # NFPROTO_INET
_TABLE = netlink.attribute(1, b"capport\0")  # the name of the table has number 1 in both messages
_FAMILIES = {4: b"\2", 6: b"\n"}  # NFPROTO_IPV4 and NFPROTO_IPV6: an element of the set `lease`
_SET, _ELEMENTS, _LIST_ELEMENT, _KEY, _VALUE = 2, 3, 1, 1, 1
_EXPIRES, _COUNTER, _COUNTER_DATA, _PACKETS = 5, 7, 2, 2
_MAC = 6  # bytes


class Listed(NamedTuple):
    """An element as nft(8) writes it, the seconds it has left, and the packets it has let through.

    `packets` is 0 if the set has no counters.
    """

    text: str
    left: float
    packets: int


def is_let_through(address: Address, mac: Mac | None) -> bool:
    """Whether a session lets through what `mac` sends from `address`; also True without our table.

    Raises OSError if the kernel does not answer.
    """
    version, packed = address.version, address.packed
    places = {f"routed{version}": packed}
    if mac is not None:
        sender = bytes.fromhex(mac.replace(":", ""))
        places = {f"known{version}": packed + sender + b"\0\0", "macs": sender}
    found = any(_holds(name, key) for name, key in places.items()) or (
        any(_holds(LEASED + name, key) for name, key in places.items())
        and _holds(LEASE, _FAMILIES[version])
    )
    return found or table() is None


def table() -> dict[int, bytes] | None:
    """The attributes of our table (NFTA_TABLE_*); None if it is not loaded. Raises OSError."""
    found = _asked(_GET_TABLE, _TABLE)
    return None if found is None else netlink.attributes(found.body[len(_FAMILY) :])


def elements(rules: Nftables, name: str) -> Iterator[Listed]:
    """Each element with a timeout of a set of addresses or MACs; none if there is no such set.

    An element without a timeout is in the rules' own text. Raises OSError.
    """
    of_set = _FAMILY + _TABLE + netlink.attribute(_SET, f"{name}\0".encode())
    for message in rules.listing_of(_GET_ELEMENTS, of_set):
        for _, element in netlink.each(netlink.find(message.body[len(_FAMILY) :], _ELEMENTS)):
            said = netlink.attributes(element)
            if left := int.from_bytes(said.get(_EXPIRES, b"")):
                counted = netlink.find(said.get(_COUNTER, b""), _COUNTER_DATA, _PACKETS)
                key = netlink.find(said[_KEY], _VALUE)
                yield Listed(_text(key), left / 1000, int.from_bytes(counted))


def _text(key: bytes) -> str:
    """An address, a MAC, or both, as nft(8) writes them; the kernel pads a MAC to 8 bytes."""
    if len(key) == _MAC:
        return key.hex(":")
    size = 4 if len(key) in (4, 12) else 16
    text, mac = str(ip_address(key[:size])), key[size : size + _MAC]
    return f"{text} . {mac.hex(':')}" if mac else text


def _holds(name: str, key: bytes) -> bool:
    element = _nested(_LIST_ELEMENT, _nested(_KEY, netlink.attribute(_VALUE, key)))
    elements = _nested(_ELEMENTS, element)
    what = _TABLE + netlink.attribute(_SET, f"{name}\0".encode()) + elements
    return _asked(_GET_ELEMENTS, what) is not None


def _asked(kind: int, what: bytes) -> netlink.Message | None:
    """What the kernel answers; None if it has no such thing."""
    try:
        return next(netlink.ask(netlink.NETFILTER, kind, _FAMILY + what))
    except FileNotFoundError:
        return None


def _nested(kind: int, inside: bytes) -> bytes:
    return netlink.attribute(netlink.NESTED | kind, inside)
