"""What can be decided, each with one sentence that says why."""

from dataclasses import dataclass

from capport.core.place import Place
from capport.core.policy import Rate


@dataclass(frozen=True, slots=True)
class Pass:
    """Let it through: to `to` alone, as we resolve it, or where the client wants if that is None.

    `to` is set for whoever is unknown: a Host field or an SNI is a claim, so what is let through by
    name goes to that name, whatever address was dialled.
    """

    because: str
    to: Place | None = None


@dataclass(frozen=True, slots=True)
class NetworkAuthenticationRequired:
    """Answer 511 with a link to the login server. RFC 6585 section 6.

    `refresh` is in seconds; None leaves only the link. `network` is the network's name for people.
    `blocked`: no sign-in changes it.
    """

    because: str
    login_url: str
    refresh: int | None = None
    network: str | None = None
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class SignIn:
    """Answer a system's connectivity check with 302 to the login server (`probes: compatible`)."""

    because: str
    login_url: str
    body: bool = True


@dataclass(frozen=True, slots=True)
class HeaderFieldsTooLarge:
    """Answer 431. `field` is the one at fault, None if all together are. RFC 6585 section 5."""

    because: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class TooManyRequests:
    """Answer 429. `retry_after` is in seconds; `limit` is what was exceeded. RFC 6585 section 4."""

    because: str
    retry_after: int
    limit: Rate | None = None


@dataclass(frozen=True, slots=True)
class PreconditionRequired:
    """Answer 428, and say how to resubmit. RFC 6585 section 3."""

    because: str
    method: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Answer 503: by a fault of the portal's, a known client cannot go on now."""

    because: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Answer 502: nobody reaches that place, whoever it is."""

    because: str


type Refusal = (
    NetworkAuthenticationRequired
    | SignIn
    | HeaderFieldsTooLarge
    | TooManyRequests
    | PreconditionRequired
    | Unavailable
    | Closed
)
type Verdict = Pass | Refusal


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Pass the TLS on unopened: to `to` alone, or where the client wants if that is None."""

    because: str
    to: Place | None = None


@dataclass(frozen=True, slots=True)
class Inspect:
    """Open a known client's TLS with mitmproxy's certificate."""

    because: str


@dataclass(frozen=True, slots=True)
class Intercept:
    """Answer the 511 inside TLS, after the certificate error of RFC 6585 section 7.4."""

    because: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """End the handshake with the fatal alert `access_denied` (49), before any certificate."""

    because: str


@dataclass(frozen=True, slots=True)
class Drop:
    """End the connection with a TCP reset."""

    because: str


type TlsVerdict = Tunnel | Inspect | Intercept | Refuse | Drop
