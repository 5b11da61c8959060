"""`capport router up|down|show`: the router's rules in the kernel (nftables)."""

import contextlib
import socket
import sys
from argparse import Namespace
from pathlib import Path

from capport.commands import CommandError, existing_store, policy_at, warn
from capport.linux.libnftables import Nftables
from capport.router import fence, nftables
from capport.router.dns_rules import RESOLVER_PORT
from capport.router.other_firewalls import CLOSED, in_the_way
from capport.router.ruleset import unmet
from capport.stores.memory import MemoryStore
from capport.stores.opening import store_url

RESOLVER_FILE = "/etc/capport/resolver-{}.conf"
NO_RESOLVER = (
    f"nothing listens on UDP port {RESOLVER_PORT}, where unknown clients' DNS goes: they cannot"
    " resolve names, so they do not find the portal. Start capport-resolver@unknown"
)


def up(arguments: Namespace) -> None:
    """Puts the policy's rules in force, with all known clients, in one transaction.

    If the store is missing or unusable, the rules are loaded without sessions: unknown clients must
    be stopped before anything else works.
    """
    policy = policy_at(arguments.policy_file)
    if policy.router is None:
        raise CommandError(
            f"{arguments.policy_file} has no router: add one, such as"
            " router: {client_interface: br-lan, origin_interface: wan}"
        )
    from capport.linux.neighbours import NetlinkNeighbours
    from capport.router import known_clients

    url = store_url(arguments.sessions, policy)
    store = (None if url == ":memory:" else existing_store(url, start_closed=True)) or MemoryStore()
    neighbours = NetlinkNeighbours({policy.router.client_interface})
    with contextlib.closing(store), contextlib.closing(neighbours):
        known_clients.up(
            policy,
            store,
            neighbours,
            proxy_ports=arguments.proxy_ports or nftables.PROXY_PORTS,
        )
    print(f"The rules of {arguments.policy_file} are in force: table {nftables.TABLE}")
    for limit in unmet(policy):
        print(f"  {limit}")
    # The table of closed.nft is there when the unit starts, and is removed right after this.
    for line in others_in_the_way():
        if CLOSED not in line:
            warn(line)
    if not _exists(interface := policy.router.client_interface):
        warn(f"there is no interface {interface} yet; clients on other interfaces are not stopped")
    if conf := nftables.stars(policy):
        print(
            "For each *.name of the walled garden on ports beyond 80 and 443, add to"
            f" {RESOLVER_FILE.format('unknown')}:\n{nftables.to_stars(policy)}"
            f"and make {RESOLVER_FILE.format('stars')}, for capport-resolver@stars:\n{conf}",
            end="",
        )


def others_in_the_way() -> list[str]:
    """What other tables drop although ours accepts it; empty if ours is absent or not visible."""
    with contextlib.suppress(OSError), contextlib.closing(Nftables()) as rules:
        return in_the_way(rules)
    return []


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def down(arguments: Namespace) -> None:
    """Removes the rules; the policy file is not read, so it does not matter if it changed."""
    from capport.router import known_clients

    known_clients.down()
    print(
        f"There is no table {nftables.TABLE} any more: the kernel stops no client", file=sys.stderr
    )


def show(arguments: Namespace) -> None:
    """Prints the rules in force, and warnings on stderr. Raises CommandError if there are none."""
    with contextlib.closing(Nftables()) as rules, contextlib.closing(fence.Fence()) as rule:
        shown, fenced = nftables.show(rules=rules), rule.interfaces()
    if shown is None:
        held = f"; until then nothing is forwarded from {', '.join(fenced)}" if fenced else ""
        raise CommandError(
            f"there is no table {nftables.TABLE}; to make it, run capport router up POLICY{held}"
        )
    print(shown.rstrip("\n"))
    for interface in fenced:
        print(f"# ip rule: nothing is forwarded from {interface} but what this table has marked")
    if not fenced:
        warn("there is no ip rule that stops clients while the table is missing")
    for line in others_in_the_way():
        warn(line)
    if not _resolver_listens():
        warn(NO_RESOLVER)


def _resolver_listens() -> bool:
    """Whether a socket listens where the resolver for unknown clients should."""
    tables = (Path("/proc/thread-self/net", name) for name in ("udp", "udp6"))
    port = f":{RESOLVER_PORT:04X} "
    return any(port in table.read_text() for table in tables if table.exists())
