"""What all pages of the login server have in common: language, theme, errors, and safe forms."""

import logging
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from tornado import web
from tornado.template import ParseError

from capport.core.negotiation import Language, preferred_language
from capport.core.policy import Conditions
from capport.core.session import Session
from capport.login.login_context import LoginContext
from capport.login.words import WORDS, Words
from capport.stores import AwayError, FullError
from capport.web.client_handler import ClientHandler, Forbidden
from capport.web.context import WebContext
from capport.web.granting import NoMacError
from capport.web.login_listener import MAX_FORM
from capport.web.states import State, StateError

logger = logging.getLogger(__name__)


# The names of the errors in `Words.errors`.
_BY_ERROR: dict[type, str] = {
    AwayError: "away",
    FullError: "full",
    NoMacError: "no_mac",
}
_BY_STATUS = {404: "not_found", 421: "elsewhere", 500: "unavailable", 503: "unavailable"}


class Page(ClientHandler):
    """A page of the login server, or an answer whose errors are pages."""

    def initialize(  # type: ignore[override]
        self, context: WebContext, login: LoginContext
    ) -> None:
        """Tornado calls it with the arguments of the route."""
        super().initialize(context)
        self.login = login

    def prepare(self) -> None:
        """Also refuses a form that another site has sent."""
        super().prepare()
        if self.request.method not in ("GET", "HEAD"):
            self._check_origin()

    @cached_property
    def words(self) -> Words:
        """The texts in the client's language. A form is checked, and may fail, before `prepare`."""
        return WORDS[self._language()]

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.request.protocol == "https"

    @property
    def state(self) -> str:
        """The state that the request has, unchecked: `context.states.read` checks it."""
        return self.get_argument("state", "")[:2048]

    def link(self, path: str, **query: str) -> str:
        """A link to one of our paths, which keeps the language that the guest has chosen."""
        asked = {"lang": self._chosen() or "", **query}
        kept = {name: value for name, value in asked.items() if value}
        return f"{path}?{urlencode(kept)}" if kept else path

    def forget_pages(self, stands: str) -> None:
        """Makes the browser forget our earlier pages. Call it when the client signs "in" or "out".

        Chromium's back button shows a page as it was, even with no-store, unless an HttpOnly cookie
        has changed since. This cookie is only there for that.
        """
        self.set_cookie(
            "__Host-capport-stands" if self.encrypted else "capport-stands",
            stands,
            httponly=True,
            samesite="Lax",
            secure=self.encrypted,
            path="/",
        )

    def page(self, name: str, status: int = 200, **values: object) -> None:
        """Answers with the theme's page of this name."""
        theme = self.login.theme(self.policy)
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Language", str(self.words.language))
        self.add_header("Vary", "Accept-Language")
        namespace: dict[str, Any] = self.get_template_namespace()
        namespace |= {
            "words": self.words,
            "languages": list(WORDS.values()),
            "network": self.policy.network,
            "style": theme.style(),
            "logo": theme.logo(),
            "encrypted": self.encrypted,
            "in_language": self._in_language,
        }
        self.finish(theme.template(name).generate(**(namespace | values)))

    def own_state(self) -> State | None:
        """The state that the request has, if it is this client's and still valid."""
        try:
            state = self.context.states.read(self.state)
        except StateError:
            return None
        return state if state.is_of(self.client) else None

    @property
    def page_asked_for(self) -> str | None:
        """The page that the client asked for when it got the 511, read from its own state."""
        state = self.own_state()
        return state.page if state else None

    def left_of(self, session: Session | None) -> float:
        """Seconds until `session` expires, whatever the client does; 0 if there is none."""
        return session.left(self.context.gate.now()) if session else 0.0

    def can_extend(self, session: Session) -> bool:
        """Whether the guest can gain enough time to notice it."""
        if self.server.conditions is Conditions.VOUCHER:
            return True
        if self.login.theme(self.policy).signs_in_elsewhere:
            return True  # the other login server knows for how long
        lifetime = self.policy.sessions.lifetime
        return lifetime - self.left_of(session) >= min(60.0, lifetime / 10)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Shows the error as a page, without internal details."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not self.asks_us():  # Tornado may refuse a request before `prepare` checks this
            status_code, error = 421, None
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.methods()))
        self.say_when(error)
        kind = _BY_ERROR.get(type(error), _BY_STATUS.get(status_code, "refused"))
        if isinstance(error, Forbidden):
            kind = error.kind
        heading, text = self.words.errors[kind]
        start, device = self.link("/", state=self.state), None
        if kind == "blocked":
            start = ""
            device = self.client.address  # the guest can tell it to the people who run the network
        elif kind == "elsewhere":
            start = self.policy.login_url_with(None, self.asked_at())
        try:
            self.page(
                "error.html", status_code, heading=heading, text=text, start=start, device=device
            )
        except Exception as failed:
            # The edge: an operator's template that does not compile must not hide the first error
            # behind a second one, and the client must see neither.
            if self.is_to_be_logged("error.html"):
                trace = not isinstance(failed, OSError)  # an OSError names the file
                logger.error(f"No error page; answering in plain text: {failed}", exc_info=trace)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{heading}\n{text}\n")

    def without_traceback(self, error: BaseException | None) -> str | None:
        """As inherited; for an error in one of the operator's templates, also its place."""
        if isinstance(error, ParseError):
            return f"login/templates/{error.filename}:{error.lineno}: {error.message}"
        return super().without_traceback(error)

    def check_xsrf_cookie(self) -> None:
        """Checks as Tornado does; a failure gets a page that helps. A wrong method is 405 first."""
        if self.request.method not in self.methods():
            raise web.HTTPError(405)
        if int(self.request.headers.get("Content-Length", "0")) > MAX_FORM:
            raise web.HTTPError(413)
        try:
            super().check_xsrf_cookie()
        except web.HTTPError as error:
            raise Forbidden("form_over", error.log_message) from error

    # ------------------------------------------------------------------------------------------

    def _check_origin(self) -> None:
        """Refuses a form that another site has sent. Older browsers send neither header field."""
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Forbidden("form_over", "Sec-Fetch-Site")
        ours = f"{self.request.protocol}://{self.request.host}"
        if self.request.headers.get("Origin", ours) != ours:
            raise Forbidden("form_over", "Origin")

    def _chosen(self) -> Language | None:
        chosen = self.get_argument("lang", "")
        return Language(chosen) if chosen in Language else None

    def _language(self) -> Language:
        return self._chosen() or preferred_language(self.request.headers.get("Accept-Language", ""))

    def _in_language(self, words: Words) -> str:
        # The answer to a POST has no URL of its own, so the link leads to the start page.
        path = self.request.path if self.request.method in ("GET", "HEAD") else "/"
        kept = {name: self.get_argument(name, "")[:1] for name in ("more", "over")}
        return self.link(path, lang=str(words.language), state=self.state, **kept)


class NotFound(Page):
    """Answers 404 to every method on all other paths."""

    def check_xsrf_cookie(self) -> None:
        """Checks nothing, because the answer is the same for every method."""

    def prepare(self) -> None:
        """Raises 404."""
        if self.request.method not in ("GET", "HEAD"):
            self.request.method = "GET"
        super().prepare()
        raise web.HTTPError(404)
