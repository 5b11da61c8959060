"""`capport explain POLICY --client ADDRESS URL`: the verdict, and how it came about."""

import contextlib
import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from capport import clock
from capport.commands import CommandError, existing_store, policy_at
from capport.commands.display import duration
from capport.commands.router import others_in_the_way
from capport.core import explanation
from capport.core.client import Address, Client, Mac
from capport.core.explanation import Explanation, Url, in_words
from capport.core.policy import Policy
from capport.core.session import Instant, Session
from capport.core.verdict import Pass, Verdict
from capport.gate import lacks_mac
from capport.linux import neighbour_lookup
from capport.linux.own_addresses import is_own, may_reach
from capport.policy.errors import Findings, PolicyError, visible
from capport.policy.tree import Fields, read_text, read_tree
from capport.stores import StoreError
from capport.stores.opening import default_store


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a policy, and of the files it names."""

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}\n    {visible(self.text.strip())}"


def explain_url(arguments: Namespace) -> None:
    """Prints what a client would get for a URL. Exit status 0 whatever the verdict."""
    policy = policy_at(arguments.policy_file)
    client = Client(arguments.client, arguments.mac or _mac_of(arguments.client))
    now = clock.now()
    session, asked = _session(arguments.sessions, policy, client, now)
    url: Url = arguments.url
    interfaces = (
        neighbour_lookup.numbers([policy.router.client_interface]) if policy.router else None
    )
    lacks = lacks_mac(
        client, policy, lambda address: neighbour_lookup.is_on_link(address, interfaces)
    )
    found = explanation.explain(
        policy, client, session, now, url, arguments.method, lacks_mac=lacks
    )
    found = replace(found, closed=_is_closed(found, policy))
    line = _line_of(found, policy)
    others = others_in_the_way() if policy.router else []
    if arguments.json:
        told = document(found, policy, line, now, asked) | {"in_the_way": others}
        print(json.dumps(told, indent=2))
    else:
        print(text(found, policy, line, now, asked))
        for other in others:
            print(f"In the way: {other}")


def text(found: Explanation, policy: Policy, line: Line | None, now: Instant, asked: str) -> str:
    """For people."""
    lines = [
        f"Client   {found.client}",
        f"Session  {_told(found.session, now)} ({asked})",
        f"Request  {found.method} {visible(found.url.text)}",
        f"Verdict  {_named(found.verdict)}",
    ]
    if found.tls is not None:
        lines.append(f"TLS      {type(found.tls).__name__}")
    lines += [f"Status   {in_words(found, policy)}", "", "Rules, as they were asked:"]
    lines += [f"  {name:<24} {_named(verdict)}" for name, verdict in found.steps]
    if found.inside:
        lines += ["", "Inside TLS:"]
        lines += [f"  {name:<24} {_named(verdict)}" for name, verdict in found.inside]
    lines += ["", f"Decided by {line}" if line else _no_line(found)]
    return "\n".join(lines)


def document(
    found: Explanation, policy: Policy, line: Line | None, now: Instant, asked: str
) -> dict[str, object]:
    """For programs. Members are added to it, never changed."""
    left = found.session.seconds_remaining(now) if found.session else None
    where = {"file": line.file, "line": line.number, "text": line.text} if line else None
    more = {"seconds_remaining": left, "sessions": asked, "decided_by": where}
    return explanation.document(found, policy) | more


def _is_closed(found: Explanation, policy: Policy) -> bool:
    """As the proxy would say before it connects, of an address: names are resolved there only."""
    place, verdict = found.url.place, found.verdict
    if isinstance(place.host, str) or not is_own(place.host):
        return False
    listed = place in policy.login_places or (isinstance(verdict, Pass) and verdict.to is not None)
    return not may_reach(found.client, place.host, (place.host,) if listed else ())


def _named(verdict: Verdict | None) -> str:
    if verdict is None:
        return "says nothing"
    return f"{type(verdict).__name__}: {visible(verdict.because)}"


def _told(session: Session | None, now: Instant) -> str:
    if session is None:
        return "none"
    left = duration(session.expires - now)
    return (
        f"of {session.client}, {left} left" if session.is_open(now) else f"over: {session.client}"
    )


def _no_line(found: Explanation) -> str:
    if found.rule == "open_session":
        return "Decided by the session, no line of the policy"
    return f"Decided by no line of the policy: {found.verdict.because}"


def _mac_of(address: Address) -> Mac | None:
    """As the portal would find it: none where the kernel has none, as of an off-link client."""
    with contextlib.suppress(OSError):
        return neighbour_lookup.table().get(address)
    return None


def _session(
    given: str | None, policy: Policy, client: Client, now: Instant
) -> tuple[Session | None, str]:
    """The client's session, and a word on where it was sought. A store that was named must open."""
    if policy.clients.find(client) is not None:
        return None, "not asked for: a client rule decides"
    try:
        url = policy.sessions.store or default_store() if given is None else given
        store = existing_store(url, about=[client.address, *filter(None, [client.mac])])
    except (StoreError, CommandError) as error:
        if given is not None:
            raise
        return None, f"not asked for: {error}"
    if store is None:
        return None, f"there is no {url}"
    with contextlib.closing(store):
        mine = [session for session in store.sessions() if session.client in client.ids]
        session = store.find(client.ids, now) or next(iter(mine), None)
    return session, f"in {url}"


def _line_of(found: Explanation, policy: Policy) -> Line | None:
    """The line of the policy, or of a file it names, that decided."""
    keys = found.keys
    if found.where is not None:
        file, _, number = found.where.rpartition(":")
        if number.isdecimal():
            return _line(file, int(number))
        keys = ("login_server.certificate",)  # it names the place, and is no text with lines
    if policy.file is None:
        return None
    with contextlib.suppress(PolicyError):  # it was changed or removed since it was read
        text = read_text(Path(policy.file))
        root = read_tree(text, findings := Findings(policy.file, text))
        for key in keys:
            node, at = root, None
            for part in key.split("."):
                if not isinstance(node, Fields) or part not in node.fields:
                    break
                at, node = node.fields[part]
            else:
                if at is not None:
                    return Line(policy.file, at.line, findings.line(at))
    return None


def _line(file: str, number: int) -> Line:
    text = ""
    with contextlib.suppress(OSError), Path(file).open(errors="replace") as lines:
        text = next((line for at, line in enumerate(lines, 1) if at == number), "")
    return Line(file, number, text.rstrip("\r\n"))
