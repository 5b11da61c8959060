"""How clients take the certificate of an intercepted handshake (RFC 6585 section 7.4)."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection

from capport.core.client import Client

# What OpenSSL makes of an alert: "tlsv1 alert unknown ca", "tls alert certificate unknown".
_ALERT = re.compile(r"(?:ssl|tls)v?[0-9.]* alert ([a-z ]+)")


@dataclass(slots=True)
class Handshake:
    """One handshake that is intercepted, until we know how the client took the certificate."""

    client: Client
    sni: str | None
    destination: str | None
    because: str
    caveat: str
    established: bool = False


class Handshakes:
    """The intercepted handshakes under way, and the one `tls` event that each of them yields."""

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event
        self._open: dict[str, Handshake] = {}

    def intercepted(self, conn: connection.Client, handshake: Handshake) -> None:
        """A certificate of ours will be shown; what the client makes of it comes later."""
        self._open[conn.id] = handshake

    def established(self, conn: connection.Client) -> None:
        """The handshake is through. GnuTLS clients look at the certificate only now."""
        if handshake := self._open.get(conn.id):
            handshake.established = True

    def failed(self, conn: connection.Client, error: str | None) -> None:
        """The client ended the handshake: by an alert, or by hanging up."""
        alert = _ALERT.search(error or "")
        self._tell(conn, "rejected", alert.group(1).strip().replace(" ", "_") if alert else None)

    def used(self, conn: connection.Client) -> None:
        """The client sent something through the TLS it was offered: it took the certificate."""
        if (handshake := self._open.get(conn.id)) and handshake.established:
            self._tell(conn, "accepted", None)

    def closed(self, conn: connection.Client) -> None:
        """The connection is over; who has said nothing by now has hung up on the certificate."""
        self._tell(conn, "rejected", None)

    def _tell(self, conn: connection.Client, outcome: str, alert: str | None) -> None:
        handshake = self._open.pop(conn.id, None)
        if handshake is None:
            return
        hung_up = True if outcome == "rejected" and alert is None else None
        self._event(
            "tls",
            handshake.client,
            sni=handshake.sni,
            destination=handshake.destination,
            action="intercept",
            outcome=outcome,
            alert=alert,
            hung_up=hung_up,
            caveat=handshake.caveat,
            because=handshake.because,
        )
