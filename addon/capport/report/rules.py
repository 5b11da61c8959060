"""The rules: each a function that looks at one client, and a line in RULES.

If a client's record cannot show whether the client broke a rule, that rule is "not tested", which
is not the same as "kept".
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from urllib.parse import urlsplit

from capport.report.agents import UNNAMED, agent_of
from capport.report.findings import NotTested, Rule, Seen, Severity
from capport.report.recording import Change, ClientRecord, Handshake, Record, Request
from capport.report.uses import checking
from capport.report.wording import how_long, some

SOON = 2.5  # seconds: a program that asks again sooner does not wait for a person to sign in
AT_ONCE = 1.0  # the same for TLS
RETRIES = 2  # this often in a row, because once may be a person, or a test
HANDSHAKES = 4  # the same for TLS: browsers open some connections side by side
PATIENT = 60.0  # seconds between two attempts that need not grow
GROWTH = 1.5  # by how much waits grow at least, from their first half to their second
AFTER_GRANT = 10.0  # seconds in which a client that was granted a session is to use it
RELATED = 60.0  # seconds in which one request is taken as the consequence of another
FOLLOWED = 10.0  # the same for a redirect
SLACK = 0.5  # seconds by which two clocks may differ
DATE = 2.0  # the same, if one of them is a header field, which has no fractions

REDIRECTS = {301, 302, 303, 307, 308}

ENDS = {"revoked", "expired", "unwatched"}

NOT_WATCHED = "the client was not watched, so its requests were counted together"
NO_REFUSAL = "none of its requests was refused"


def retries_511(client: ClientRecord) -> Iterator[Seen]:
    """Sends a refused request again within seconds, and again."""
    _need_refusals(client, 511)
    for attempts in attempts_of(client):
        for run in _runs(attempts, SOON):
            if len(run) > RETRIES:
                first, took = run[0], run[-1].time - run[0].time
                retries = agent_of(first.agent).retries
                yield _did(
                    first,
                    f"sent {first.method} {first.url} {len(run)} times within {how_long(took)},"
                    f" each but the first after a 511{f' ({retries})' if retries else ''}",
                    run,
                )


def retries_handshake(client: ClientRecord) -> Iterator[Seen]:
    """Begins a refused TLS handshake again at once, and again."""
    failed = _by_host(it for it in client.handshakes if it.failed and it.count == 1)
    if not failed:
        raise NotTested("none of its TLS handshakes was refused")
    if not client.details and not any(change.event == "watched" for change in client.changes):
        raise NotTested(NOT_WATCHED)
    for host, shakes in failed.items():
        for run in _runs(shakes, AT_ONCE):
            if len(run) > HANDSHAKES:
                took = how_long(run[-1].time - run[0].time)
                sentence = f"{len(run)} TLS handshakes for {host} within {took}, though each failed"
                yield Seen(sentence, run, host)


def no_back_off(client: ClientRecord) -> Iterator[Seen]:
    """Asks again and again at the same pace."""
    _need_refusals(client, 511)
    groups = [attempts for attempts in attempts_of(client) if len(attempts) > 3]
    if not groups:
        raise NotTested("no request got a 511 four times or more")
    for attempts in groups:
        waits = [after.time - before.time for before, after in pairwise(attempts)]
        half = len(waits) // 2
        first, last = sum(waits[:half]) / half, sum(waits[-half:]) / half
        if last < PATIENT and last < max(first, 0.05) * GROWTH:
            what = f"{attempts[0].method} {attempts[0].url} {len(attempts)} times"
            pace = f"every {how_long(sum(waits) / len(waits))}, and did not slow down"
            yield _did(attempts[0], f"sent {what}, {pace}", attempts)


def never_recovers(client: ClientRecord) -> Iterator[Seen]:
    """Was refused, was granted a session, and got nothing from an origin afterwards."""
    records = [it for it in client.everything() if not isinstance(it, Change)]
    refused = [it for it in records if (it.failed if isinstance(it, Handshake) else it.refused)]
    grant = next((it for it in client.grants if refused and refused[0].time < it.time), None)
    if grant is None:
        raise NotTested("it was granted no session after a refusal")
    watched = [change for change in client.changes if change.event == "watched"]
    if not watched and all(request.refused for request in client.requests):
        raise NotTested(NOT_WATCHED)
    if any(change.kernel_forwards for change in watched):
        raise NotTested("the kernel forwards its requests past the portal once it is known")
    after = [it for it in records if it.time >= grant.time]
    if any(_reached_an_origin(one) for one in after):
        return
    ends = (it.time for it in client.changes if it.event in ENDS and it.time > grant.time)
    left = next(ends, client.until) - grant.time
    if left < AFTER_GRANT:
        raise NotTested(f"the record ends {left:.0f} s after the grant")
    before = [it for it in refused if it.time < grant.time][-1]
    agent = agent_of(before.agent) if isinstance(before, Request) else UNNAMED
    sentence = f"within {how_long(left)} of being granted a session, it reached no origin"
    if not after:
        sentence += ", and did not try"
    yield Seen(sentence, [before, grant, *after], before.host, agent)


def takes_page_for_origin(client: ClientRecord) -> Iterator[Seen]:
    """Shows in a later request that it took the portal's reply for the origin's."""
    _need_refusals(client)
    answered = defaultdict[str, deque[Request]](lambda: deque(maxlen=50))
    for request in client.details:
        if reply := _reply_that_shows_in(request, answered[request.host]):
            before, trace = reply
            evidence = [before, request] if before else [request]
            yield _did(request, f"asked for {request.url} with {trace}", evidence)
        if request.refused:
            answered[request.host].append(request)


def favicon_of_portal(client: ClientRecord) -> Iterator[Seen]:
    """Asks for the icon of a host whose page the portal gave it."""
    _need_refusals(client)
    answered: dict[tuple[str, str], Request] = {}
    for request in client.details:
        key = (request.host, request.agent)
        if request.path == "/favicon.ico" and key in answered:
            said = f"asked {request.host} for its icon after a page of the portal's"
            yield _did(request, said, [answered[key], request])
        elif request.refused:
            answered.setdefault(key, request)


def caches_511(client: ClientRecord) -> Iterator[Seen]:
    """Asks whether a stored 511 is still fresh."""
    _need_refusals(client)
    kept = defaultdict[str, deque[Request]](lambda: deque(maxlen=16))
    for request in client.details:
        if before := next((it for it in kept[request.url] if _revalidates(request, it)), None):
            said = f"stored the 511 for {request.url} and asked whether it has changed"
            yield _did(request, said, [before, request])
        if request.refused and request.status == 511:
            kept[request.url].append(request)


def cookies_to_portal(client: ClientRecord) -> Iterator[Seen]:
    """Sends cookies to a server that is not the origin."""
    given = set[tuple[str, str]]()  # the programs that have a cookie of the portal's for a host
    own: dict[int, int] = {}
    for request in client.refusals:
        key = (request.host, request.agent)
        own[id(request)] = max(0, request.cookies - (key in given))
        if request.sets_cookie:
            given.add(key)
    return _credentials(client, "cookie", lambda request: own[id(request)])


def authorization_to_portal(client: ClientRecord) -> Iterator[Seen]:
    """Sends HTTP credentials to a server that is not the origin."""
    return _credentials(client, "HTTP credential", lambda request: request.authorizations)


def accepts_any_certificate(client: ClientRecord) -> Iterator[Seen]:
    """Accepts a certificate of a CA that it does not know."""
    shown = [it for it in client.handshakes if it.action == "intercept" and not it.trusts_ca]
    if not shown:
        raise NotTested("it was shown no certificate of another CA (tls.unknown: intercept)")
    for host, shakes in _by_host(it for it in shown if it.outcome == "accepted").items():
        yield Seen(f"it accepted a certificate of an unknown CA for {host}", shakes, host)


def pins_certificate(client: ClientRecord) -> Iterator[Seen]:
    """Rejects a certificate of a CA that its device trusts."""
    shown = [it for it in client.handshakes if it.action == "intercept" and it.trusts_ca]
    if not shown:
        raise NotTested("no handshake of a client with trusts_ca was intercepted")
    for host, shakes in _by_host(it for it in shown if it.outcome == "rejected").items():
        sentence = f"it rejected a certificate for {host}, though the device trusts its CA"
        yield Seen(sentence, shakes, host)


def plain_http_after_tls(client: ClientRecord) -> Iterator[Seen]:
    """Goes on in plain HTTP where TLS failed."""
    failed = _by_host(shake for shake in client.handshakes if shake.failed)
    if not failed:
        raise NotTested("none of its TLS handshakes failed")
    if not client.details:
        raise NotTested(NOT_WATCHED)
    plain: dict[str, Request] = {}
    for request in client.details:
        # A browser that tried https first for a name without a scheme is no fault of a site's.
        if request.scheme == "http" and not agent_of(request.agent).browser:
            plain.setdefault(request.host, request)
    for host, (first, *_) in failed.items():
        then = plain.get(host)
        if then and 0 <= then.time - first.time < RELATED and not checking(then):
            rejected = first.outcome == "rejected"
            why = "rejected a certificate for" if rejected else "got no TLS connection to"
            said = f"{why} {host}, then sent {then.method} {then.url} in the clear"
            yield _did(then, said, [first, then])


def ignores_retry_after(client: ClientRecord) -> Iterator[Seen]:
    """Asks again before the time that Retry-After names."""
    if not any(request.retry_after for request in client.details):
        raise NotTested("no answer that it got had a Retry-After field")
    asked: dict[tuple[str, str], Request] = {}
    for request in client.details:
        to = (request.host, request.agent)
        before = asked.pop(to, None)
        # A client that has become known in between has other limits.
        if before and not any(before.time < it.time <= request.time for it in client.grants):
            wait, waited = before.retry_after or 0.0, request.time - before.time
            if waited < wait - SLACK:
                then = f"sent its next request to {request.host} after {how_long(waited)}"
                said = f"was asked to wait for {how_long(wait)}, and {then}"
                yield _did(request, said, [before, request])
        if request.retry_after:
            asked[to] = request


def follows_redirect(client: ClientRecord) -> Iterator[Seen]:
    """Follows the portal's redirect, though it is no browser."""
    redirected, tested = dict[str, Request](), False
    for request in client.details:
        is_redirected = request.refused and request.status in REDIRECTS
        if request.answered_by == "login server":
            before = redirected.pop(request.agent, None)
            if before and request.time - before.time < FOLLOWED:
                said = f"asked for {before.url} and got the login page, by a redirect"
                yield _did(before, said, [before, request])
        elif is_redirected and not agent_of(request.agent).browser and not checking(request):
            redirected[request.agent], tested = request, True
    if not tested:
        raise NotTested("no request of a program that is no browser was redirected")


def _did(request: Request, said: str, evidence: Sequence[Record]) -> Seen:
    """What the program that sent `request` did: its name, and then what is `said`."""
    agent = agent_of(request.agent)
    return Seen(f"{agent} {said}", evidence, request.host, agent)


def _need_refusals(client: ClientRecord, status: int | None = None) -> None:
    """Raises NotTested if the record has no refused requests (with that status) one by one."""
    refused = [it for it in client.refusals if status is None or it.status == status]
    if not refused:
        raise NotTested(f"no request got a {status}" if status else NO_REFUSAL)
    if not any(it.detailed for it in refused):
        raise NotTested(NOT_WATCHED)


def _reached_an_origin(one: Request | Handshake) -> bool:
    return one.outcome == "passed" if isinstance(one, Handshake) else one.answered_by == "origin"


def attempts_of(client: ClientRecord) -> Iterator[list[Request]]:
    """The requests for the same thing that got a 511; after a grant, a new list begins."""
    grants = [grant.time for grant in client.grants]
    groups = defaultdict[object, list[Request]](list)
    for request in client.details:
        if request.refused and request.status == 511 and not checking(request):
            groups[request.same, sum(time <= request.time for time in grants)].append(request)
    yield from groups.values()


def _runs[One: (Request, Handshake)](records: Sequence[One], seconds: float) -> Iterator[list[One]]:
    """The records in groups: each begins less than `seconds` after the one before it."""
    run = list(records[:1])
    for before, after in pairwise(records):
        if after.time - before.time >= seconds:
            yield run
            run = []
        run.append(after)
    yield run


def _by_host(shakes: Iterable[Handshake]) -> dict[str, list[Handshake]]:
    found = defaultdict[str, list[Handshake]](list)
    for shake in shakes:
        found[shake.host].append(shake)
    return found


def _credentials(
    client: ClientRecord, what: str, count: Callable[[Request], int]
) -> Iterator[Seen]:
    if not client.refusals:
        raise NotTested(NO_REFUSAL)
    groups = defaultdict[tuple[str, str], list[Request]](list)
    for request in client.refusals:
        if count(request):
            groups[request.host, request.agent].append(request)
    for (host, _), sent in groups.items():
        times = some(sum(request.count for request in sent), "request")
        inside = " inside TLS with a certificate that is not the origin's"
        where = inside if all(request.scheme == "https" for request in sent) else ""
        most = some(max(map(count, sent)), what)
        yield _did(sent[0], f"sent {most} for {host} to the portal ({times}){where}", sent)


def _reply_that_shows_in(
    request: Request, same: Sequence[Request]
) -> tuple[Request | None, str] | None:
    """The portal's reply that `request` has a trace of, and what that trace is.

    `same` are the replies of that host. The reply is None if the trace is from an earlier run.
    """
    shows = {
        "validator": "the validator of the portal's page",
        "cookie": "a cookie that the portal set in the origin's name",
    }
    last = next((it for it in reversed(same) if it.status != 511), same[-1] if same else None)
    for trace, said in shows.items():
        if trace in request.traces:
            if trace == "validator" and last and last.status == 511 and last.etag:
                continue  # `caches_511`
            return last, said
    if request.first_byte:
        begun = [it for it in same if (it.url, it.length) == (request.url, request.first_byte)]
        if begun:
            return begun[-1], "Range, as the rest of a file that begins with the portal's page"
    if agent_of(request.agent).browser:
        return None  # it shows the page to a person, with its images
    if "url" in request.traces and same:
        return same[-1], "a path that only the portal's page has"
    if request.referer and request.path != "/favicon.ico":
        referer = urlsplit(request.referer)
        page = [it for it in same if it.host == referer.hostname and it.path == referer.path]
        if page and request.path != page[-1].path:
            return page[-1], "the portal's page as its Referer"
    return None


def _revalidates(request: Request, before: Request) -> bool:
    since = request.modified_since
    return ("validator" in request.traces and before.etag) or (
        since is not None and abs(since - before.time) < DATE and request.time - since > DATE
    )


_NOTE, _WARNING, _ERROR = Severity

RULES: tuple[Rule, ...] = (
    Rule(
        _WARNING,
        "RFC 6585 section 6",
        retries_511,
        "retries a 511 within seconds",
        "Do not retry a 511: nothing changes until somebody signs in. Leave it out of the statuses"
        " that are retried, and ask people to sign in.",
        "A person pressed reload, or a test sent the request three times on purpose.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 section 7.4",
        retries_handshake,
        "retries a refused TLS handshake without waiting",
        "After a fatal TLS alert, wait before the next attempt, and longer each time.",
        "A browser opened several connections to one host side by side.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 section 6",
        no_back_off,
        "asks again and again at the same pace",
        "Wait longer after each failure (exponential back-off with jitter), up to some minutes.",
        "It is meant to poll at that pace, and the page says so to people.",
    ),
    Rule(
        _ERROR,
        "RFC 6585 section 6",
        never_recovers,
        "does not go on after the sign-in",
        "Try again after a while, or when the system says that the network has changed; do not"
        " remember the failure.",
        "There was nothing more for it to do, somebody has to press a button, or it speaks"
        " neither HTTP nor TLS.",
    ),
    Rule(
        _ERROR,
        "RFC 6585 section 6",
        takes_page_for_origin,
        "takes the portal's page for the origin's",
        "Look at the status and the Content-Type before you use a body; use https.",
        "With a portal that answers 200 or sets cookies, a client cannot tell in plain HTTP.",
    ),
    Rule(
        _NOTE,
        "RFC 6585 appendix B",
        favicon_of_portal,
        "asks for the icon of a site behind the portal",
        "Ask for an icon after a page with status 200 only.",
        "Firefox does it after every page with status 200, and some portals send theirs so.",
    ),
    Rule(
        _ERROR,
        "RFC 6585 section 6",
        caches_511,
        "stores a 511 in a cache",
        "Never store a 511, whatever its fields say; obey Cache-Control: no-store.",
        "The validator was the origin's own, and only looks like the portal's.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 section 7.4",
        cookies_to_portal,
        "sends cookies in the clear to the portal",
        "Use https for what needs a cookie, and set cookies with Secure, so that they never leave"
        " in plain HTTP.",
        "The cookies hold nothing that matters, such as a language.",
    ),
    Rule(
        _ERROR,
        "RFC 6585 section 7.4",
        authorization_to_portal,
        "sends HTTP credentials in the clear to the portal",
        "Send Authorization over https only, to a server whose certificate was checked.",
        "They are test credentials.",
    ),
    Rule(
        _ERROR,
        "RFC 6585 section 7.4",
        accepts_any_certificate,
        "does not check certificates",
        "Check the certificate's chain and name: remove verify=False, --insecure,"
        " rejectUnauthorized: false, a TrustManager of your own.",
        "The device has mitmproxy's CA on purpose: write trusts_ca: true on its client rule.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 section 7.4",
        plain_http_after_tls,
        "goes on in plain HTTP where TLS failed",
        "Do not fall back from https to http; send Strict-Transport-Security from your server.",
        "The answer is checked in another way: packages and updates are signed.",
    ),
    Rule(
        _NOTE,
        "RFC 6585 section 7.4",
        pins_certificate,
        "pins its certificate",
        "If it is meant to, change nothing, but say in the app that the network intercepts TLS.",
        "Pinning is wanted. The app then works behind no debugging or company proxy.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 section 4",
        ignores_retry_after,
        "ignores Retry-After",
        "Wait at least as long as Retry-After says before the next request to that host.",
        "A person asked for another page in the meantime.",
    ),
    Rule(
        _WARNING,
        "RFC 6585 appendix B",
        follows_redirect,
        "follows the portal's redirect",
        "Do not follow a redirect to another host, or check where it led and what came.",
        "It shows the page to a person, or sees that what came is not what it asked for.",
    ),
)
"""Every rule, in the order of the report."""
