"""Explains what the portal does if a client asks for a URL, and why, rule by rule."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from capport.core import decision
from capport.core.decision import Case, HttpRequest
from capport.core.http import DEFAULT_PORTS
from capport.core.place import Place, parse_authority
from capport.core.policy import Connect, Policy
from capport.core.reply import Asked, reply_to
from capport.core.standing import Standing
from capport.core.verdict import (
    Closed,
    Drop,
    Inspect,
    Intercept,
    Pass,
    Refuse,
    SignIn,
    TlsVerdict,
    Verdict,
)

type Steps = tuple[tuple[str, Verdict | None], ...]
"""Each rule that was asked, in order, and its answer. The last one decided."""

# The policy's keys that a rule depends on. A rule about one client or place has FILE:LINE instead.
_KEYS = {
    "header_fields_too_large": ("limits.header_field", "limits.header_section"),
    "precondition_required": ("limits.require_conditions",),
    "login_server": ("login_url", "login_server"),
    "connectivity_check": ("probes", "probe_paths"),
}

# What a client whose TLS is refused sees instead if it uses an explicit proxy.
_TO_CONNECT = {
    Connect.ANSWER: "511 to the CONNECT",
    Connect.ALERT: "the same, inside the tunnel",
    Connect.AUTO: "511 to the CONNECT, but for browsers the same",
}


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL, as text and in the parts that rules look at."""

    text: str
    scheme: str
    place: Place
    path: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, and the rules that led to it.

    For http, `steps` are the rules asked about the request. For https, `steps` are the rules asked
    about the connection, `tls` is the decision about its handshake, and `inside` are the rules
    asked about the request, if the TLS is opened. `where` is the FILE:LINE of the client rule or
    garden entry that decided. `keys` are the policy's keys that the verdict depends on, the most
    specific first; show the first of them that is in the file. `limits_connect` is whether a
    CONNECT would get a 429; the connection itself is not held to the limits of requests.
    """

    standing: Standing
    url: str
    method: str
    steps: Steps
    verdict: Verdict
    tls: TlsVerdict | None
    inside: Steps
    where: str | None
    keys: tuple[str, ...]
    limits_connect: bool

    @property
    def decisive(self) -> Steps:
        """The steps about the request itself: those inside TLS, if that is opened."""
        return self.inside or self.steps

    @property
    def rule(self) -> str:
        """The name of the rule that decided."""
        return self.steps[-1][0]

    @property
    def is_closed(self) -> bool:
        """Whether the verdict is that no client may reach this place."""
        return isinstance(self.decisive[-1][1], Closed)

    @property
    def status(self) -> int | None:
        """The status of our answer; None if the origin answers, or nobody does."""
        if self.tls is None:
            return _status(self.verdict)
        inside = self.inside[-1][1] if self.inside else None
        return _status(inside) if inside else None


def parse_url(text: str) -> Url:
    """The URL in `text`. Raises ValueError if it is not an http or https URL of a valid place."""
    parts = urlsplit(text)
    default_port = DEFAULT_PORTS.get(parts.scheme.lower())
    if default_port is None or not parts.netloc:
        raise ValueError(f"{text!r} is not an http or https URL, such as http://www.example.org/")
    place = parse_authority(parts.netloc.rpartition("@")[2], default_port)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(text, parts.scheme.lower(), place, path)


def explain(case: Case, policy: Policy, url: str) -> Explanation:
    """Explains the verdict on the request in `case`, which is for `url`."""
    request = case.request or HttpRequest()
    steps = tuple(decision.explain(case, policy))
    inside: Steps = ()
    tls, limits_connect = None, False
    if request.scheme == "https":
        tls = decision.decide_tls(case, policy)
        inside = steps if isinstance(tls, Inspect | Intercept) else ()
        limits_connect = decision.too_many_requests(case, policy) is not None
        case = replace(case, request=None, retry_after=None)
        steps = tuple(decision.explain(case, policy))
    name, verdict = steps[-1]
    assert verdict is not None
    keys = _KEYS.get(name, ())
    if name == "too_many_requests":
        keys = ("limits.requests" if case.standing.is_known else "limits.unknown_requests",)
    if isinstance(tls, Inspect):
        keys = ("tls.known",)
    elif isinstance(tls, Refuse | Intercept | Drop) and not isinstance(verdict, Closed):
        keys = ("tls.unknown",)
    where, said = _where(name, case, policy), (steps, verdict, tls, inside)
    return Explanation(case.standing, url, request.method, *said, where, keys, limits_connect)


def _where(name: str, case: Case, policy: Policy) -> str | None:
    """The FILE:LINE of the client rule or garden entry that this rule applied, if it did."""
    if name == "walled_garden":
        found = decision.in_garden(case, policy)
        return found[1].where if found else None
    rule = case.standing.rule
    return rule.where if rule and name in ("known_by_rule", "blocked_client") else None


def document(found: Explanation, policy: Policy) -> dict[str, object]:
    """The explanation as JSON values. New members may be added; none is changed."""
    session = found.standing.session
    return {
        "client": str(found.standing.client.address),
        "mac": found.standing.client.mac,
        "url": found.url,
        "method": found.method,
        "session": session.client if session else None,
        "verdict": type(found.verdict).__name__,
        "because": found.verdict.because,
        "tls": type(found.tls).__name__ if found.tls else None,
        "closed": found.is_closed,
        "status": found.status,
        "seen": in_words(found, policy),
        "rules": [_step(name, verdict) for name, verdict in found.steps],
        "inside": [_step(name, verdict) for name, verdict in found.inside],
    }


def _step(name: str, verdict: Verdict | None) -> dict[str, str | None]:
    said = verdict.because if verdict else None
    return {"rule": name, "verdict": type(verdict).__name__ if verdict else None, "because": said}


def in_words(found: Explanation, policy: Policy) -> str:
    """What the client sees, in one or two sentences."""
    if found.is_closed:
        status = "no status" if found.status is None else found.status
        return f"{status}: {found.verdict.because}"
    match found.tls:
        case Refuse():
            seen = "no status: the TLS alert access_denied (49), before any certificate"
        case Drop():
            seen = "no status: the connection is reset"
        case Intercept():
            seen = f"{found.status} inside TLS, if the user accepts a certificate error"
        case Inspect() if found.status is not None:
            seen = f"{found.status}, with mitmproxy's certificate"
        case Inspect():
            seen = "the origin's, with mitmproxy's certificate"
        case _ if found.status is None:
            seen = "the origin's own"
        case _:
            seen = str(found.status)
    if isinstance(found.verdict, SignIn):
        seen += "; 511 while the login server does not answer"
    if found.limits_connect:
        return f"{seen}; through an explicit proxy: 429 to the CONNECT"
    if found.tls and not isinstance(found.verdict, Pass | Closed):
        return f"{seen}; through an explicit proxy: {_TO_CONNECT[policy.tls.connect]}"
    return seen


def _status(verdict: Verdict) -> int | None:
    return None if isinstance(verdict, Pass) else reply_to(verdict, Asked()).status
