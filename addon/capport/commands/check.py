"""`capport check POLICY`: whether a policy can be used, and a summary of it."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from capport.commands import CommandError, warn
from capport.core.policy import Limits, Policy
from capport.linux import neighbour_lookup
from capport.policy.policy_file import PolicyError, load_with_warnings
from capport.router.dns_rules import PAYLOAD, RESOLVER_PORT
from capport.router.ruleset import unmet
from capport.stores import StoreError
from capport.stores.opening import store_url
from capport.terminal import duration, visible


def check(arguments: Namespace) -> None:
    """Prints a summary, and warnings on stderr. Raises CommandError with every error."""
    try:
        policy, warnings = load_with_warnings(Path(arguments.policy_file))
    except PolicyError as error:
        raise CommandError(str(error)) from None
    for warning in (*warnings, *_unused_pages(policy)):
        warn(str(warning))
    if lacking := _family_without_login(policy):
        warn(f"{arguments.policy_file}: {lacking}")
    print(f"{arguments.policy_file} can be used.")
    for name, value in summary(policy):
        print(f"  {name:<14} {visible(value)}")


def summary(policy: Policy) -> Iterator[tuple[str, str]]:
    """Each part of a policy and its settings in one line, defaults included."""
    if policy.network:
        yield "network", policy.network
    server = policy.login_server
    where = f", at {' and '.join(map(str, server.listen))}" if server else ""
    kind = f"the embedded login server: {server.conditions}" if server else "your own login server"
    urls = " or ".join(login.url for login in policy.logins)
    lacks = policy.login_lacks
    only = f"; clients with only IPv{lacks} cannot go there" if lacks else ""
    yield "login", f"{urls} ({kind}{where}{only})"
    yield "refresh", "never" if policy.refresh is None else f"after {policy.refresh} s"
    yield "clients", _clients(policy)
    entries = len(policy.walled_garden.entries)
    yield "walled garden", f"{_count(entries, 'entry', 'entries')}, and the login server"
    tls = policy.tls
    yield "tls", f"unknown: {tls.unknown}, known: {tls.known}, connect: {tls.connect}"
    yield "http", f"known: {policy.http_known}"
    sessions = policy.sessions
    idle = f", {duration(sessions.idle)} without traffic" if sessions.idle is not None else ""
    most = f"at most {sessions.most}"
    yield "sessions", f"{duration(sessions.lifetime)}{idle}, {_store(policy)}; {most}"
    yield "limits", ", ".join(_limits(policy.limits)) or "none"
    yield from (("known clients", sentence) for sentence in unmet(policy))
    yield "probes", f"{policy.probes}, at any host: {', '.join(policy.probe_paths) or 'none'}"
    if router := policy.router:
        sides = f"clients at {router.client_interface}, origins at {router.origin_interface}"
        yield "router", sides
        resolver = f"a resolver on port {RESOLVER_PORT}, {PAYLOAD} bytes/s each way"
        yield "dns", f"unknown clients': {resolver}"


def _family_without_login(policy: Policy) -> str | None:
    """A warning if the router has a family of addresses in which no login URL can be reached."""
    router, lacks = policy.router, policy.login_lacks
    if router is None or lacks not in neighbour_lookup.families(router.client_interface):
        return None
    here = f"{router.client_interface} has IPv{lacks}, but a client with only IPv{lacks}"
    would_do = f"add an IPv{lacks} address of the router to login_server.listen"
    if policy.login_server is None or policy.login_server.certificate:
        would_do = "give login_url a name that has both an IPv4 and an IPv6 address"
    return f"{here} cannot go to {policy.login_url}: {would_do}"


def _unused_pages(policy: Policy) -> Iterator[str]:
    """A warning for each file in `login/` beside the policy that the login pages do not use."""
    folder = Path(policy.file or "").absolute().parent / "login"
    if policy.login_server is not None and folder.is_dir():
        from capport.login.theme import Theme

        yield from Theme(folder).unused()


def _store(policy: Policy) -> str:
    try:
        return f"in {store_url(None, policy)}"
    except StoreError as error:  # this user has no default store; the portal's user may
        return str(error)


def _clients(policy: Policy) -> str:
    counts = Counter(access for _, _, access in policy.clients.subjects())
    said = [f"{number} {access}" for access, number in sorted(counts.items())]
    rules = f"{_count(counts.total(), 'rule', 'rules')}: {', '.join(said)}" if said else "no rules"
    trusting = len(policy.trusting)
    trust = "has mitmproxy's CA" if trusting == 1 else "have mitmproxy's CA"
    return f"{rules}; {trusting} {trust}" if trusting else rules


def _limits(limits: Limits) -> Iterator[str]:
    for rate, what in (
        (limits.requests, "requests of a known client"),
        (limits.unknown_requests, "requests of an unknown client"),
        (limits.drop_after, "refusals before connections are dropped"),
    ):
        if rate:
            yield f"{rate.count} {what} in {duration(rate.per)}"
    if limits.header_field is not None:
        yield f"a header field of {limits.header_field} bytes"
    if limits.header_section is not None:
        yield f"a header section of {limits.header_section} bytes"
    if limits.require_conditions:
        number = len(limits.require_conditions)
        yield f"conditions required by {_count(number, 'host', 'hosts')}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
