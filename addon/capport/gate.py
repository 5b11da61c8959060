"""The gate: collects what a decision needs, asks the core for it, and grants and revokes."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from capport import clock
from capport.budgets import Budgets
from capport.core import decision, explanation, rates
from capport.core.bounded_map import BoundedMap
from capport.core.client import (
    UNSEEN,
    Address,
    Client,
    ClientId,
    Mac,
    Peer,
    Way,
    parse_address,
    parts_of,
)
from capport.core.decision import Case, Fields, HttpRequest
from capport.core.explanation import Explanation, Url
from capport.core.place import Place
from capport.core.policy import Policy
from capport.core.reach import Machine
from capport.core.session import Instant, Session, open_ones
from capport.core.standing import (
    Standing,
    is_without_mac,
    lacks_mac,
    standing,
    standing_of_id,
    stays,
)
from capport.core.value import value
from capport.core.verdict import (
    Drop,
    HeaderFieldsTooLarge,
    Imitated,
    NetworkAuthenticationRequired,
    Pass,
    Refuse,
    SignIn,
    TlsVerdict,
    TooManyRequests,
    Verdict,
)
from capport.events import EventLog
from capport.linux import Neighbours
from capport.linux.own_addresses import HERE
from capport.metrics import Metrics
from capport.stores import FullError, SessionStore, StoreError, not_everywhere

_NONE_ANSWERS: Final[Mapping[Place, Address]] = MappingProxyType({})

type AtOnce = NetworkAuthenticationRequired | SignIn | TooManyRequests | HeaderFieldsTooLarge
"""The verdicts that `front/` carries out."""

AT_ONCE: Final = (NetworkAuthenticationRequired, SignIn, TooManyRequests, HeaderFieldsTooLarge)

_REFUSED: Final = (Refuse, Drop)

_WITH_LINK: Final = (NetworkAuthenticationRequired, SignIn)

LATELY: Final = 2048
"""The most refusals that are remembered. Each takes a kilobyte, and its request another at most."""
_LONGEST: Final = 1024  # bytes of a request that is remembered

type Basis = tuple[Client, HttpRequest | None, Place | None, Place | None, bool]
"""What a decision on a client without a session is made from, by a policy: there is no time in it.

The places are the claimed and the dialled one. The request is None for a TLS handshake. The last
part is whether the login server answers.
"""


@value
class Decided:
    """A decision, and what it was made from."""

    asked: Basis
    case: Case
    verdict: Verdict | TlsVerdict


type MakeState = Callable[[Client, str | None], str | None]
"""Makes the `{state}` in the login URL of a client that asked for a URL; None: there is none."""

type Imitate = Callable[[NetworkAuthenticationRequired | SignIn], Imitated]
"""Makes the answer of another kind of portal."""


class Gate:
    """Decides for every enforcement point.

    `policy` and `events` may be replaced, each as a whole, but are never edited. `state`
    makes the state in the link of a 511. `answering` maps each place of the login server that
    answers now to its address.
    `carry_out` makes the kernel follow a session that was opened or ended here. It gets the
    client's id, returns when the kernel does, and raises StoreError if there is no room.
    `drop` ends the connections of a client that was refused too often (`limits.drop_after`), and
    gets the seconds for which new ones are dropped. It must not raise.
    """

    def __init__(
        self,
        policy: Policy,
        store: SessionStore,
        *,
        neighbours: Neighbours | None = None,
        events: EventLog | None = None,
        now: Callable[[], Instant] = clock.now,
        machine: Machine = HERE,
        state: MakeState | None = None,
        answering: Mapping[Place, Address] = _NONE_ANSWERS,
        carry_out: Callable[[ClientId], None] = lambda client: None,
        budgets: Budgets | None = None,
        drop: Callable[[Client, float], None] = lambda client, seconds: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.policy = policy
        self.store = store
        self.neighbours = neighbours or Neighbours()
        self.events = events or EventLog()
        self.now = now
        self.machine = machine
        self.state = state
        self.answering = answering
        self.metrics = metrics or Metrics()
        self._imitate: Imitate | None = None
        self._carry_out = carry_out
        self._budgets = budgets or Budgets()
        self._drop = drop
        self._lately = BoundedMap[tuple[ClientId, int, int], Decided](LATELY)
        self._lately_by = policy

    def imitate(self, answer: Imitate | None) -> None:
        """Answers as another kind of portal from now on. Only `capport.testing` calls this."""
        self._imitate = answer

    def client(self, at: Peer | str) -> Client:
        """The client at the other end of a connection, or at an address that a socket gave as text.

        The result agrees with the kernel's rules, which look at the address and the MAC of each
        frame. The client's MAC is that of the frame. If frames from this address should come from
        another MAC, the client is astray. On a router, if the MAC of the frame was not kept, a
        client that would be known is astray. Raises ValueError if the text is not an address.
        """
        peer = at if isinstance(at, Peer) else Peer(parse_address(at))
        frame, mac = peer.frame, self._mac_of(peer)
        if frame is None or (frame == UNSEEN and self.policy.router is None):
            return peer.client(mac)
        if frame == UNSEEN:
            seen = peer.client(mac)
            return peer.client(astray=True) if self.known(seen) else seen
        if mac is not None:
            return peer.client(frame, astray=frame != mac)
        way = self.neighbours.way(peer.address)
        if way is None or way.hop is None:
            return peer.client()
        if way.hop == peer.address:  # on the link, but not in the neighbour table now
            return peer.client(frame)
        return peer.client(astray=frame != self.neighbours.find_mac(way.hop))

    def _mac_of(self, peer: Peer) -> Mac | None:
        """The MAC that the neighbour table has for its address, unless it may be a false one.

        Any device on the link can put its own MAC into the table for an address behind a router. So
        if a session is filed under the address alone, the MAC counts only if the routes say that
        the address is on the link.
        """
        mac = self.neighbours.find_mac(peer.address)
        if mac is None or self.policy.router is None:
            return mac
        by_address = peer.client(mac).ids[-1]
        if self.store.find((by_address,), self.now()) is None:
            return mac
        return mac if self.neighbours.way(peer.address) == Way(peer.address) else None

    def request(
        self,
        client: Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str | None = None,
        *,
        logins: int | None = None,
    ) -> Verdict:
        """The verdict on one HTTP request. It counts for 429, and keeps an idle session open."""
        begun = time.perf_counter()
        found, answers = self.standing(client), self._login_answers(client, request, claim)
        wait = self._spend(found)
        case = Case(
            found, claim, dialled, request, wait, answers, machine=self.machine, logins=logins
        )
        verdict = decision.decide(case, self.policy)
        self.metrics.decisions.add(time.perf_counter() - begun)
        self.metrics.verdicts[type(verdict).__name__] += 1
        if isinstance(verdict, Pass):
            self._heard_of(found, self.now())
            return verdict
        self._count_refusal(found)
        if isinstance(verdict, _WITH_LINK):
            state = self._state_for(client, verdict, url)
            with_state = self.policy.login_url_with(state, client.address)
            verdict = replace(verdict, login_url=with_state)
            return self._imitate(verdict) if self._imitate else verdict
        return verdict

    def refusal(
        self,
        client: Client,
        request: HttpRequest,
        claim: Place,
        dialled: Place | None,
        url: str | None,
    ) -> tuple[AtOnce, str | None] | None:
        """The verdict on an unknown client's request if it is 511, 302, 429 or 431, and the state.

        The state is not in the verdict's `login_url` yet. For any other verdict it returns None and
        counts nothing; the caller then asks `request`.
        """
        begun = time.perf_counter()
        if self._imitate:
            return None
        answers = self._login_answers(client, request, claim)
        decided = self._decided((client, request, claim, dialled, answers))
        found, verdict = decided.case.standing, decided.verdict
        if found.is_known or not isinstance(verdict, AT_ONCE):
            return None
        wait = self._spend(found)
        if wait is not None:
            verdict = decision.decide(replace(decided.case, retry_after=wait), self.policy)
            assert isinstance(verdict, AT_ONCE)
        self.metrics.decisions.add(time.perf_counter() - begun)
        self.metrics.verdicts[type(verdict).__name__] += 1
        self._count_refusal(found)
        if isinstance(verdict, _WITH_LINK):
            return verdict, self._state_for(client, verdict, url)
        return verdict, None

    def _decided(self, asked: Basis) -> Decided:
        """A decision. Clients repeat what was refused, and are refused again without deciding.

        Where to look is a guess by the identity of the request and the claim, which the front keeps
        too. What was found there counts only if all that it was made from is the same.
        """
        policy, (client, request, claim, dialled, answers) = self.policy, asked
        if policy is not self._lately_by:
            self._lately.clear()
            self._lately_by = policy
        at = client.id, id(request), id(claim)
        lately = self._lately.get(at)
        if lately and lately.asked == asked and not self.store.find(client.ids, self.now()):
            return lately
        found = self.standing(client)
        case = Case(found, claim, dialled, request, None, answers, machine=self.machine)
        decide = decision.decide if request else decision.decide_tls
        decided = Decided(asked, case, decide(case, policy))
        is_short = request is None or request.section_size <= _LONGEST
        # What the kernel has may change unseen.
        may_repeat = stays(client, policy) and not decision.goes_by_machine(case, policy)
        if is_short and may_repeat and not found.is_known:
            self._lately[at] = decided
        return decided

    def _state_for(
        self, client: Client, verdict: NetworkAuthenticationRequired | SignIn, url: str | None
    ) -> str | None:
        if self.state is None:
            return None
        # After the sign-in nobody wants to be sent to the URL of a connectivity check.
        page = url if isinstance(verdict, NetworkAuthenticationRequired) else None
        return self.state(client, page)

    def connection(
        self,
        client: Client,
        place: Place,
        address: Address | None = None,
        *,
        among_clients: bool = False,
        logins: int | None = None,
    ) -> Verdict:
        """Whether a connection to `place`, at `address`, may be opened for `client`."""
        found = self.standing(client)
        case = Case(
            found,
            dialled=place,
            address=address,
            among_clients=among_clients,
            machine=self.machine,
            logins=logins,
        )
        verdict = decision.decide_connection(case, self.policy)
        if isinstance(verdict, Pass):
            self._heard_of(found, self.now())
        return verdict

    def handshake(
        self, client: Client, sni: Place | None, dialled: Place | None, *, logins: int | None = None
    ) -> TlsVerdict:
        """Decides what to do with a TLS handshake."""
        found = self.standing(client)
        case = Case(found, sni, dialled, machine=self.machine, logins=logins)
        verdict = decision.decide_tls(case, self.policy)
        self.metrics.verdicts[type(verdict).__name__] += 1
        if isinstance(verdict, _REFUSED):
            self._count_refusal(found)
        return verdict

    def refused_unread(self, client: Client) -> None:
        """Counts the refusal of something that could not be read as a request."""
        self._count_refusal(self.standing(client))

    def forget_counts(self) -> None:
        """Forgets how much each client has sent: its budgets are full again."""
        self._budgets.clear()

    def is_dropped(self, found: Standing) -> bool:
        """Whether a connection of this client is to be dropped, because of `limits.drop_after`."""
        if self.policy.limits.drop_after is None:
            return False
        return self._budgets.until(f"dropped {_budget(found)}") > self.now()

    def refused_handshake(
        self, client: Client, sni: Place | None, dialled: Place | None
    ) -> Refuse | Drop | None:
        """The verdict on an unknown client's handshake if that is refused or dropped, else None."""
        decided = self._decided((client, None, sni, dialled, False))
        found, verdict = decided.case.standing, decided.verdict
        if found.is_known or not isinstance(verdict, _REFUSED):
            return None
        self.metrics.verdicts[type(verdict).__name__] += 1
        self._count_refusal(found)
        return verdict

    def standing(self, client: Client, *, over: bool = False) -> Standing:
        """What `client` is now. With `over`, the reason mentions a session that is over."""
        policy, now = self.policy, self.now()
        lacks = lacks_mac(client, policy, self.neighbours.is_on_link)
        session = self.store.find(client.ids, now)
        if session is None and over:
            session = self.store.find(client.ids, -math.inf)  # also finds those that are over
        return standing(client, policy, session, now, lacks_mac=lacks)

    def known(self, client: Client) -> Standing | None:
        """The standing of `client` if it is known, else None."""
        found = self.standing(client)
        return found if found.is_known else None

    def barred(self, client: Client | ClientId) -> str | None:
        """Why a session would change nothing for this client; None if it would."""
        if isinstance(client, Client):
            found = self.standing(client)
        else:
            found = standing_of_id(client, self.policy, None, self.now())
        return found.because if found.is_blocked else None

    def heard_of(self, client: Client, at: Instant) -> None:
        """Keeps the session of `client` open: it sent something at `at` without a decision here."""
        self._heard_of(self.standing(client), at)

    def is_without_mac(self, client: Client) -> bool:
        """Whether `client` is on the link, so that it has a MAC, but the MAC is not known now."""
        return is_without_mac(client, self.neighbours.is_on_link)

    def explain(
        self,
        client: Client,
        request: HttpRequest,
        claim: Place | None,
        dialled: Place | None,
        url: str,
        *,
        after: int = 0,
    ) -> Explanation:
        """Explains the verdict on a request that comes `after` as many others at the same time.

        Every explanation comes from here. The request does not count for 429, and the login server
        is assumed to answer.
        """
        found = self.standing(client, over=True)
        rate = self.policy.limits.requests_of(known=found.is_known)
        wait = rates.wait_after(after, rate) if rate else None
        case = Case(found, claim, dialled, request, wait, login_answers=True, machine=self.machine)
        return explanation.explain(case, self.policy, url)

    def explain_url(
        self,
        client: Client,
        url: Url,
        method: str = "GET",
        fields: Fields = (),
        *,
        after: int = 0,
    ) -> Explanation:
        """Explains the verdict on a request for `url`, by the name in it."""
        request = HttpRequest.with_fields(method, url.scheme, url.path, fields, len(url.path))
        return self.explain(client, request, url.place, None, url.text, after=after)

    def grant(
        self,
        client: ClientId,
        *,
        lifetime: float | None = None,
        by: str = "",
        how: str = "",
        name: str = "",
        renews: bool = False,
    ) -> Session:
        """Opens a session of `lifetime` seconds, or of the policy's lifetime.

        When it returns, the session is durable, and in force at every enforcement point of this
        process. It waits for the disk, so do not call it on the event loop.

        Raises StoreError if the store fails, or the router has no room for the client; FullError if
        there are as many sessions as the policy allows; LookupError if it `renews` a session that
        was revoked or cleared away.
        """
        with self.metrics.grants.of_this():
            now, sessions = self.now(), self.policy.sessions
            session = Session(
                client,
                granted=now,
                expires=now + (sessions.lifetime if lifetime is None else lifetime),
                idle=sessions.idle,
                last_seen=now,
                granted_at=self.events.wall(),
                by=by,
                how=how,
                name=name,
            )
            most = None if renews else sessions.most
            try:
                if not self.store.put(session, most=most, renews=renews):
                    raise LookupError(f"{client} no longer has a session")
            except FullError as error:
                self.events.write("fault", what=str(error))
                raise
            try:
                self._carry_out(client)
            except StoreError:
                self.store.revoke(client)  # else it would be known here, but held up by the router
                raise
            return session

    def to_bind(self, client: ClientId) -> Session | None:
        """The session of an address as `bind` should file it: under the address's MAC.

        None if there is nothing to change. Such a session was granted while the MAC was not known.
        """
        mac, address = parts_of(client)
        if mac is not None or address is None:
            return None
        session, found = self.store.find((client,), self.now()), self.neighbours.find_mac(address)
        if session is None or found is None or not self.neighbours.is_on_link(address):
            return None
        return replace(session, client=ClientId(found))

    def bind(self, client: ClientId) -> None:
        """Files the session of an address under the MAC that uses the address now.

        Otherwise the next device that gets the address would have the session too. It waits for the
        disk. Raises StoreError.
        """
        bound = self.to_bind(client)
        if bound is None:
            return
        before = self.store.find((bound.client,), self.now())
        is_longer = before is None or before.ends < bound.ends
        if is_longer:
            self.store.put(bound)
        if not self.store.revoke(client) and is_longer:
            self.store.revoke(bound.client)  # somebody has revoked the session meanwhile

    def revoke(self, *clients: ClientId) -> bool:
        """Ends the session of each client; returns whether there was one.

        Raises StoreError if the end of one is not durable. Every session has ended all the same.
        """
        ended, failures = False, list[StoreError]()
        for client in clients:
            with self.metrics.revocations.of_this():
                try:
                    ended = self.store.revoke(client) or ended
                except StoreError as error:
                    failures.append(error)
                finally:
                    with suppress(StoreError):  # a client that is removed needs no room
                        self._carry_out(client)
        if failures:
            raise failures[0]
        return ended

    @property
    def not_everywhere(self) -> str | None:
        """Why the other routers do not know of a change yet; None if they do, or there are none."""
        return not_everywhere(self.store)

    def sessions_of(self, client: ClientId) -> list[Session]:
        """Each open session of the device that has this address or MAC.

        A session of a MAC counts for the device's address, and the other way round. For
        `MAC@ADDRESS` it is only the session with exactly that id.
        """
        mac, address = parts_of(client)
        if mac is not None and address is not None:
            return open_ones([self.store.find((client,), self.now())], self.now())
        if address is not None:
            mac = self.neighbours.find_mac(address)
        given = {str(part) for part in (mac, address) if part is not None}
        present = {str(each) for each in self.neighbours.addresses(mac)} if mac else set[str]()

        def is_of(filed: ClientId) -> bool:  # not if it binds one of its addresses to another MAC
            return "@" not in filed or not given.isdisjoint(filed.split("@"))

        found = self.store.sessions(given | present)
        return open_ones((one for one in found if is_of(one.client)), self.now())

    def _login_answers(self, client: Client, request: HttpRequest, claim: Place | None) -> bool:
        """Whether `client` could follow a 302 to a login server that answers.

        It is False for a request that gets no 302 in any case.
        """
        if not self.answering or decision.probe_of(request, claim, self.policy) is None:
            return False
        address = self.answering.get(self.policy.login_for(client.address).place)
        if address is None:
            return False
        # A loopback address is of use only on this machine: a client elsewhere would ask itself.
        return client.address.is_loopback or not address.is_loopback

    def _heard_of(self, found: Standing, at: Instant) -> None:
        session = found.open_session
        if session is not None and session.idle is not None and at > session.last_seen:
            self.store.touch(session.client, at)

    def _spend(self, found: Standing) -> int | None:
        """Takes one from the client's requests; returns how long it must wait if none is left."""
        rate = self.policy.limits.requests_of(known=found.is_known)
        if rate is None:
            return None
        return self._budgets.spend(f"requests {_budget(found)}", rate, self.now())

    def _count_refusal(self, found: Standing) -> None:
        """Counts a refusal; if they are too many, drops the client's connections for `per`.

        RFC 6585 sections 7.2 and 7.3: answering a client that does not stop costs too much.
        """
        limit = self.policy.limits.drop_after
        if limit is None:
            return
        now, who = self.now(), _budget(found)
        if self._budgets.spend(f"refusals {who}", limit, now) is None:
            return
        until = self._budgets.until(f"dropped {who}")
        if until <= now:
            until = now + limit.per
            self._budgets.set(f"dropped {who}", until)
            because = f"it was refused more than {limit.count} times in {limit.per:g} s"
            self.events.write("dropped", found.client, seconds=limit.per, because=because)
        self._drop(found.client, until - now)


def _budget(found: Standing) -> str:
    """The key of a client's budget: the same for all its addresses, another once it is known.

    An astray client has a key of its own: it must not use up the budget of the client whose address
    it uses.
    """
    client = found.client
    return f"{client.id if client.ids else f'astray {client.address}'} {found.kind}"
