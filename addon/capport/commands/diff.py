"""`capport diff OLD NEW`: which verdicts change under another policy that is not in force."""

import contextlib
import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from capport import clock
from capport.commands import policy_at, store_to_read
from capport.commands.explain import deciding_line
from capport.commands.recordings import recorded_in_events, recorded_in_flows
from capport.core import explanation
from capport.core.client import Client, parse_address, parse_mac, parts_of
from capport.core.explanation import Explanation, in_words, parse_url
from capport.core.http import default_port
from capport.core.place import Host, Place, in_url, parse_authority
from capport.core.policy import GardenEntry, Policy
from capport.core.session import open_ones
from capport.core.standing import NO_ADDRESS
from capport.core.verdict import Intercept, Pass, Refuse
from capport.gate import Gate
from capport.report.recording import ClientRecord
from capport.stores import SessionStore
from capport.terminal import visible

SOMEWHERE = ("http://somewhere.invalid/", "https://somewhere.invalid/")
"""Stands for any place that neither policy names (RFC 6761 section 6.4)."""

OPENED = 1


@dataclass(frozen=True, slots=True)
class Ask:
    """One request whose verdict is compared."""

    client: Client
    method: str
    url: str

    def __str__(self) -> str:
        nobody = self.client.address == NO_ADDRESS and self.client.mac is None
        at_any = self.client.mac if self.client.address == NO_ADDRESS else self.client
        scheme = self.url.partition(":")[0]
        where = f"any other {scheme} URL" if self.url in SOMEWHERE else visible(self.url)
        return f"{'an unknown client' if nobody else at_any}: {self.method} {where}"


@dataclass(frozen=True, slots=True)
class Difference:
    """The verdicts on one request under both policies, which differ."""

    ask: Ask
    before: Explanation
    after: Explanation

    @property
    def opens(self) -> bool:
        """Whether something that was refused would pass."""
        return not _passes(self.before) and _passes(self.after)


def diff(arguments: Namespace) -> int:
    """Prints each verdict that changes. Returns 1 if something that was refused would pass."""
    old, new = policy_at(arguments.old), policy_at(arguments.new)
    with contextlib.closing(store_to_read(arguments.sessions, old)) as store:
        asks = dict.fromkeys([*_recorded(arguments), *_there(old, new, store)])
        found = list(differences(asks, old, new, store))
    opened = sum(one.opens for one in found)
    limits = old.limits != new.limits
    if arguments.json:
        documents = [_document(one, old, new) for one in found]
        said = {"asked": len(asks), "opened": opened, "limits": limits, "differences": documents}
        print(json.dumps(said, indent=2))
        return OPENED if opened else 0
    for one in found:
        print("\n".join(_text(one, old, new)), end="\n\n")
    if limits:
        print("The limits differ, too. They depend on rates and sizes, and are not compared.")
    change = f"{len(found)} of {len(asks)} verdicts change"
    print(f"{change}; {opened} let pass what was refused" if opened else f"{change}; none opens")
    return OPENED if opened else 0


def differences(
    asks: Iterable[Ask], old: Policy, new: Policy, store: SessionStore
) -> Iterator[Difference]:
    """Each request on which the policies have different verdicts."""
    now = clock.now()
    before, after = (Gate(policy, store, now=lambda: now) for policy in (old, new))
    for ask in asks:
        url = parse_url(ask.url)
        was = before.explain_url(ask.client, url, ask.method)
        will = after.explain_url(ask.client, url, ask.method)
        if _outcome(was) != _outcome(will):
            yield Difference(ask, was, will)


def _outcome(found: Explanation) -> tuple[object, ...]:
    """What a client would notice of a verdict, and where its request would go."""
    verdict = found.verdict
    to = verdict.to if isinstance(verdict, Pass) else None
    return type(verdict), to, type(found.tls), found.status


def _passes(found: Explanation) -> bool:
    return isinstance(found.decisive[-1][1], Pass) and not isinstance(found.tls, Refuse | Intercept)


# --- what is asked ---


def _recorded(arguments: Namespace) -> Iterator[Ask]:
    """Each request and handshake in files of events, and in a file of flows."""
    recordings = [recorded_in_events([file]) for file in arguments.events]
    if arguments.flows:
        recordings.append(recorded_in_flows(arguments.flows))
    for recording in recordings:
        for one in recording.clients:
            yield from _of_record(one)


def _of_record(one: ClientRecord) -> Iterator[Ask]:
    with contextlib.suppress(ValueError):  # an event without an address
        client = Client(parse_address(one.address), parse_mac(one.mac) if one.mac else None)
        for request in one.requests:
            scheme = request.scheme or ("https" if request.method == "CONNECT" else "http")
            named = f"{in_url(request.host)}:{request.port or default_port(scheme)}"
            yield from _asked(client, request.method or "GET", scheme, named, request.path or "/")
        for handshake in one.handshakes:
            yield from _asked(client, "GET", "https", handshake.host, "/")


def _asked(client: Client, method: str, scheme: str, named: str, path: str) -> Iterator[Ask]:
    """The request, if its URL can be read: in an event it is whatever the client sent."""
    with contextlib.suppress(ValueError):
        url = parse_authority(named, default_port(scheme)).url(scheme, path)
        parse_url(url)
        yield Ask(client, method, url)


def _there(old: Policy, new: Policy, store: SessionStore) -> Iterator[Ask]:
    """Requests by each client with a session or a rule, and by an unknown client to each place."""
    clients = [parts_of(session.client) for session in open_ones(store.sessions(), clock.now())]
    for policy in (old, new):
        for subject, _, _ in policy.clients.subjects():
            clients.append((subject, None) if isinstance(subject, str) else (None, subject[0]))
    for mac, address in (*clients, (None, None)):
        yield from (Ask(Client(address or NO_ADDRESS, mac), "GET", url) for url in SOMEWHERE)
    for url in (*_places(old), *_places(new)):
        yield Ask(Client(NO_ADDRESS), "GET", url)


def _places(policy: Policy) -> Iterator[str]:
    """A URL of each place that unknown clients may reach."""
    garden = policy.walled_garden
    entries: list[tuple[Host, GardenEntry]]
    entries = [(name.replace("*", "any"), entry) for name, entry in garden.names()]
    entries += [(network[0], entry) for network, entry in garden.networks()]
    for host, entry in entries:
        for port in sorted(entry.ports):
            yield Place(host, port).url("https" if port == default_port("https") else "http")


# --- how it is shown ---


def _text(one: Difference, old: Policy, new: Policy) -> Iterator[str]:
    yield f"{one.ask}{'  OPENS' if one.opens else ''}"
    for when, found, policy in (("before", one.before, old), ("after", one.after, new)):
        yield f"  {when:<7} {in_words(found, policy)}"
        if line := deciding_line(found, policy):
            yield f"          {line.file}:{line.number}: {visible(line.text.strip())}"
        else:
            yield f"          {found.rule}: {visible(found.verdict.because)}"


def _document(one: Difference, old: Policy, new: Policy) -> dict[str, object]:
    before, after = _side(one.before, old), _side(one.after, new)
    return {"opens": one.opens, "before": before, "after": after}


def _side(found: Explanation, policy: Policy) -> dict[str, object]:
    line = deciding_line(found, policy)
    decided_by = f"{line.file}:{line.number}" if line else None
    return explanation.document(found, policy) | {"decided_by": decided_by}
