"""The fence: an `ip rule` in each family that forwards only what our table marked (ip-rule(8)).

`nft flush ruleset` removes every table, but not this rule. So until our table is back, nothing that
comes from the client interface is forwarded. Packets for this machine itself still arrive, because
the kernel looks in the routing table `local` first.

    1: from all fwmark 0/0x20000000 iif br-lan prohibit proto 212

The rules of `ruleset.py` mark each packet from the client interface before it is routed.
"""

import errno
import socket
import struct

from capport.linux import netlink
from capport.router.ruleset import MARK

GROUPS = 1 << 7 | 1 << 18
"""RTNLGRP_IPV4_RULE and RTNLGRP_IPV6_RULE of linux/rtnetlink.h: they report changes to rules."""

# linux/rtnetlink.h and fib_rules.h.
_NEW, _DELETE, _GET = 32, 33, 34  # RTM_*RULE
_CREATE = 0x600  # NLM_F_CREATE, NLM_F_EXCL
_HEADER = struct.Struct("=B6xBI")  # fib_rule_hdr: the family, the action, flags
_PROHIBIT = 8  # FR_ACT_PROHIBIT
_INTERFACE, _PRIORITY, _MASK, _PROTOCOL = 3, 6, 16, 21  # FRA_*; without FRA_FWMARK the mark is 0

FAMILIES = (socket.AF_INET, socket.AF_INET6)
_OURS = {
    _PRIORITY: struct.pack("=I", 1),  # right behind `local`, so no other rule comes before it
    _MASK: struct.pack("=I", MARK),
    _PROTOCOL: b"\xd4",  # 212: we know of no other program that uses it; scripts/router/ uses 211
}


class Fence:
    """The fence of the network namespace it is made in. Raises OSError, as its methods do."""

    def __init__(self) -> None:
        self._kernel = netlink.connect(netlink.ROUTE)

    def close(self) -> None:
        """Closes the socket; the rules stay."""
        self._kernel.close()

    def put(self, interface: str) -> bool:
        """Puts the fence around `interface` and no other; returns whether a rule was missing."""
        missing = [self._change(_NEW, family, _around(interface)) for family in FAMILIES]
        self.take_away(but=interface)
        return any(missing)

    def interfaces(self) -> set[str]:
        """The interfaces that are fenced in each family that this machine has."""
        families = [rules for rules in map(self._rules, FAMILIES) if rules]
        found = [{_name(rule) for rule in rules if _is_ours(rule)} for rules in families]
        return set.intersection(*found) if found else set()

    def take_away(self, *, but: str = "") -> None:
        """Removes the fence, if there is one, except around the interface `but`."""
        for family in FAMILIES:
            for name in [_name(rule) for rule in self._rules(family) if _is_ours(rule)]:
                if name != but:
                    self._change(_DELETE, family, _around(name))

    def _rules(self, family: int) -> list[dict[int, bytes]]:
        """The attributes of every rule, ours or not; none if the machine lacks the family."""
        self._kernel.send(netlink.message(_GET, _HEADER.pack(family, 0, 0), netlink.DUMP))
        rules = []
        for answer in netlink.answers(self._kernel, errno.EAFNOSUPPORT):
            if answer.kind in (netlink.DONE, netlink.ERROR):
                break
            rules.append(netlink.attributes(answer.body[_HEADER.size :]))
        return rules

    def _change(self, kind: int, family: int, rule: dict[int, bytes]) -> bool:
        """Adds or deletes a rule; returns whether that changed anything."""
        attributes = b"".join(netlink.attribute(kind, value) for kind, value in rule.items())
        body = _HEADER.pack(family, _PROHIBIT, 0) + attributes
        flags = netlink.ACK | (_CREATE if kind == _NEW else 0)
        self._kernel.send(netlink.message(kind, body, flags))
        done = errno.EEXIST, errno.ENOENT, errno.EAFNOSUPPORT
        return next(netlink.answers(self._kernel, *done)).code == 0


def _around(interface: str) -> dict[int, bytes]:
    return _OURS | {_INTERFACE: interface.encode(errors="surrogateescape") + b"\0"}


def _is_ours(rule: dict[int, bytes]) -> bool:
    return _INTERFACE in rule and _OURS.items() <= rule.items()


def _name(rule: dict[int, bytes]) -> str:
    return rule[_INTERFACE].rstrip(b"\0").decode(errors="surrogateescape")
