"""Events as the portal writes them, made by hand, a line for each thing that a client did."""

from datetime import UTC, datetime
from typing import Any

from capport.report.recording import ClientRecord, record
from capport.report.rules import RULES
from capport.report.summary import Report, report_on

BEGAN = datetime(2030, 1, 31, 12, 0, tzinfo=UTC).timestamp()
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
APP = "axios/1.7.2"

type Event = dict[str, Any]


def event(at: float, kind: str, **fields: Any) -> Event:
    time = datetime.fromtimestamp(BEGAN + at, UTC).isoformat(timespec="milliseconds")
    client = {"client": "192.0.2.7"} | {k: fields.pop(k) for k in ("client", "mac") if k in fields}
    given = {name: value for name, value in fields.items() if value is not None}
    return {"time": time.replace("+00:00", "Z"), "event": kind, **client, **given}


def refused(at: float, path: str | None = "/v1/items", **fields: Any) -> Event:
    """A request of a watched client, answered by the portal."""
    usual = {"status": 511, "host": "api.example.org", "method": "GET", "scheme": "http"}
    return event(at, "refused", **usual | {"port": 80, "path": path, "agent": APP} | fields)


def passed(at: float, path: str = "/v1/items", **fields: Any) -> Event:
    """A request of a watched client that was forwarded."""
    usual = {"status": 200, "host": "api.example.org", "method": "GET", "scheme": "http"}
    more = {"port": 80, "path": path, "agent": APP, "answered_by": "origin"}
    return event(at, "passed", **usual | more | fields)


def shake(at: float, outcome: str, **fields: Any) -> Event:
    """A TLS handshake."""
    actions = {"refused": "refuse", "dropped": "drop", "passed": "tunnel"}
    usual = {"sni": "api.example.org", "action": actions.get(outcome, "intercept")}
    return event(at, "tls", **usual | {"outcome": outcome} | fields)


def watched(at: float = 0.0, *, kernel_forwards: bool = False) -> Event:
    return event(at, "watched", kernel_forwards=kernel_forwards)


def granted(at: float, **fields: Any) -> Event:
    return event(at, "granted", seconds=3600, by="terms", **fields)


def client_of(*events: Event, until: float | None = None) -> ClientRecord:
    (client,) = record(events, until=None if until is None else BEGAN + until).clients
    return client


def reported(*events: Event, until: float | None = None) -> Report:
    return report_on(events, until=None if until is None else BEGAN + until)


def rule(name: str) -> Any:
    (found,) = [one for one in RULES if one.id == name]
    return found


RETRIES = [refused(n / 100) for n in range(4)]


EVERYTHING = [
    watched(),
    *RETRIES,
    *(refused(5 + n, cookies=2, authorizations=1) for n in range(30)),
    shake(40, "rejected", alert="unknown_ca"),
    shake(41, "accepted", sni="other.test"),
    refused(42, "/calendars/a", method="PROPFIND", agent="DAVx5/4.3", client="2001:db8::7"),
    event(49, "dropped", seconds=60.0),
    granted(50, name="Anna's phone"),
    passed(51),
    passed(52, answered_by="login server", host="login.test"),
    event(100, "expired"),
]
