"""`capport explain POLICY --client ADDRESS URL`: the verdict, and the rules that led to it."""

import contextlib
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from capport import clock
from capport.commands import CommandError, existing_store, policy_at
from capport.commands.router import others_in_the_way
from capport.core import explanation
from capport.core.client import Client, Peer
from capport.core.explanation import Explanation, in_words
from capport.core.policy import Policy
from capport.core.reach import Machine
from capport.core.session import Instant
from capport.core.standing import Standing, needs_no_session
from capport.core.verdict import Verdict
from capport.gate import Gate
from capport.linux import Neighbours
from capport.linux.neighbours import NetlinkNeighbours
from capport.linux.own_addresses import HERE, OWN
from capport.policy.errors import PolicyError, Problems
from capport.policy.tree import Map, read_text, read_tree
from capport.service.noted_ports import NotedPorts
from capport.stores import SessionStore, StoreError
from capport.stores.memory import MemoryStore
from capport.stores.opening import store_url
from capport.terminal import duration, visible


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A line of a policy file, or of a clients file."""

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}\n    {visible(self.text.strip())}"


def explain_url(arguments: Namespace) -> None:
    """Prints what a client would get for a URL. The exit status is 0 for any verdict."""
    policy = policy_at(arguments.policy_file)
    peer, now = Peer(arguments.client), clock.now()
    with contextlib.ExitStack() as opened:
        neighbours = opened.enter_context(contextlib.closing(_neighbours(policy)))
        mac = arguments.mac or neighbours.find_mac(peer.address)
        is_sure = arguments.mac is not None or policy.router is None
        store, asked = _store(arguments.sessions, policy, peer.client(mac), is_sure=is_sure)
        opened.callback(store.close)
        machine = _machine(arguments.sessions, policy)
        gate = Gate(policy, store, neighbours=neighbours, now=lambda: now, machine=machine)
        client = peer.client(mac) if arguments.mac else gate.client(peer)
        found = gate.explain_url(
            client, arguments.url, arguments.method, arguments.fields, after=arguments.after
        )
    line = deciding_line(found, policy)
    others = others_in_the_way() if policy.router else []
    if arguments.json:
        said = document(found, policy, line, now, asked) | {"in_the_way": others}
        print(json.dumps(said, indent=2))
    else:
        print(text(found, policy, line, now, asked))
        for other in others:
            print(f"In the way: {other}")


def text(
    found: Explanation, policy: Policy, line: PolicyLine | None, now: Instant, asked: str
) -> str:
    """The explanation as text, for people; `asked` says which store was read."""
    lines = [
        f"Client   {found.standing.client}",
        f"Session  {_session_shown(found.standing, now)} ({asked})",
        f"Request  {found.method} {visible(found.url)}",
        f"Verdict  {_verdict_shown(found.verdict)}",
    ]
    if found.tls is not None:
        lines.append(f"TLS      {type(found.tls).__name__}")
    lines += [f"Status   {in_words(found, policy)}", "", "Rules, in order:"]
    lines += [f"  {name:<24} {_verdict_shown(verdict)}" for name, verdict in found.steps]
    if found.inside:
        lines += ["", "Inside TLS:"]
        lines += [f"  {name:<24} {_verdict_shown(verdict)}" for name, verdict in found.inside]
    lines += ["", f"Decided by {line}" if line else _why_no_line(found)]
    return "\n".join(lines)


def document(
    found: Explanation, policy: Policy, line: PolicyLine | None, now: Instant, asked: str
) -> dict[str, object]:
    """The explanation for programs. New members may be added; none is ever changed."""
    session = found.standing.session
    left = session.seconds_remaining(now) if session else None
    where = {"file": line.file, "line": line.number, "text": line.text} if line else None
    more = {"seconds_remaining": left, "sessions": asked, "decided_by": where}
    return explanation.document(found, policy) | more


def _verdict_shown(verdict: Verdict | None) -> str:
    if verdict is None:
        return "says nothing"
    return f"{type(verdict).__name__}: {visible(verdict.because)}"


def _session_shown(standing: Standing, now: Instant) -> str:
    session = standing.session
    if session is None:
        return "none"
    if standing.open_session is None:
        return f"over: {session.client}"
    return f"of {session.client}, {duration(session.left(now))} left"


def _why_no_line(found: Explanation) -> str:
    if found.rule == "open_session":
        return "Decided by the session, no line of the policy"
    return f"Decided by no line of the policy: {found.verdict.because}"


def _neighbours(policy: Policy) -> Neighbours:
    with contextlib.suppress(OSError):  # the kernel gives no table, so nobody has a MAC
        return NetlinkNeighbours(policy.client_interfaces)
    return Neighbours()


def _machine(given: str | None, policy: Policy) -> Machine:
    """This machine, and the ports of the proxy that has the same store."""
    with contextlib.suppress(StoreError):
        return Machine(OWN, NotedPorts(store_url(given, policy)))
    return HERE


def _store(
    given: str | None, policy: Policy, client: Client, *, is_sure: bool
) -> tuple[SessionStore, str]:
    """The store to read, and a phrase that names it. A store that `--sessions` names must open.

    `is_sure` is False if the store is needed to find out whether the client's MAC is a false one.
    """
    if is_sure and needs_no_session(client, policy):
        return MemoryStore(), "not read: a client rule decides"
    try:
        url = store_url(given, policy)
        store = existing_store(url, about=[client.address, *filter(None, [client.mac])])
    except (StoreError, CommandError) as error:
        if given is not None:
            raise
        return MemoryStore(), f"not read: {error}"
    return (store, f"in {url}") if store else (MemoryStore(), f"there is no {url}")


def deciding_line(found: Explanation, policy: Policy) -> PolicyLine | None:
    """The line of the policy, or of a clients file, that decided; None if there is none."""
    keys = found.keys
    if found.where is not None:
        file, _, number = found.where.rpartition(":")
        if number.isdecimal():
            return _line(file, int(number))
        # The certificate names the place. It has no lines, so show its own line in the policy.
        keys = ("login_server.certificate",)
    if policy.file is None:
        return None
    with contextlib.suppress(PolicyError):  # the file was changed or removed after it was read
        root = read_tree(problems := Problems(policy.file, read_text(Path(policy.file))))
        for key in keys:
            node, at = root, None
            for part in key.split("."):
                if not isinstance(node, Map) or part not in node.entries:
                    break
                at, node = node.entries[part]
            else:
                if at is not None:
                    return PolicyLine(policy.file, at.line, problems.line(at))
    return None


def _line(file: str, number: int) -> PolicyLine:
    text = ""
    with contextlib.suppress(OSError), Path(file).open(errors="replace") as lines:
        text = next((line for at, line in enumerate(lines, 1) if at == number), "")
    return PolicyLine(file, number, text.rstrip("\r\n"))
