"""Asks the kernel whether it lets a client's frames through, and which table is loaded.

One message for each takes no lock and 10 us. libnftables serves one thread at a time and takes
0.5 ms; to list tables, it reads all elements of all sets, which takes a second for 100 000.
"""

import errno
import struct

from capport.core.client import Address, Mac
from capport.linux import netlink
from capport.router.ruleset import LEASE, LEASED

# linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES, NFT_MSG_*, and the attributes.
_GET_TABLE, _GET_ELEMENT = 10 << 8 | 1, 10 << 8 | 13
_FAMILY = struct.pack("=BBH", 1, 0, 0)  # nfgenmsg: NFPROTO_INET
_TABLE = netlink.attribute(1, b"capport\0")  # the name of the table has number 1 in both messages
_FAMILIES = {4: b"\2", 6: b"\n"}  # NFPROTO_IPV4 and NFPROTO_IPV6: an element of the set `lease`
_SET, _ELEMENTS, _LIST_ELEMENT, _KEY, _VALUE = 2, 3, 1, 1, 1


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


def _holds(name: str, key: bytes) -> bool:
    element = _nested(_LIST_ELEMENT, _nested(_KEY, netlink.attribute(_VALUE, key)))
    elements = _nested(_ELEMENTS, element)
    what = _TABLE + netlink.attribute(_SET, f"{name}\0".encode()) + elements
    return _asked(_GET_ELEMENT, what) is not None


def _asked(kind: int, what: bytes) -> netlink.Message | None:
    """What the kernel answers; None if it has no such thing."""
    try:
        return next(netlink.ask(netlink.NETFILTER, kind, _FAMILY + what))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None


def _nested(kind: int, inside: bytes) -> bytes:
    return netlink.attribute(netlink.NESTED | kind, inside)
