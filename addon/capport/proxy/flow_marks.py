"""What is shown and reported of what was decided: marks on flows, events, faults."""

import contextlib
import logging
import time
from typing import Any

from mitmproxy import connection, flow, http, tcp

from capport.core.client import Client
from capport.core.place import Place
from capport.core.verdict import Refuse, TlsVerdict, Verdict
from capport.gate import Gate
from capport.log_limits import FAULTS, Seldom
from capport.proxy.connections import Connections
from capport.proxy.request_head import credentials_in

logger = logging.getLogger(__name__)

REFUSED_MARK = ":no_entry:"
GARDEN_MARK = ":seedling:"
KNOWN_MARK = ":white_check_mark:"
AUTHORIZATIONS = ("authorization", "proxy-authorization")


class FlowMarks:
    """Shows in mitmproxy, and writes as events, what was decided."""

    def __init__(self, gate: Gate, connections: Connections) -> None:
        self._gate = gate
        self._connections = connections
        self._faults = Seldom(FAULTS)

    def event(self, event: str, client: Client | None = None, **fields: Any) -> None:
        """One event. It never raises: what cannot be reported is decided all the same."""
        try:
            self._gate.events.write(event, client, **fields)
        except Exception:
            logger.exception(f"The event {event!r} could not be written")

    def fault(self, where: str) -> None:
        """Says that something was denied by a fault of ours. Called where one is handled."""
        if self._faults.is_due(time.monotonic(), where):
            # In full once a minute: who can cause it once can do so a thousand times a second.
            logger.exception(f"No verdict in {where}; it is denied")
        with contextlib.suppress(Exception):  # whoever calls this has nowhere to raise to
            self.event("fault", what=where)

    def refused(self, shown: http.HTTPFlow, verdict: Verdict | None) -> None:
        """A request that was answered in the origin's place: shown, and told."""
        because = verdict.because if verdict else "the portal cannot decide now"
        name = type(verdict).__name__ if verdict else "NoVerdict"
        status = shown.response.status_code if shown.response else None
        mark(shown, REFUSED_MARK, name, because)
        credentials = credentials_in(shown.request.headers)
        if credentials:
            shown.metadata["portal"]["credentials"] = credentials
        self.event(
            "refused",
            self._connections.client_of(shown.client_conn),
            status=status,
            host=shown.request.host or None,
            method=shown.request.method,
            cookies=credentials.get("cookie"),
            authorizations=sum(credentials.get(name, 0) for name in AUTHORIZATIONS) or None,
            because=because,
        )

    def refused_unread(self, conn: connection.Client, status: int, why: str) -> None:
        """Something that is no request, or too much of one."""
        self.event(
            "refused", self._connections.client_of(conn), status=status, because=f"not read: {why}"
        )

    def refused_tls(
        self,
        shown: tcp.TCPFlow,
        sni: str | None,
        dialled: Place | None,
        verdict: TlsVerdict,
        caveat: str | None,
    ) -> None:
        """A handshake that was refused before any certificate: shown, and told."""
        action = "refuse" if isinstance(verdict, Refuse) else "drop"
        outcome = "refused" if isinstance(verdict, Refuse) else "dropped"
        to = f"TLS for {sni or dialled or 'no name'}"
        mark(shown, REFUSED_MARK, type(verdict).__name__, f"{to}: {verdict.because}")
        self.event(
            "tls",
            self._connections.client_of(shown.client_conn),
            sni=sni,
            destination=str(dialled) if dialled else None,
            action=action,
            outcome=outcome,
            caveat=caveat,
            because=verdict.because,
        )


def mark(shown: flow.Flow, mark: str, verdict: str, because: str) -> None:
    """Shows a verdict: in mitmproxy's lists, its details, and what it saves."""
    shown.marked = mark
    shown.comment = because
    shown.metadata["portal"] = {"verdict": verdict, "because": because}


def decided_on(shown: flow.Flow) -> tuple[str, str]:
    """The verdict that `mark` showed, by its name, and why; both empty where none was."""
    told = shown.metadata.get("portal")
    return (told["verdict"], told["because"]) if isinstance(told, dict) else ("", "")
