"""Asks the kernel whether it lets a client's frames through: one message for each set.

It takes no lock and 40 us. libnftables would take 0.5 ms, and serves one thread at a time.
"""

import errno
import struct

from capport.core.client import Address, Mac
from capport.linux import netlink

# linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES, NFT_MSG_*, and the attributes.
_GET_TABLE, _GET_ELEMENT = 10 << 8 | 1, 10 << 8 | 13
_FAMILY = struct.pack("=BBH", 1, 0, 0)  # nfgenmsg: NFPROTO_INET
_TABLE = netlink.attribute(1, b"capport\0")  # the name of the table has number 1 in both messages
_SET, _ELEMENTS, _LIST_ELEMENT, _KEY, _VALUE = 2, 3, 1, 1, 1


def is_let_through(address: Address, mac: Mac | None) -> bool:
    """Whether a session lets through what `mac` sends from `address`; also True without our table.

    Raises OSError if the kernel does not answer.
    """
    version, packed = address.version, address.packed
    if mac is None:
        found = _holds(f"routed{version}", packed)
    else:
        sender = bytes.fromhex(mac.replace(":", ""))
        found = _holds(f"known{version}", packed + sender + b"\0\0") or _holds("macs", sender)
    return found or not _there_is(_GET_TABLE, _TABLE)


def _holds(name: str, key: bytes) -> bool:
    element = _nested(_LIST_ELEMENT, _nested(_KEY, netlink.attribute(_VALUE, key)))
    elements = _nested(_ELEMENTS, element)
    return _there_is(
        _GET_ELEMENT, _TABLE + netlink.attribute(_SET, f"{name}\0".encode()) + elements
    )


def _there_is(kind: int, what: bytes) -> bool:
    """Whether the kernel has what the message asks for."""
    try:
        return bool(list(netlink.ask(netlink.NETFILTER, kind, _FAMILY + what)))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def _nested(kind: int, inside: bytes) -> bytes:
    return netlink.attribute(netlink.NESTED | kind, inside)
