"""The conditions and their forms: sign in, extend the session, see the time left, sign out."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from tornado import iostream, web

from capport.core.policy import Conditions
from capport.core.session import Instant, Session
from capport.login import passwords, vouchers
from capport.login.login_context import HASHES_WAITING
from capport.login.page_handler import Page
from capport.login.repeated_forms import Outcome
from capport.login.theme import Terms
from capport.web.client_handler import Forbidden

BY = "login server"
"""What a session says about who granted it."""

FARTHEST = 86400.0
"""The longest Refresh that a page gets, in seconds: browsers count milliseconds in 31 bits."""

PIECE = 16 * 1024
"""Bytes of a file that are in memory at a time, for a client that reads slowly."""


class Form(Page):
    """A page with a form. A form that is sent several times has one effect and one answer."""

    stands = "in"
    """Whether the client is signed "in" or "out" after a form without a problem."""

    async def post(self) -> None:
        """Answers the form: with a redirect, or with the form again and the problem."""
        sent = "\0".join((self.client.id, self.request.path, ""))
        form = hashlib.sha256(sent.encode() + self.request.body).digest()
        outcome = await self.login.forms.once(form, self.context.gate.now(), self.sent)
        if outcome.problem:
            self.show_problem(outcome)
        else:
            self.forget_pages(self.stands)
            self.redirect(outcome.path, status=outcome.status)

    async def sent(self) -> Outcome:
        """Does what the form asks for."""
        raise NotImplementedError

    def show_problem(self, outcome: Outcome) -> None:
        """Shows the form again, with the problem."""
        raise NotImplementedError


class SignInForm(Form):
    """`/` and `/sign-in`: the form for the policy's conditions."""

    def get(self) -> None:
        """Shows the form; to a known client that does not want more time, its status."""
        standing = self.standing
        if standing.is_blocked:
            raise Forbidden("blocked")
        extends = standing.open_session and self.can_extend(standing.open_session)
        if standing.is_known and not (extends and self.get_argument("more", "")):
            self.redirect(
                self.link("/welcome" if self.page_asked_for else "/status", state=self.state),
                status=303,
            )
            return
        if self.signs_in_elsewhere():
            own = self.state if self.own_state() else self.context.states.mint(self.client)
            self.redirect(self.policy.login_url_with(own, self.client.address), status=302)
            return
        self.form()

    async def sent(self) -> Outcome:
        """Grants the client a session, if the form meets the conditions."""
        if self.signs_in_elsewhere():
            raise web.HTTPError(403, "another login server signs clients in")
        standing, terms = self.standing, self.terms()
        if standing.is_blocked:
            raise Forbidden("blocked")
        if terms is not None and self.get_body_argument("terms", "") != terms.version:
            return Outcome(problem=self.words.terms_changed, status=409)
        for_all = self.login.throttle.for_all(self.context.gate.now())
        if wait := self.must_wait(for_all):
            return too_many(wait, self.words.too_many.format(time=self.words.wait(wait)))
        code = vouchers.digest(self.get_body_argument("code", ""))
        if self.conditions is Conditions.VOUCHER and code is None:
            return wrong(self.words.no_code, for_all)  # a typing error counts as an attempt too
        left = self.left
        match self.conditions:
            case Conditions.TERMS:
                met: Met | None = Met(self.policy.sessions.lifetime, "")
            case Conditions.VOUCHER:
                assert code is not None
                met = await self.voucher(code, beyond=left)
            case Conditions.PASSWORD:
                met = await self.password()
        if met is None:
            # The same text for a wrong and for a used voucher.
            return wrong(self.words.wrong[self.conditions], for_all)
        if self.conditions is not Conditions.TERMS:
            self.login.throttle.forgive(self.client, met.name)
        if self.conditions is Conditions.VOUCHER and met.lifetime <= left:
            return Outcome(problem=self.words.no_longer, status=409)
        try:
            # Asking for more time never shortens a session.
            return await self.admit(met, terms, grant=met.lifetime > left)
        except OSError:
            if met.give_back is not None:
                await self.context.recorded(met.give_back)
            raise

    async def admit(self, met: "Met", terms: Terms | None, *, grant: bool) -> Outcome:
        """Records the acceptance, then grants a session, if `grant` is set.

        In this order, so that even after a power cut no client is online that has not accepted.
        """
        records, client = self.context.records, self.client
        at = self.context.wall()
        if terms is not None:
            which = (client.id, terms.version, str(terms.language))
            await self.context.recorded(partial(records.accept, *which, terms.source, at))
        accepted = f"terms {terms.version}" if terms else ""
        how = ", ".join(filter(None, (met.how, accepted)))
        if grant:
            try:
                await self.context.grants.grant(
                    client, lifetime=met.lifetime, by=BY, how=how, name=met.name
                )
            except OSError:
                if terms is not None:
                    await self.context.recorded(partial(records.withdraw, *which, at))
                raise
            await self.end_if_revoked(met)
        return Outcome(self.link("/welcome", state=self.state))

    async def end_if_revoked(self, met: "Met") -> None:
        """Ends the new session again if its voucher has been revoked meanwhile.

        `capport voucher revoke` may have ended the voucher's sessions before this one was there.
        """
        if met.is_revoked is None:
            return
        revoked = True  # also if the records cannot be read
        try:
            revoked = await self.context.recorded(met.is_revoked)
        finally:
            if revoked:
                await self.context.grants.revoke(self.client.id)

    async def voucher(self, code: bytes, *, beyond: float) -> "Met | None":
        """Uses the voucher with the hash `code`; None if it does not admit this client.

        A voucher that admits for `beyond` seconds or less is left unused.
        """
        records, client, at = self.context.records, self.client.id, self.context.moment()
        use = partial(records.use_voucher, code, client, at, beyond=beyond)
        if (used := await self.context.recorded(use)) is None:
            return None
        number, lifetime = used
        return Met(
            lifetime,
            f"voucher {number}",
            give_back=partial(records.give_back, number, client, at),
            is_revoked=partial(records.is_revoked, number),
        )

    async def password(self) -> "Met | None":
        """Checks name and password; None if they are wrong. An unknown name takes as long."""
        name = passwords.normal_name(self.get_body_argument("name", ""))
        given = self.get_body_argument("password", "", strip=False)
        kept = None
        if name is not None:
            kept = await self.context.recorded(partial(self.context.records.password_of, name))
        right = await self.login.hashed(partial(passwords.is_password, kept, given))
        lifetime = self.policy.sessions.lifetime
        return Met(lifetime, "password", name) if right and name else None

    def must_wait(self, for_all: float) -> float:
        """Seconds until this client may try, when all clients have to wait `for_all`; 0: now.

        A voucher is checked even then: 80 bits cannot be guessed, and a guest with a good voucher
        does not wait because an attacker made up devices. Only the answer to a wrong one says wait.
        """
        now = self.context.gate.now()
        if wait := self.login.often.spend(self.client, now):
            return wait
        if self.conditions is Conditions.TERMS:
            return self.login.often.accept_terms(now)
        if self.login.hashing >= HASHES_WAITING:
            return 1.0
        if for_all and self.conditions is Conditions.PASSWORD:
            name = passwords.normal_name(self.get_body_argument("name", ""))
            if name is None or not self.login.throttle.was_right(self.client, name):
                return for_all
        return self.login.throttle.attempt(self.client, now)

    def show_problem(self, outcome: Outcome) -> None:
        """Shows the form again, with the problem."""
        if outcome.wait:
            self.set_header("Retry-After", str(outcome.wait))
        self.form(problem=outcome.problem, status=outcome.status)

    def form(self, *, problem: str | None = None, status: int = 200) -> None:
        """Answers with the page that has the form."""
        conditions, words = self.conditions, self.words
        extending = self.standing.open_session is not None
        lead = words.more if extending else words.lead
        lifetime = words.time(self.policy.sessions.lifetime)
        self.page(
            "sign_in.html",
            status,
            conditions=str(conditions),
            lead=lead[conditions].format(left=words.rounded(self.left), time=lifetime),
            terms=self.terms(),
            state=self.state,
            problem=problem,
            wrong=status == 403,
            entered=self.entered,
            extending=extending,
            lifetime=lifetime,
        )

    def signs_in_elsewhere(self) -> bool:
        """Whether another login server signs clients in, and our own forms are off."""
        if not self.login.theme(self.policy).signs_in_elsewhere:
            return False
        if self.policy.login_place in self.server.listen:
            raise web.HTTPError(503, "return.pem is there, but login_url points to this server")
        return True

    @property
    def entered(self) -> str:
        """The code or name that was sent, so that the guest can correct it. Never a password."""
        if self.request.method != "POST":
            return ""
        field = {Conditions.VOUCHER: "code", Conditions.PASSWORD: "name"}.get(self.conditions)
        return self.get_body_argument(field, "")[:64] if field else ""

    @property
    def left(self) -> float:
        """Seconds that the client's session has left; 0 if it has none."""
        return self.left_of(self.context.grants.find(self.client))

    @property
    def conditions(self) -> Conditions:
        """The conditions of the policy in force, whatever the form was made for."""
        return self.server.conditions

    def terms(self) -> Terms | None:
        """The operator's terms; without any, ours if `conditions` is `terms`, else None."""
        theme, language = self.login.theme(self.policy), self.words.language
        if (terms := theme.terms(language)) is not None:
            return terms
        return theme.own_terms(language) if self.conditions is Conditions.TERMS else None


@dataclass(frozen=True, slots=True)
class Met:
    """The client has met the conditions: for how many seconds, how (besides terms), as which user.

    `give_back` makes the voucher usable again if the grant fails. `is_revoked` says whether the
    voucher has been revoked since.
    """

    lifetime: float
    how: str
    name: str = ""
    give_back: Callable[[], None] | None = None
    is_revoked: Callable[[], bool] | None = None


class Online(Page):
    """What the welcome and the status page share."""

    template = "status.html"

    def get(self) -> None:
        """Shows how much time is left, and what the guest can do."""
        standing = self.standing
        if not standing.is_known:
            self.redirect(self.link("/", state=self.state), status=303)
            return
        onward = self.page_asked_for
        session = standing.open_session
        left, idle = self.left_of(session), session.idle if session else None
        if session is not None:
            self._refresh_at(session.ends)
        self.page(
            self.template,
            client=self.client,
            seconds=left if session else None,
            total=max(1, round(session.expires - session.granted)) if session else None,
            idle=self.words.time(idle) if idle is not None and idle < left else None,
            always_on=session is None,
            can_sign_out=session is not None,
            can_extend=session is not None and self.can_extend(session),
            signed_in_with=self._signed_in_with(session),
            onward=onward,
            onward_host=urlsplit(onward).hostname if onward else None,
            extend_link=self.link("/", more="1", state=self.state),
            home_link=self.link("/"),
            home=f"{self.request.protocol}://{self.request.host}",
        )

    def _refresh_at(self, end: Instant) -> None:
        """Makes the browser go to `/signed-out` when the session ends; the page has no script.

        It is not a time limit for reading (WCAG 2.2, 2.2.1), because the session itself ends.
        """
        seconds = int(end - self.context.gate.now()) + 1
        if seconds <= FARTHEST:
            self.set_header("Refresh", f"{seconds}; url={self.link('/signed-out', over='1')}")

    def _signed_in_with(self, session: Session | None) -> str | None:
        if session is None or session.by != BY:
            return None
        how = session.how.partition(",")[0].partition(" ")[0]
        said = self.words.by.get(how)
        return f"{said}: {session.name}" if said and session.name else said


class Welcome(Online):
    """`/welcome`: shown right after signing in, with a link to the page that was asked for.

    A link, never a redirect: the page in the state is what the client asked for, but the person
    decides whether to go there.
    """

    template = "welcome.html"


class Status(Online):
    """`/status`: the page to come back to."""


class SignOutForm(Form):
    """`/sign-out`: ends the client's own session, and no other."""

    stands = "out"

    async def sent(self) -> Outcome:
        """Ends every session that makes this client known."""
        grants = self.context.grants
        await grants.revoke(*(one for one in self.client.ids if grants.find(one)))
        return Outcome(self.link("/signed-out"))


class SignedOut(Page):
    """`/signed-out`: says that the client is signed out, if it is."""

    def get(self) -> None:
        """Shows the page; sends a client that is known to its status."""
        if self.standing.is_known:
            self.redirect(self.link("/status"), status=303)
            return
        words = self.words
        heading = words.over if self.get_argument("over", "") else words.signed_out
        self.page("signed_out.html", heading=heading, start=self.link("/"))


class File(Page):
    """The style sheet, the logo and our icon."""

    for_anybody = True

    async def get(self, name: str) -> None:
        """Sends the file; a browser may keep it for ever if the URL has its version."""
        theme = self.login.theme(self.policy)
        asset = {"style.css": theme.style, "logo": theme.logo, "mark.svg": theme.mark}[name]()
        if asset is None:
            self.send_error(404)
            return
        if self.get_argument("v", "") == asset.version:
            self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        self.set_header("Content-Type", asset.media_type)
        # A browser that opens an SVG by itself treats it as a page. It may use its own style and
        # nothing else.
        self.set_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox"
        )
        self.set_header("Content-Length", str(len(asset.body)))
        with suppress(iostream.StreamClosedError):
            for at in range(0, len(asset.body), PIECE):  # else each connection holds a whole copy
                self.write(asset.body[at : at + PIECE])
                await self.flush()
            await self.finish()


def wrong(problem: str, for_all: float) -> Outcome:
    """The code, name or password is wrong. If all clients have to wait, this one must as well."""
    return too_many(for_all, problem) if for_all else Outcome(problem=problem, status=403)


def too_many(wait: float, problem: str) -> Outcome:
    """There were too many attempts: the client may try again in `wait` seconds."""
    return Outcome(problem=problem, status=429, wait=int(wait) + 1)
