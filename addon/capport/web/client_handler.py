"""A request by a client: who asks, whether it is us who are asked, and how the client stands."""

import logging

from tornado import iostream, web

from capport.core.client import UNSEEN, Address, Client, Peer, parse_address
from capport.core.http import default_port
from capport.core.place import Host, parse_authority
from capport.core.policy import LoginServer, Policy
from capport.core.session import Session
from capport.core.standing import Standing
from capport.policy.certificate import holds
from capport.web.base_handler import BaseHandler
from capport.web.context import Portal
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
    # A state stays between us and the browser. `no-referrer` would do so too, but makes the Origin
    # of our own forms `null` (Fetch, 3.2.5), which could then not be checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Misdirected(web.HTTPError):
    """421: a request for another name than ours, so that no page of ours stands under it."""

    def __init__(self) -> None:
        super().__init__(421, reason="Misdirected Request")  # RFC 9110 section 15.5.20


class Proxied(web.HTTPError):
    """403: a client that comes through a proxy, and could be any of its clients."""

    def __init__(self) -> None:
        super().__init__(403, "through a proxy that does not say for whom")


class Indistinct(web.HTTPError):
    """403: nothing tells this client from others, so no session could be its own."""

    def __init__(self) -> None:
        super().__init__(403, "its frames do not come from where its address is")


class ClientHandler(BaseHandler):
    """A request to the login server. `client` and `policy` are set before any method is called."""

    client: Client
    policy: Policy
    for_anybody = False
    """Whether its answer is the same for every client, so that it may go to any."""
    for_indistinct = False
    """Whether it also answers a client that nothing tells from others (`Client.ids`)."""

    def initialize(self, portal: Portal) -> None:
        """Called by Tornado with what the route has."""
        self.portal = portal
        self.policy = portal.grants.policy
        self.server: LoginServer

    def set_default_headers(self) -> None:
        """Also called for an error, when all else was cleared."""
        super().set_default_headers()
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
        if not self.asks_us():
            raise Misdirected
        if not (self.client.ids or self.for_anybody or self.for_indistinct):
            raise Indistinct

    @property
    def standing(self) -> Standing:
        """How the client stands with the gate at this moment."""
        return self.portal.grants.standing(self.client)

    def can_extend(self, session: Session) -> bool:
        """Whether the login server would grant more time than `session` has left."""
        raise NotImplementedError

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """As UTF-8, whatever was sent: what is none is no state, language or code of ours."""
        return value.decode("utf-8", "replace")

    def asks_us(self) -> bool:
        """Whether the Host field names us. RFC 6585 appendix B; and DNS rebinding."""
        try:
            named = parse_authority(self.request.host, default_port(self.request.protocol)).host
        except ValueError:
            return False
        return named in self._our_names() or any(
            holds(name, named) for name in self.portal.certified
        )

    def asked_at(self) -> Address | None:
        """The address at our end of the connection, None where it has ended."""
        stream = getattr(self.request.server_connection, "stream", None)
        if isinstance(stream, iostream.IOStream) and stream.socket is not None:
            return parse_address(stream.socket.getsockname()[0])
        return None

    # ------------------------------------------------------------------------------------------

    def _who_asks(self) -> Client:
        context = getattr(self.request.connection, "context", None)
        peer = getattr(context, "address", None)
        if peer and (vouched := self.portal.vouched.find(peer)):
            return self.portal.grants.client_of(vouched)
        asks = parse_address(self.request.remote_ip or "")
        fields = self.request.headers.get_list(HEADER)
        may_be_proxy = not fields and self.portal.may_be_proxy(asks, self.asked_at())
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
        if asks != self.asked_at():  # a copy; the addon is on this machine
            raise AskingError(f"{HEADER} does not come from {asks}")
        secret, now = self.portal.records.secret, self.portal.grants.now()
        return self.portal.grants.client_of(verify_client(fields[0], secret, now))

    def _our_names(self) -> set[Host]:
        names = {place.host for place in self.policy.login_places}
        if (address := self.asked_at()) is not None:
            names.add(address)
            if address.is_loopback:
                names.add("localhost")
        return names
