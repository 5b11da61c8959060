"""`capport router up|down|show`: the kernel's part, in nftables."""

import contextlib
import socket
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from capport.commands import CommandError, existing_store, policy_at, store_url
from capport.linux.libnftables import Nftables
from capport.router import fence, nftables
from capport.router.dns_rules import RESOLVER_PORT
from capport.router.other_firewalls import CLOSED, in_the_way
from capport.stores.memory import MemoryStore

RESOLVER_FILE = "/etc/capport/resolver-{}.conf"
NO_RESOLVER = (
    f"nothing listens on UDP port {RESOLVER_PORT}, where unknown clients' DNS goes: they find no"
    " name, and no portal. Start capport-resolver@unknown"
)


def up(arguments: Namespace) -> None:
    """Puts the policy's rules in force, with everybody who is known, in one transaction.

    Without a store that can be used nobody is known: the rules are what must be there first.
    """
    policy = policy_at(arguments.policy_file)
    if policy.router is None:
        raise CommandError(
            f"{arguments.policy_file} has no router: add one, such as"
            " router: {client_interface: br-lan, origin_interface: wan}"
        )
    from capport.linux.neighbours import NetlinkNeighbours
    from capport.router import known_clients

    url = store_url(arguments, policy)
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
    # closed.nft's is there when the unit comes up, and goes next.
    _warn(line for line in others_in_the_way() if CLOSED not in line)
    if not _is_here(interface := policy.router.client_interface):
        print(
            f"warning: there is no interface {interface} yet; who comes in by another is not held",
            file=sys.stderr,
        )
    if conf := nftables.stars(policy):
        print(
            "For each *.name of the walled garden on ports beyond 80 and 443, add to"
            f" {RESOLVER_FILE.format('unknown')}:\n{nftables.to_stars(policy)}"
            f"and make {RESOLVER_FILE.format('stars')}, for capport-resolver@stars:\n{conf}",
            end="",
        )


def others_in_the_way() -> list[str]:
    """What other tables drop that ours accepts; nothing where ours is not in force, or not seen."""
    with contextlib.suppress(OSError), contextlib.closing(Nftables()) as rules:
        return in_the_way(rules)
    return []


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _is_here(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def down(arguments: Namespace) -> None:
    """Takes the rules away, whatever has become of the policy since."""
    from capport.router import known_clients

    known_clients.down()
    print(f"There is no table {nftables.TABLE} any more: the kernel holds nobody", file=sys.stderr)


def show(arguments: Namespace) -> None:
    """Prints the rules in force, and warns if no resolver answers unknown clients.

    Raises CommandError where there are no rules.
    """
    rules = nftables.show()
    with contextlib.closing(fence.Fence()) as asked:
        fenced = asked.interfaces()
    if rules is None:
        held = f"; until then nothing is forwarded from {', '.join(fenced)}" if fenced else ""
        raise CommandError(
            f"there is no table {nftables.TABLE}; capport router up POLICY makes it{held}"
        )
    print(rules.rstrip("\n"))
    for interface in fenced:
        print(f"# ip rule: nothing is forwarded from {interface} but what this table has marked")
    if not fenced:
        _warn(["there is no ip rule that holds clients while the table is away"])
    _warn(others_in_the_way())
    if not _resolves():
        _warn([NO_RESOLVER])


def _resolves() -> bool:
    """Whether there is a resolver for unknown clients, by what the kernel says of its sockets."""
    tables = (Path("/proc/thread-self/net", name) for name in ("udp", "udp6"))
    port = f":{RESOLVER_PORT:04X} "
    return any(port in table.read_text() for table in tables if table.exists())
