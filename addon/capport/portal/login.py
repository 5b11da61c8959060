"""The conditions, and the forms to meet them: sign in, go on, see how long is left, sign out."""

from functools import partial
from urllib.parse import urlsplit

from tornado import web

from capport.core.client import ClientId
from capport.core.policy import Conditions
from capport.core.session import Session
from capport.portal import passwords, vouchers
from capport.portal.grants import Standing
from capport.portal.portal import HASHES_WAITING
from capport.portal.states import StateError, login_url
from capport.portal.theme import Terms
from capport.portal.web import Blocked, Handler

BY = "login server"
"""Who granted, in the session."""


class SignIn(Handler):
    """`/` and `/sign-in`: what must be met, and the form to meet it."""

    def get(self) -> None:
        """The form; or how the client stands, if it is known and does not ask for more."""
        stands = self.standing
        if stands.blocked:
            raise Blocked
        if not stands.captivity.captive and not (stands.session and self.get_argument("more", "")):
            self.redirect(
                self.link("/welcome" if self.page_asked_for else "/status", state=self.state),
                status=303,
            )
            return
        if self.elsewhere():
            self.redirect(login_url(self.policy, self.state or None), status=302)
            return
        self.form()

    def head(self) -> None:
        """As GET; Tornado leaves the body out."""
        self.get()

    async def post(self) -> None:
        """Lets the client on, if the form meets the conditions."""
        if self.elsewhere():
            raise web.HTTPError(403, "the conditions are met elsewhere")
        stands, terms = self.standing, self.terms()
        if stands.blocked:
            raise Blocked
        if terms is not None and self.get_body_argument("terms", "") != terms.version:
            self.form(problem=self.words.terms_changed, status=409)
            return
        if self.conditions is not Conditions.TERMS and (wait := self.must_wait()):
            self.set_header("Retry-After", str(int(wait) + 1))
            self.form(problem=self.words.too_many.format(time=self.words.wait(wait)), status=429)
            return
        match self.conditions:
            case Conditions.TERMS:
                met: Met | None = Met(None, "terms")
            case Conditions.VOUCHER:
                met = await self.voucher()
            case Conditions.PASSWORD:
                met = await self.password()
        if met is None:
            self.form(problem=self.problem, status=403)
            return
        if self.conditions is not Conditions.TERMS:
            self.portal.throttle.forgive(self.client)
        await self.let_on(met, terms)

    async def let_on(self, met: "Met", terms: Terms | None) -> None:
        """Notes the acceptance, then grants: whoever is online has accepted, power cut or not."""
        records, client = self.portal.records, self.client
        if terms is not None:
            note = partial(
                records.accept, client.id, terms.version, str(terms.language), terms.source
            )
            await self.portal.recorded(partial(note, self.portal.wall()))
        how = f"{met.how}, terms {terms.version}" if terms else met.how
        await self.portal.grants.grant(client, lifetime=met.lifetime, by=BY, how=how, name=met.name)
        self.redirect(self.link("/welcome", state=self.state), status=303)

    async def voucher(self) -> "Met | None":
        """The voucher in the form, if it is good for this client."""
        code = vouchers.digest(self.get_body_argument("code", ""))
        if code is None:
            return None
        use = partial(self.portal.records.use_voucher, code, self.client.id, self.portal.moment())
        if (used := await self.portal.recorded(use)) is None:
            return None
        number, lifetime = used
        return Met(lifetime, f"voucher {number}")

    async def password(self) -> "Met | None":
        """The user in the form, if that is its password. Alike in time if there is no such user."""
        name = passwords.normal_name(self.get_body_argument("name", ""))
        given = self.get_body_argument("password", "", strip=False)
        kept = None
        if name is not None:
            kept = await self.portal.recorded(partial(self.portal.records.password_of, name))
        right = await self.portal.hashed(partial(passwords.is_password, kept, given))
        return Met(None, "password", name) if right and name else None

    def must_wait(self) -> float:
        """Seconds until this client may try again; 0: now."""
        if self.portal.hashing >= HASHES_WAITING:
            return 1.0
        return self.portal.throttle.attempt(self.client, self.portal.grants.now())

    def form(self, *, problem: str | None = None, status: int = 200) -> None:
        """The page with the form."""
        conditions, words = self.conditions, self.words
        self.page(
            "sign_in.html",
            status,
            conditions=str(conditions),
            lead={
                Conditions.TERMS: words.lead_terms,
                Conditions.VOUCHER: words.lead_voucher,
                Conditions.PASSWORD: words.lead_password,
            }[conditions],
            terms=self.terms(),
            state=self.state,
            problem=problem,
            entered=self.entered,
            extending=self.standing.session is not None,
            lifetime=words.time(self.policy.sessions.lifetime),
        )

    def elsewhere(self) -> bool:
        """Whether it is another login server's word that lets on, and not our forms."""
        if self.portal.theme(self.policy).return_key() is None:
            return False
        if self.policy.login_place == self.server.listen:
            raise web.HTTPError(503, "return.pem is there, but login_url leads here")
        return True

    @property
    def entered(self) -> str:
        """The code or the name to put right: 16 letters are not typed twice. Never a password."""
        if self.request.method != "POST":
            return ""
        field = {Conditions.VOUCHER: "code", Conditions.PASSWORD: "name"}.get(self.conditions)
        return self.get_body_argument(field, "")[:64] if field else ""

    @property
    def problem(self) -> str:
        """What is said to whoever does not meet the conditions: the same for wrong and used up."""
        words = self.words
        voucher = self.conditions is Conditions.VOUCHER
        return words.wrong_voucher if voucher else words.wrong_password

    @property
    def conditions(self) -> Conditions:
        """What the policy in force asks for; never what the form says it does."""
        return self.server.conditions

    def terms(self) -> Terms | None:
        """The operator's terms; ours, where accepting terms is the condition and there are none."""
        theme, language = self.portal.theme(self.policy), self.words.language
        if (terms := theme.terms(language)) is not None:
            return terms
        return theme.own_terms(language) if self.conditions is Conditions.TERMS else None

    @property
    def page_asked_for(self) -> str | None:
        """The page whose 511 brought the client here, if the state says so and is this client's."""
        return page_asked_for(self)


class Met:
    """The conditions are met: for how long (None: as the policy has it), how, and by whom."""

    def __init__(self, lifetime: float | None, how: str, name: str = "") -> None:
        self.lifetime, self.how, self.name = lifetime, how, name


class Online(Handler):
    """What the welcome and the status page share."""

    template = "status.html"

    def get(self) -> None:
        """How long is left, and what there is to do."""
        stands = self.standing
        if stands.captivity.captive:
            self.redirect(self.link("/", state=self.state), status=303)
            return
        onward = page_asked_for(self)
        session = None if self.policy.clients.find(self.client) else stands.session
        self.page(
            self.template,
            client=self.client,
            seconds=stands.captivity.seconds_remaining,
            total=_length(session),
            always_on=session is None,
            can_sign_out=session is not None,
            signed_in_with=self._signed_in_with(session),
            onward=onward,
            onward_host=urlsplit(onward).hostname if onward else None,
            extend_link=self.link("/", more="1", state=self.state),
        )

    def head(self) -> None:
        """As GET."""
        self.get()

    def _signed_in_with(self, session: Session | None) -> str | None:
        if session is None or session.by != BY:
            return None
        how = session.how.partition(",")[0].partition(" ")[0]
        said = self.words.by.get(how)
        return f"{said}: {session.name}" if said and session.name else said


class Welcome(Online):
    """`/welcome`: right after signing in, with the way to the page that was asked for.

    A link, never a redirect: the page is the client's own wish, sealed in its state, but where one
    goes from here is for the person to say.
    """

    template = "welcome.html"


class Status(Online):
    """`/status`: to come back to."""


class SignOut(Handler):
    """`/sign-out`: ends the client's own session, and no other."""

    async def post(self) -> None:
        """Ends every session that makes this client known."""
        stands: Standing = self.standing
        ended: set[ClientId] = set()
        while stands.session is not None and stands.session.client not in ended:
            ended.add(stands.session.client)
            await self.portal.grants.revoke(stands.session.client)
            stands = self.standing
        self.redirect(self.link("/signed-out"), status=303)


class SignedOut(Handler):
    """`/signed-out`: says so, if it is so."""

    def get(self) -> None:
        """The page; or the status, for whom is known all the same."""
        if not self.standing.captivity.captive:
            self.redirect(self.link("/status"), status=303)
            return
        self.page("signed_out.html", start=self.link("/"))

    def head(self) -> None:
        """As GET."""
        self.get()


class File(Handler):
    """The style sheet, the logo and our mark."""

    def initialize(self, portal, name: str) -> None:  # type: ignore[no-untyped-def,override]
        """`name` is which."""
        super().initialize(portal)
        self.name = name

    def get(self) -> None:
        """The bytes; for good, where the address has their version."""
        theme = self.portal.theme(self.policy)
        asset = {"style": theme.style, "logo": theme.logo, "mark": theme.mark}[self.name]()
        if asset is None:
            self.send_error(404)
            return
        if self.get_argument("v", "") == asset.version:
            self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        self.set_header("Content-Type", asset.media_type)
        # An SVG opened by itself is a page; ours brings its own style, and may do nothing else.
        self.set_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox"
        )
        self.finish(asset.body)

    def head(self) -> None:
        """As GET."""
        self.get()


def page_asked_for(handler: Handler) -> str | None:
    """The page in the client's state: only its own, and only while it holds."""
    if not handler.state:
        return None
    try:
        state = handler.portal.states.read(handler.state)
    except StateError:
        return None
    return state.page if state.is_of(handler.client) else None


def _length(session: Session | None) -> int | None:
    """Seconds from the grant to the end, for the bar that shows what is left."""
    return max(1, round(session.ends - session.granted)) if session else None
