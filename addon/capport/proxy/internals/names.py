"""mitmproxy's resolver: it asks this machine's name servers, and caches what they answer.

It relies on `mitmproxy_rs.dns`, by hickory, and on the fallback of mitmproxy's own DNS mode.
"""

from typing import Protocol

import mitmproxy_rs.dns
from mitmproxy.addons.dns_resolver import GetaddrinfoFallbackResolver


class Resolver(Protocol):
    """Names to addresses, asynchronously."""

    async def lookup_ip(self, host: str) -> list[str]:
        """The addresses of `host`, IPv4 and IPv6. Raises OSError."""


def system_resolver() -> Resolver:
    """A resolver that has read this machine's resolv.conf and hosts file just now."""
    try:
        servers = mitmproxy_rs.dns.get_system_dns_servers()
    except RuntimeError:  # no resolv.conf, or none that it can read
        return GetaddrinfoFallbackResolver()
    return mitmproxy_rs.dns.DnsResolver(name_servers=servers, use_hosts_file=True)
