"""What every page of the login server has in common: who asks, in which language, how safely."""

import logging
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from tornado import iostream, web
from tornado.template import ParseError

from capport.core.client import UNSEEN, Address, Client, Peer, parse_address
from capport.core.http import default_port
from capport.core.negotiation import Language, preferred_language
from capport.core.place import Host, parse_authority
from capport.core.policy import LoginServer, Policy
from capport.log_limits import QUOTED
from capport.login.words import WORDS, Words
from capport.policy.certificate import holds
from capport.stores import FullError
from capport.web.context import Portal
from capport.web.grants import NoMacError, Standing, standing
from capport.web.methods import methods_of
from capport.web.states import login_url
from capport.web.vouching import HEADER, AskingError, verify_client

logger = logging.getLogger(__name__)

# Nothing but our own style sheet and logo; forms to us alone; in nobody's frame. No script at all.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)

_SECURITY = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",  # for the captive portals' browsers that know no frame-ancestors
    "X-Content-Type-Options": "nosniff",
    # A state stays between us and the browser. `no-referrer` would do so too, but makes the Origin
    # of our own forms `null` (Fetch, 3.2.5), which could then not be checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


MAX_FORM = 16 * 1024
"""Bytes of a form; those of ours have some hundred."""


class Misdirected(web.HTTPError):
    """421: a request for another name than ours, so that no page of ours stands under it."""

    def __init__(self) -> None:
        super().__init__(421, reason="Misdirected Request")  # RFC 9110 section 15.5.20


class Handler(web.RequestHandler):
    """A request to the login server. `client` and `policy` are set before any method is called."""

    client: Client
    policy: Policy
    for_anybody = False
    """Whether it answers whoever asks, because the answer is the same for all."""
    for_indistinct = False
    """Whether it answers a client too that nothing tells from others (`Client.ids`)."""

    def initialize(self, portal: Portal) -> None:
        """Called by Tornado with what the route has."""
        self.portal = portal
        self.policy = portal.grants.policy
        self.server: LoginServer

    def set_default_headers(self) -> None:
        """Also called for an error, when all else was cleared."""
        self.clear_header("Server")
        for name, value in _SECURITY.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Finds out who is asking, and that it is us who are asked; refuses otherwise."""
        if self.policy.login_server is None:
            # A new policy has just taken the login server away: none of its conditions are met.
            raise web.HTTPError(503, "the policy has no login server")
        self.server = self.policy.login_server
        try:
            self.client = self._who_asks()
        except AskingError as error:
            raise web.HTTPError(403, str(error)) from error
        if not self._asks_us():
            raise Misdirected
        if not (self.client.ids or self.for_anybody or self.for_indistinct):
            raise Indistinct
        if self.request.method not in ("GET", "HEAD"):
            self._check_origin()

    @cached_property
    def words(self) -> Words:
        """The client's language. Found when needed: Tornado checks a form before `prepare`."""
        return WORDS[self._language()]

    @property
    def standing(self) -> Standing:
        """How the client stands with the gate at this moment."""
        return standing(self.portal.grants, self.client)

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.request.protocol == "https"

    @property
    def state(self) -> str:
        """The state that came along, as it came: a claim until `portal.states` has read it."""
        return self.get_argument("state", "")[:2048]

    def link(self, path: str, **query: str) -> str:
        """A path of ours with what must come along."""
        asked = {"lang": self._chosen() or "", **query}
        kept = {name: value for name, value in asked.items() if value}
        return f"{path}?{urlencode(kept)}" if kept else path

    def forget_pages(self, stands: str) -> None:
        """To be called when the client `stands` otherwise than before: "in" or "out".

        Chromium's back button shows a page as it was, no-store or not, unless a cookie that no
        script can read has changed since: this one, which says no more than that.
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
        """Answers with a page of the theme's."""
        theme = self.portal.theme(self.policy)
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

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """As UTF-8, whatever was sent: what is none is no state, language or code of ours."""
        return value.decode("utf-8", "replace")

    def compute_etag(self) -> str | None:
        """None: what is no-store is not revalidated either."""
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The error as a page, in words that say nothing of our insides."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not self._asks_us():  # Tornado has refused it before `prepare` could
            status_code, error = 421, Misdirected()
        words, start, device = self.words, self.link("/", state=self.state), None
        if status_code == 405:
            self.set_header("Allow", ", ".join(methods_of(self)))
        by_error = {
            FormOver: (words.form_over, words.form_over_text),
            FullError: (words.full, words.full_text),
            Proxied: (words.proxied, words.proxied_text),
            NoMacError: (words.no_mac, words.no_mac_text),
            Indistinct: (words.indistinct, words.indistinct_text),
        }
        by_status = {
            403: (words.refused, words.refused_text),
            404: (words.not_found, words.not_found_text),
            421: (words.elsewhere, words.elsewhere_text),
            500: (words.unavailable, words.unavailable_text),
            503: (words.unavailable, words.unavailable_text),
        }
        refused = by_status.get(status_code, (words.refused, words.refused_text))
        heading, text = by_error.get(type(error), refused)
        if isinstance(error, Blocked):
            heading, text, start = words.blocked, words.blocked_text, ""
            device = self.client.address  # to be told to whoever runs the network
        if isinstance(error, Misdirected):
            start = login_url(self.policy, self._asked_at(), None)
        try:
            self.page(
                "error.html", status_code, heading=heading, text=text, start=start, device=device
            )
        except Exception as failed:
            # The edge: a page of the operator's that does not compile must not hide the first error
            # behind a second, nor show either.
            if self._is_to_be_told("error.html"):
                trace = not isinstance(failed, OSError)  # which names the place
                logger.error("No error page; answering without one: %s", failed, exc_info=trace)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{heading}\n{text}\n")

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Errors of ours are logged whole; those of a client in a line, without what it sent."""
        if isinstance(value, web.HTTPError):
            said = (value.log_message or "")[:QUOTED]
            logger.debug("%s: %s %s", self.request.remote_ip, value.status_code, said)
        elif not self._is_to_be_told(typ):
            pass
        elif isinstance(value, ParseError):
            place = f"login/templates/{value.filename}:{value.lineno}"
            logger.error("No page; answering 500: %s: %s", place, value.message)
        elif isinstance(value, OSError):  # it names the place and what would do
            logger.error("No page; answering 503: %s", value)
        else:
            logger.error("No page; answering 500 or 503", exc_info=(typ, value, tb))  # type: ignore[arg-type]

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's, but what cannot be written down or made durable is 503: come back later."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, OSError):
            status_code = 503
        super().send_error(status_code, **kwargs)

    def check_xsrf_cookie(self) -> None:
        """Tornado's, with a page that helps; but a method that is not here is 405, form or not."""
        if self.request.method not in methods_of(self):
            raise web.HTTPError(405)
        if int(self.request.headers.get("Content-Length", "0")) > MAX_FORM:
            raise web.HTTPError(413)
        try:
            super().check_xsrf_cookie()
        except web.HTTPError as error:
            raise FormOver(error.log_message) from error

    # ------------------------------------------------------------------------------------------

    def _is_to_be_told(self, fault: object) -> bool:
        return self.portal.faults.is_due(self.portal.grants.now(), (type(self), fault))

    def _who_asks(self) -> Client:
        context = getattr(self.request.connection, "context", None)
        peer = getattr(context, "address", None)
        if peer and (vouched := self.portal.vouched.find(peer)):
            return self.portal.grants.client_of(vouched)
        asks = parse_address(self.request.remote_ip or "")
        fields = self.request.headers.get_list(HEADER)
        may_be_proxy = not fields and self.portal.may_be_proxy(asks, self._asked_at())
        if may_be_proxy and not self.for_anybody:
            if self.portal.faults.is_due(self.portal.grants.now(), Proxied):
                logger.warning(
                    "A client comes from %s, in a tunnel of the proxy's that may be anybody's: it"
                    " is refused. Have clients reach the login server without the proxy, or run it"
                    " in the proxy's process: end capport login",
                    asks,
                )
            raise Proxied
        if not fields:
            stream = getattr(self.request.server_connection, "stream", None)
            return self.portal.grants.client_of(Peer(asks, self.portal.frames.get(stream, UNSEEN)))
        if len(fields) > 1:
            raise AskingError(f"{HEADER} is there {len(fields)} times")
        if asks != self._asked_at():  # a copy; the addon is on this machine
            raise AskingError(f"{HEADER} does not come from {asks}")
        secret, now = self.portal.records.secret, self.portal.grants.now()
        return self.portal.grants.client_of(verify_client(fields[0], secret, now))

    def _asks_us(self) -> bool:
        """Whether the Host field names us. RFC 6585 appendix B; and DNS rebinding."""
        try:
            named = parse_authority(self.request.host, default_port(self.request.protocol)).host
        except ValueError:
            return False
        return named in self._our_names() or any(
            holds(name, named) for name in self.portal.certified
        )

    def _our_names(self) -> set[Host]:
        names = {place.host for place in self.policy.login_places}
        if (address := self._asked_at()) is not None:
            names.add(address)
            if address.is_loopback:
                names.add("localhost")
        return names

    def _asked_at(self) -> Address | None:
        """The address at our end of the connection, None where it has ended."""
        stream = getattr(self.request.server_connection, "stream", None)
        if isinstance(stream, iostream.IOStream) and stream.socket is not None:
            return parse_address(stream.socket.getsockname()[0])
        return None

    def _check_origin(self) -> None:
        """A form of another site's is not ours, whatever it brings. Older browsers send neither."""
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise FormOver("Sec-Fetch-Site")
        ours = f"{self.request.protocol}://{self.request.host}"
        if self.request.headers.get("Origin", ours) != ours:
            raise FormOver("Origin")

    def _chosen(self) -> Language | None:
        chosen = self.get_argument("lang", "")
        return Language(chosen) if chosen in Language else None

    def _language(self) -> Language:
        return self._chosen() or preferred_language(self.request.headers.get("Accept-Language", ""))

    def _in_language(self, words: Words) -> str:
        # The result of a form has no address of its own; the start has.
        path = self.request.path if self.request.method in ("GET", "HEAD") else "/"
        query = {
            "lang": str(words.language),
            "state": self.state,
            "more": self.get_argument("more", "")[:1],
            "over": self.get_argument("over", "")[:1],
        }
        return f"{path}?{urlencode({name: value for name, value in query.items() if value})}"


class FormOver(web.HTTPError):
    """403: a form that we did not give this client just now."""

    def __init__(self, why: str | None = None) -> None:
        super().__init__(403, why)


class Blocked(web.HTTPError):
    """403: the policy never lets this client on."""

    def __init__(self) -> None:
        super().__init__(403, "blocked by the policy")


class Proxied(web.HTTPError):
    """403: a client that comes through a proxy, and could be any of its clients."""

    def __init__(self) -> None:
        super().__init__(403, "through a proxy that does not say for whom")


class Indistinct(web.HTTPError):
    """403: nothing tells this client from others, so no session could be its own."""

    def __init__(self) -> None:
        super().__init__(403, "its frames do not come from where its address is")


class NotFound(Handler):
    """Every path that there is nothing under, by any method."""

    def check_xsrf_cookie(self) -> None:
        """Not here: the answer is the same for every method, so no form is checked."""

    def prepare(self) -> None:
        """404."""
        if self.request.method not in ("GET", "HEAD"):
            self.request.method = "GET"
        super().prepare()
        raise web.HTTPError(404)
