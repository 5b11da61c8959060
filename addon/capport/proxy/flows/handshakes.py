"""Reports how clients take the certificate of an intercepted handshake (RFC 6585 section 7.4)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mitmproxy import connection

from capport.core.client import Client
from capport.core.place import Place
from capport.events import Value
from capport.front.hello import Hello

# OpenSSL's texts for alerts: "tlsv1 alert unknown ca", "tls alert certificate unknown".
_ALERT = re.compile(r"(?:ssl|tls)v?[0-9.]* alert ([a-z ]+)")

CAVEAT: Final = (
    "RFC 6585 section 7.4: the certificate was not the origin's, so a client that checks"
    " certificates saw an error"
)
OUTER: Final = (
    "RFC 9849: the hello has encrypted_client_hello, so its SNI may be only the outer name, and the"
    " real name is hidden"
)

type EventFields = dict[str, Value]
"""What an event says about a handshake. A field that is None is left out."""


def fields_of(hello: Hello, dialled: Place | None, action: str, outcome: str) -> EventFields:
    """The fields that every `tls` event has."""
    destination = str(dialled) if dialled else None
    return {"sni": hello.sni, "destination": destination, "action": action, "outcome": outcome}


@dataclass(slots=True)
class InterceptedHandshake:
    """An intercepted handshake of which the outcome is not known yet."""

    client: Client
    hello: Hello
    dialled: Place | None
    because: str
    trusts_ca: bool  # the policy says that it has mitmproxy's CA
    established: bool = False


class Handshakes:
    """The intercepted handshakes without an outcome yet. Each one leads to one `tls` event."""

    def __init__(
        self,
        event: Callable[..., None],
        show: Callable[[connection.Client, Client, EventFields], None],
    ) -> None:
        """`show` shows a handshake in which the client rejected the certificate."""
        self._event = event
        self._show = show
        self._open: dict[str, InterceptedHandshake] = {}

    @property
    def pending(self) -> bool:
        """Whether a handshake has no outcome yet."""
        return bool(self._open)

    def intercepted(self, conn: connection.Client, handshake: InterceptedHandshake) -> None:
        """Records a handshake in which mitmproxy will show a certificate of its own."""
        self._open[conn.id] = handshake

    def established(self, conn: connection.Client) -> None:
        """Records that the handshake is done. GnuTLS clients check the certificate only now."""
        if handshake := self._open.get(conn.id):
            handshake.established = True

    def failed(self, conn: connection.Client, error: str | None) -> None:
        """Reports that the client ended the handshake, with an alert or by hanging up."""
        alert = _ALERT.search(error or "")
        self._report(conn, "rejected", alert.group(1).strip().replace(" ", "_") if alert else None)

    def used(self, conn: connection.Client) -> None:
        """Reports that the client took the certificate: it sent data after the handshake."""
        if (handshake := self._open.get(conn.id)) and handshake.established:
            self._report(conn, "accepted", None)

    def closed(self, conn: connection.Client) -> None:
        """Reports a rejection if the connection has ended and the client sent no data in it."""
        self._report(conn, "rejected", None)

    def _report(self, conn: connection.Client, outcome: str, alert: str | None) -> None:
        handshake = self._open.pop(conn.id, None)
        if handshake is None:
            return
        client, hello = handshake.client, handshake.hello
        fields = fields_of(hello, handshake.dialled, "intercept", outcome) | {
            "alert": alert,
            "hung_up": (outcome == "rejected" and alert is None) or None,
            "trusts_ca": handshake.trusts_ca or None,
        }
        if outcome == "rejected":
            self._show(conn, client, fields)
        caveat = f"{CAVEAT}; {OUTER}" if hello.has_ech else CAVEAT
        self._event("tls", client, **fields, caveat=caveat, because=handshake.because)
