"""Everything that can be decided, each verdict with one sentence that says why."""

from dataclasses import dataclass

from capport.core.place import Place
from capport.core.policy import Rate
from capport.core.value import value


@dataclass(frozen=True, slots=True)
class Pass:
    """Let it through: only to `to`, as we resolve it, or to any place if `to` is None.

    `to` is set for unknown clients. A Host field or an SNI is only a claim. So what passes by a
    name goes to the address of that name, whatever address the client dialled.
    """

    because: str
    to: Place | None = None


@value
class NetworkAuthenticationRequired:
    """Answer 511 with a link to the login server. RFC 6585 section 6.

    The page goes to the login server after `refresh` seconds; None leaves only the link. `network`
    is the network's name for people. `blocked` is whether no sign-in can change the verdict.
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
    """Answer 431. `field` is the one that is too large, or None if all together are.

    RFC 6585 section 5.
    """

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
    """Answer 503: a fault of the portal stops a known client for now."""

    because: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Answer 502: no client may reach that place."""

    because: str


@dataclass(frozen=True, slots=True)
class Imitated:
    """Answer as another kind of portal does, or reset the connection if `status` is None.

    No policy leads to it: only `capport.testing` asks for it, so that apps meet such portals.
    """

    because: str
    status: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


type Refusal = (
    NetworkAuthenticationRequired
    | SignIn
    | HeaderFieldsTooLarge
    | TooManyRequests
    | PreconditionRequired
    | Unavailable
    | Closed
    | Imitated
)
type Verdict = Pass | Refusal


def asks_to_sign_in(verdict: Verdict) -> bool:
    """Whether the verdict stands for the portal's request to sign in, and not for a limit."""
    return isinstance(verdict, NetworkAuthenticationRequired | SignIn | Imitated)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Forward the TLS unopened: only to `to`, or to any place if `to` is None."""

    because: str
    to: Place | None = None


@dataclass(frozen=True, slots=True)
class Inspect:
    """Open a known client's TLS with mitmproxy's certificate."""

    because: str


@dataclass(frozen=True, slots=True)
class Intercept:
    """Answer 511 inside TLS, after the certificate error of RFC 6585 section 7.4."""

    because: str


@value
class Refuse:
    """End the handshake with the fatal alert `access_denied` (49), before any certificate."""

    because: str


@value
class Drop:
    """End the connection with a TCP reset."""

    because: str


type TlsVerdict = Tunnel | Inspect | Intercept | Refuse | Drop
