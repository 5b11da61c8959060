"""What is decided about a request, a connection or a TLS handshake, and in which order.

Everything that a decision needs is in a `Case`; this module reads nothing itself. A new rule is a
function and a line in `RULES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from capport.core import probes
from capport.core.client import Address, Client
from capport.core.http import COPIES
from capport.core.place import Place
from capport.core.policy import Connect, GardenEntry, KnownTls, Policy, Probes, UnknownTls
from capport.core.reach import NOWHERE, Machine
from capport.core.standing import Standing
from capport.core.value import value
from capport.core.verdict import (
    Closed,
    Drop,
    HeaderFieldsTooLarge,
    Inspect,
    Intercept,
    NetworkAuthenticationRequired,
    Pass,
    PreconditionRequired,
    Refuse,
    SignIn,
    TlsVerdict,
    TooManyRequests,
    Tunnel,
    Verdict,
    asks_to_sign_in,
)

LATER = 5  # seconds to wait: by then a connection to the login server should have ended

# RFC 6585 section 3: the methods that may overwrite a change, and the fields that prevent it. COPY
# and MOVE overwrite their destination, and only `If` can be about that (RFC 4918 section 10.4).
# LOCK is not here: WebDAV prevents lost updates by it, and a client's first LOCK has no condition.
_IF = frozenset({"if"})
_CONDITIONS = {
    **dict.fromkeys(
        ("PUT", "PATCH", "DELETE", "POST", "PROPPATCH"),
        _IF | {"if-match", "if-none-match", "if-unmodified-since"},
    ),
    **dict.fromkeys(COPIES, _IF),
}


type Fields = Sequence[tuple[bytes, bytes]]


@value
class HttpRequest:
    """What rules look at in a request. `fields`: each name, in lower case, and the field's size.

    `may_overwrite` is False if an Overwrite field says so (RFC 4918 section 10.6).
    """

    method: str = "GET"
    scheme: str = "http"
    path: str = "/"
    fields: tuple[tuple[str, int], ...] = ()
    section_size: int = 0
    may_overwrite: bool = True

    @classmethod
    def with_fields(
        cls, method: str, scheme: str, path: str, fields: Fields, target: int
    ) -> "HttpRequest":
        """The request with these fields; its request target has `target` bytes.

        An Overwrite field counts only if it is the only one, because the origin may read two of
        them in another way.
        """
        sizes = tuple((n.decode("latin-1").lower(), len(n) + len(v)) for n, v in fields)
        whole = target + sum(size + 4 for _, size in sizes)
        overwrite = [value for name, value in fields if name.lower() == b"overwrite"]
        return cls(method, scheme, path, sizes, whole, overwrite != [b"F"])


@value
class Case:
    """Everything that a decision needs: who the client is, and where it wants to go.

    `standing` is the client's. `claim` is the place that the client names (request target, Host
    field, SNI); None if it names none, or more than one. `dialled` is the place that it connected
    to; None if we cannot tell (explicit proxy). `retry_after` is set if the client sends requests
    too fast. `login_answers` is whether the client could follow a 302 to the login server.
    `address` is what the place resolved to; None before that. `among_clients` is whether that
    address is on the clients' side. `machine` is the machine that the portal runs on. `logins` is
    None if the client may open one more connection to the login server, else how many it has.
    """

    standing: Standing
    claim: Place | None = None
    dialled: Place | None = None
    request: HttpRequest | None = None
    retry_after: int | None = None
    login_answers: bool = False
    address: Address | None = None
    among_clients: bool = False
    machine: Machine = NOWHERE
    logins: int | None = None

    @property
    def client(self) -> Client:
        """The client that asks."""
        return self.standing.client


type Rule = Callable[[Case, Policy], Verdict | None]


def header_fields_too_large(case: Case, policy: Policy) -> Verdict | None:
    """431 if one field is too large, or all fields together are. RFC 6585 section 5."""
    request, limits = case.request, policy.limits
    if request is None:
        return None
    if limits.header_field is not None:
        for name, size in request.fields:
            if size > limits.header_field:
                because = f"its field {name!r} has {size} bytes; {limits.header_field} are allowed"
                return HeaderFieldsTooLarge(because, name)
    if limits.header_section is not None and request.section_size > limits.header_section:
        size, most = request.section_size, limits.header_section
        return HeaderFieldsTooLarge(f"its header section has {size} bytes; {most} are allowed")
    return None


def too_many_requests(case: Case, policy: Policy) -> Verdict | None:
    """429 if the client sends requests too fast. RFC 6585 section 4.

    It may ask the login server all the same: a program on the device that repeats its requests must
    not keep a person from the sign-in.
    """
    if case.retry_after is None:
        return None
    rate = policy.limits.requests_of(known=case.standing.is_known)
    if rate is None or login_server(case, policy):
        return None
    because = f"it has sent more than {rate.count} requests in {rate.per:g} s"
    return TooManyRequests(because, case.retry_after, rate)


def precondition_required(case: Case, policy: Policy) -> Verdict | None:
    """428 for an update without a condition, if its host requires one. RFC 6585 section 3."""
    request = case.request
    if request is None or case.claim is None or not case.standing.is_known:
        return None
    conditions = _CONDITIONS.get(request.method)
    if conditions is None or case.claim.host not in policy.limits.require_conditions:
        return None
    if request.method in COPIES and not request.may_overwrite:
        return None
    if conditions.isdisjoint(name for name, _ in request.fields):
        because = f"{request.method} to {case.claim.host} has no precondition"
        return PreconditionRequired(because, request.method)
    return None


def closed_place(case: Case, policy: Policy) -> Verdict | None:
    """502 for a place that no client may reach.

    The rule looks at addresses, so a name passes until it is resolved. An unknown client gets this
    answer only for places that other rules would let it reach. A name in the walled garden must not
    lead to an address among the clients, unless the garden has that address too. Otherwise anybody
    who controls the name's DNS (many people do for `*.example.org`) could open a way to every
    client.
    """
    if not goes_by_machine(case, policy):
        return None
    place = case.dialled or case.claim
    assert place is not None
    address = case.address or place.host
    assert not isinstance(address, str)
    listed, garden = policy.is_login(place), policy.walled_garden
    by_garden = not listed and not case.standing.is_known
    named = _named(case)
    if named and policy.is_login(named) and named != place:
        return None  # it goes to the login server, and this rule is asked again with its address
    if by_garden:
        listed = not isinstance(place.host, str)
        if case.among_clients and not garden.find(address, place.port):
            return Closed(f"{place} is closed to {case.client}: {address} is among the clients")
    asks = case.client.address
    why = case.machine.closes(address, place.port, client=asks, listed=listed)
    return Closed(f"{place} {why}") if why else None


def goes_by_machine(case: Case, policy: Policy) -> bool:
    """Whether a verdict depends on this machine's own addresses, which change unseen."""
    place = case.dialled or case.claim
    if place is None or isinstance(case.address or place.host, str):
        return False
    may_pass = case.standing.is_known or policy.is_login(place)
    return may_pass or policy.walled_garden.find(place.host, place.port) is not None


def too_many_logins(case: Case, policy: Policy) -> Verdict | None:
    """429 if the client has as many connections to the login server open as it may have.

    The login server bounds its connections, in all and for each client. But it counts all that come
    through the proxy as one client's, so this rule bounds those of each client.
    """
    if case.logins is None or login_server(case, policy) is None:
        return None
    because = f"{case.client} has {case.logins} connections to the login server open"
    return TooManyRequests(because, LATER)


def login_server(case: Case, policy: Policy) -> Verdict | None:
    """Every client may reach the login server. RFC 6585 section 6.1."""
    named, dialled = _named(case), case.dialled
    if not ((named and policy.is_login(named)) or (dialled and policy.is_login(dialled))):
        return None
    place = next(place for place in policy.login_places if place in (named, dialled))
    return Pass(f"{place} is the login server", to=place)


def known_by_rule(case: Case, policy: Policy) -> Verdict | None:
    """A client that a rule of the policy makes known may go anywhere."""
    standing = case.standing
    return _known(standing) if standing.is_known and standing.session is None else None


def open_session(case: Case, policy: Policy) -> Verdict | None:
    """A client that has an open session may go anywhere."""
    return _known(case.standing) if case.standing.open_session else None


def walled_garden(case: Case, policy: Policy) -> Verdict | None:
    """Every client may reach the walled garden: a name at that name's address, or an address.

    A connectivity check passes only by an entry for that one host. If `*.apple.com` were enough, no
    Apple device would notice the portal.
    """
    found = in_garden(case, policy)
    if found is None:
        return None
    place, entry = found
    because = f"{place} is in the walled garden: {entry.text!r} in {entry.where}"
    return Pass(because, to=place)


def in_garden(case: Case, policy: Policy) -> tuple[Place, GardenEntry] | None:
    """The place in the walled garden that the client wants to reach, and the entry it is in."""
    garden = policy.walled_garden
    if not garden.entries:
        return None
    for place in (_named(case), case.dialled):
        if place is None or not garden.find(place.host, place.port):
            continue
        exactly = probe_of(case.request, case.claim, policy) is not None
        if entry := garden.find(place.host, place.port, exactly=exactly):
            return place, entry
    return None


def blocked_client(case: Case, policy: Policy) -> Verdict | None:
    """511 to a blocked client, even if it has a session."""
    return _required(case, policy, blocked=True) if case.standing.is_blocked else None


def connectivity_check(case: Case, policy: Policy) -> Verdict | None:
    """302 to a system whose connectivity check understands only a 302, not a 511, as "sign in"."""
    if policy.probes is Probes.STRICT or not case.login_answers:
        return None
    probe = probe_of(case.request, case.claim, policy)
    if probe is None or not probe.redirect:
        return None
    because = f"{case.client} has no session, and this is a connectivity check"
    return SignIn(because, policy.login_for(case.client.address).url, body=probe.body)


def unknown_client(case: Case, policy: Policy) -> Verdict:
    """511 to everybody else, so that there is always a verdict."""
    return _required(case, policy)


# The first rule that answers decides.
#
# The limits come first, because they hold for known clients too, and a request over a limit should
# cost as little as possible. Among them, 431 precedes 429, because no waiting makes a head smaller.
# 428 is last, because it invites the client to send again at once; only known clients get it,
# because others have to sign in first. A blocked client gets neither 428 nor the 302 of a
# connectivity check, because neither a condition nor a sign-in would help it.
#
# The login server comes before the rules about clients: a client that signs out is unknown before
# the answer reaches it, and must receive that answer all the same.
RULES: tuple[Rule, ...] = (
    header_fields_too_large,
    too_many_requests,
    precondition_required,
    closed_place,
    too_many_logins,
    login_server,
    known_by_rule,
    open_session,
    walled_garden,
    blocked_client,
    connectivity_check,
    unknown_client,
)


def decide(case: Case, policy: Policy) -> Verdict:
    """The verdict on `case`. There is always one, and always the same one for the same case."""
    for rule in RULES:
        if verdict := rule(case, policy):
            return verdict
    raise AssertionError("unknown_client answers every case")


def explain(case: Case, policy: Policy) -> list[tuple[str, Verdict | None]]:
    """Each rule that was asked, in order, and its answer. The last one decided."""
    steps: list[tuple[str, Verdict | None]] = []
    for rule in RULES:
        steps.append((rule.__name__, rule(case, policy)))
        if steps[-1][1]:
            break
    return steps


def decide_connection(case: Case, policy: Policy) -> Verdict:
    """Whether a connection to `case.dialled` may be opened. The limits of requests do not apply."""
    if case.request is not None or case.retry_after is not None:
        case = replace(case, request=None, retry_after=None)
    return decide(case, policy)


def decide_tls(case: Case, policy: Policy) -> TlsVerdict:
    """Decides what to do with a TLS handshake whose SNI is `case.claim`."""
    verdict = decide_connection(case, policy)
    if isinstance(verdict, Pass):
        if verdict.to is None and policy.tls.known is KnownTls.INSPECT:
            return Inspect(verdict.because)
        return Tunnel(verdict.because, verdict.to)
    inspects = case.standing.is_known and policy.tls.known is KnownTls.INSPECT
    if isinstance(verdict, Closed) and inspects:
        return Inspect(verdict.because)
    if isinstance(verdict, Closed | TooManyRequests):
        return Refuse(verdict.because)
    match policy.tls.unknown:
        case UnknownTls.REFUSE:
            return Refuse(verdict.because)
        case UnknownTls.INTERCEPT:
            return Intercept(verdict.because)
        case UnknownTls.DROP:
            return Drop(verdict.because)


def way_of_connect(verdict: Verdict, policy: Policy, user_agent: str, port: int) -> Connect:
    """How a CONNECT is refused: `answer` or `alert`.

    A client over a limit always gets the answer. If it is known, a tunnel would lead it to its
    origin, because limits do not count inside. Chromium, Firefox and undici do not show the answer
    to a CONNECT. undici opens a tunnel for plain HTTP too (port 80), and reads the answer to the
    request that it sends inside.
    """
    way = policy.tls.connect if asks_to_sign_in(verdict) else Connect.ANSWER
    if way is not Connect.AUTO:
        return way
    reads_inside = user_agent.startswith("Mozilla/") or port == 80
    return Connect.ALERT if reads_inside else Connect.ANSWER


def _known(standing: Standing) -> Pass:
    return Pass(f"{standing.client} {standing.because}")


def _named(case: Case) -> Place | None:
    """The place that the client names, unless it dialled another port than that place's."""
    if case.claim is None or (case.dialled and case.dialled.port != case.claim.port):
        return None
    return case.claim


def probe_of(
    request: HttpRequest | None, claim: Place | None, policy: Policy
) -> probes.Probe | None:
    """The connectivity check that a request is, if it is one: plain HTTP on port 80."""
    if request is None or request.scheme != "http" or claim is None or claim.port != 80:
        return None
    return probes.connectivity_check(
        str(claim.host), request.path, request.method, policy.probe_paths
    )


def _required(
    case: Case, policy: Policy, *, blocked: bool = False
) -> NetworkAuthenticationRequired:
    client = case.client
    because, url = f"{client} {case.standing.because}", policy.login_for(client.address).url
    return NetworkAuthenticationRequired(because, url, policy.refresh, policy.network, blocked)
