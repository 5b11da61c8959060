"""mitmproxy's resolver, which asks this machine's name servers and caches their answers.

It relies on `mitmproxy_rs.dns`, which uses hickory, and on the fallback of mitmproxy's DNS mode.
"""

import mitmproxy_rs.dns
from mitmproxy.addons.dns_resolver import GetaddrinfoFallbackResolver

type MitmproxyResolver = mitmproxy_rs.dns.DnsResolver | GetaddrinfoFallbackResolver


def mitmproxy_resolver() -> MitmproxyResolver:
    """Makes a resolver, which reads this machine's resolv.conf and hosts file now."""
    try:
        servers = mitmproxy_rs.dns.get_system_dns_servers()
    except RuntimeError:  # there is no resolv.conf, or it cannot be read
        return GetaddrinfoFallbackResolver()
    return mitmproxy_rs.dns.DnsResolver(name_servers=servers, use_hosts_file=True)
