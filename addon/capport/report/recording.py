"""What happened, read from events: the requests, handshakes and sessions of each client."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from capport.core.http import DEFAULT_PORTS
from capport.core.place import in_url

MOST = 200_000
"""Events that a recording keeps; those after them are counted."""

_KINDS = (
    *("refused", "passed", "tls", "dropped"),
    *("granted", "revoked", "expired", "watched", "unwatched"),
)

_TEXTS = "method", "scheme", "path", "query", "agent", "accept", "referer", "error", "because"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, or `count` of them that were counted together (then without details).

    `answered_by` is `portal`, `login server`, `garden` or `origin`; None if nothing answered.
    """

    time: float
    answered_by: str | None
    status: int | None = None
    method: str = ""
    scheme: str = ""
    host: str = ""
    port: int | None = None
    path: str = ""
    query: str = ""
    agent: str = ""
    accept: str = ""
    referer: str = ""
    preflight: bool = False
    cookies: int = 0
    authorizations: int = 0
    first_byte: int | None = None
    modified_since: float | None = None
    traces: frozenset[str] = frozenset()
    retry_after: float | None = None
    length: int | None = None
    etag: bool = False
    sets_cookie: bool = False
    error: str = ""
    because: str = ""
    count: int = 1
    detailed: bool = False

    @property
    def refused(self) -> bool:
        """Whether the portal answered in the origin's place."""
        return self.answered_by == "portal"

    @property
    def same(self) -> tuple[object, ...]:
        """Equal for two requests by one program for the same thing."""
        return (self.method, self.scheme, self.host, self.port, self.path, self.query, self.agent)

    @property
    def url(self) -> str:
        """The URL without its query, or what is known of it."""
        usual = DEFAULT_PORTS.get(self.scheme)
        port = f":{self.port}" if self.port not in {None, usual} else ""
        host = in_url(self.host)
        if self.method == "CONNECT" or not self.scheme:
            return f"{host}{port}{self.path}" or "(not read)"
        return f"{self.scheme}://{host}{port}{self.path}{'?…' if self.query else ''}"

    def __str__(self) -> str:
        got = f"{self.status}" if self.status else self.error or "no answer"
        by = f" by the {self.answered_by}" if self.answered_by and not self.refused else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.method or 'request'} {self.url}: {got}{by}{times}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """One TLS handshake, or `count` of them."""

    time: float
    host: str
    action: str
    outcome: str
    alert: str = ""
    hung_up: bool = False
    trusts_ca: bool = False
    because: str = ""
    count: int = 1

    @property
    def failed(self) -> bool:
        """Whether the client got no connection out of it."""
        return self.outcome in {"refused", "dropped", "rejected"}

    def __str__(self) -> str:
        how = f" with {self.alert}" if self.alert else " by hanging up" if self.hung_up else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"TLS for {self.host or 'no name'}: {self.action}, {self.outcome}{how}{times}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A session began or ended, the client was dropped, or watching it began or ended."""

    time: float
    event: str
    by: str = ""
    kernel_forwards: bool = False

    def __str__(self) -> str:
        return f"{self.event}{f' by {self.by}' if self.by else ''}"


type Record = Request | Handshake | Change


@dataclass(slots=True)
class ClientRecord:
    """What one device did, in the order of time. `until` is when the recording ends."""

    address: str = ""
    mac: str = ""
    name: str = ""
    until: float = 0.0
    requests: list[Request] = field(default_factory=list)
    handshakes: list[Handshake] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def id(self) -> str:
        """What people call it: its address, and its MAC and name if they are known."""
        more = ", ".join(filter(None, (self.mac, self.name)))
        return f"{self.address} ({more})" if self.address and more else self.address or more

    @property
    def refusals(self) -> list[Request]:
        """The requests that the portal answered."""
        return [request for request in self.requests if request.refused]

    @property
    def details(self) -> list[Request]:
        """The requests that were recorded one by one."""
        return [request for request in self.requests if request.detailed]

    @property
    def grants(self) -> list[Change]:
        """When it became known."""
        return [change for change in self.changes if change.event == "granted"]

    def everything(self) -> list[Record]:
        """All of it, in the order of time."""
        return sorted((*self.requests, *self.handshakes, *self.changes), key=lambda it: it.time)


@dataclass(slots=True)
class Recording:
    """The clients, the first to appear first, and when the recording began and ended."""

    clients: list[ClientRecord] = field(default_factory=list)
    began: float | None = None
    until: float | None = None
    left_out: int = 0  # events beyond MOST
    unread: int = 0  # lines that are not events


def events_in(lines: Iterable[str], recording: Recording) -> Iterator[Mapping[str, object]]:
    """The events in a file's lines; counts in `recording` the lines that are not events."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            yield event
        elif line.strip():
            recording.unread += 1


def record_lines(lines: Iterable[str]) -> Recording:
    """What happened, read from the lines of a file of events."""
    recording = Recording()
    return record(events_in(lines, recording), recording)


def record(
    events: Iterable[Mapping[str, object]],
    recording: Recording | None = None,
    until: float | None = None,
) -> Recording:
    """What happened, read from `events`, which are in the order of time.

    The recording ends at `until`, or else with its last event.
    """
    recording = recording or Recording()
    kept: list[tuple[str, str, str, Record]] = []
    macs: dict[str, str] = {}
    for event in events:
        kind, time = event.get("event"), time_of(event)
        if not isinstance(kind, str) or time is None:
            recording.unread += 1
            continue
        recording.began = time if recording.began is None else min(time, recording.began)
        recording.until = max(time, recording.until or time)
        address, mac = _text(event, "client"), _text(event, "mac")
        one = record_in(event) if address or mac else None
        if one is None:
            continue  # it is about no client
        if len(kept) >= MOST:
            recording.left_out += 1
        else:
            if address and mac:
                macs[address] = mac
            name = _text(event, "name") if kind == "granted" else ""
            kept.append((address, mac, name, one))
    recording.until = until or recording.until
    clients: dict[str, ClientRecord] = {}
    for address, mac, name, shown in sorted(kept, key=lambda it: it[-1].time):
        key = mac or macs.get(address, address)
        client = clients.setdefault(key, ClientRecord(until=recording.until or 0.0))
        client.address = client.address or address
        client.mac = client.mac or mac
        client.name = name or client.name
        if isinstance(shown, Request):
            client.requests.append(shown)
        elif isinstance(shown, Handshake):
            client.handshakes.append(shown)
        else:
            client.changes.append(shown)
    recording.clients = list(clients.values())
    return recording


def record_in(event: Mapping[str, object]) -> Record | None:
    """What an event says about a client; None for other events, and if it has no time."""
    kind, time = event.get("event"), time_of(event)
    if kind not in _KINDS or time is None:
        return None
    count = _number(event, "repeats") or 1
    said: dict[str, Any]
    if kind == "tls":
        host = _text(event, "sni").lower() or _text(event, "destination")
        said = {name: _text(event, name) for name in ("action", "outcome", "alert", "because")}
        said |= {name: _flag(event, name) for name in ("hung_up", "trusts_ca")}
        return Handshake(time=time, host=host, count=count, **said)
    if kind in {"refused", "passed"}:
        said = {name: _text(event, name) for name in _TEXTS}
        said |= {name: _number(event, name) for name in ("status", "port", "length")}
        said |= {name: _number(event, name) or 0 for name in ("cookies", "authorizations")}
        said |= {name: _flag(event, name) for name in ("preflight", "etag", "sets_cookie")}
        return Request(
            time=time,
            answered_by="portal" if kind == "refused" else _text(event, "answered_by") or None,
            host=_text(event, "host").lower(),
            first_byte=_number(event, "range"),
            modified_since=_date(_text(event, "modified_since")),
            traces=frozenset(_text(event, "traces").split()),
            retry_after=_wait(_text(event, "retry_after"), time),
            count=count,
            detailed="port" in event and "repeats" not in event,
            **said,
        )
    by = _text(event, "by") or _text(event, "how")
    forwards = _flag(event, "kernel_forwards")
    return Change(time=time, event=str(kind), by=by, kernel_forwards=forwards)


def _text(event: Mapping[str, object], name: str) -> str:
    value = event.get(name)
    return value if isinstance(value, str) else ""


def _flag(event: Mapping[str, object], name: str) -> bool:
    return event.get(name) is True


def _number(event: Mapping[str, object], name: str) -> int | None:
    value = event.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53:
        return value
    return None


def time_of(event: Mapping[str, object]) -> float | None:
    """When an event happened, in seconds of Unix time; None if it does not say."""
    value = event.get("time")
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _date(text: str) -> float | None:
    """A time as a header field has it (RFC 9110 section 5.6.7), in seconds of Unix time."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _wait(text: str, now: float) -> float | None:
    """How many seconds a Retry-After field asks for (RFC 9110 section 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until = _date(text)
    return None if until is None else max(0.0, until - now)
