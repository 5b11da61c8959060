"""Makes the lab's portal a portal of another kind (`scripts/lab --kind NAME`).

mitmdump loads this file as a script beside the portal's: it makes the gate answer as that kind.
"""

from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

from capport.testing.kinds import PortalKind, kind_named

LIE = "198.51.100.3"
"""Behind `dns-lie` every name has this address. Nothing is there, so it leads to the portal."""

OPTION = "lab_kind"

# After conntrack has seen the packet, and before the chain that redirects it.
_SILENT = """
table inet capport {
    chain lab_silent {
        type filter hook prerouting priority dstnat - 20; policy accept;
        iifname != br-lan accept
        jump known
        meta l4proto { tcp, udp } th dport 53 accept
        udp dport { 67, 547 } accept
        meta l4proto { tcp, udp } drop
        icmp type echo-request drop
        icmpv6 type echo-request drop
    }
}
"""


def in_policy(kind: PortalKind) -> str:
    """What the policy has for this kind."""
    return f"tls: {{unknown: {kind.tls}, connect: alert}}\n" if kind.tls else ""


def in_rules(kind: PortalKind) -> str:
    """What the kernel has, beside the portal's rules."""
    return _SILENT if kind.vanishes else ""


def in_resolver(kind: PortalKind, router: str) -> str:
    """What the resolver for unknown clients has."""
    return f"address=/#/{LIE}\naddress=/login.example.net/{router}\n" if kind.lies else ""


class Imitating:
    """The script's addon, for kinds that have an answer of their own."""

    def load(self, loader: Loader) -> None:
        """Declares the option."""
        loader.add_option(OPTION, str, "", "The kind of portal.")

    def running(self) -> None:
        """Makes the gate answer as the kind does."""
        hooks: Any = ctx.master.addons.get("capport")  # type: ignore[no-untyped-call]
        hooks.gate.imitate(kind_named(ctx.options.lab_kind).imitate)


addons = [Imitating()]
