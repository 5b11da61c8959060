"""A request by a client: which client it is, whether Host names us, and how the client stands."""

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
from capport.web.context import WebContext
from capport.web.vouching import HEADER, AskingError, verify_client

logger = logging.getLogger(__name__)

# A page loads our style sheet and images and nothing else, sends forms only to us, and is shown in
# no frame. It runs no script at all.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)

_SECURITY = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",  # some devices' portal browsers do not know frame-ancestors
    # The browser sends the state in a URL to no other site. `no-referrer` would do that too, but
    # then our own forms arrive with the Origin `null` (Fetch, 3.2.5), and we cannot check that.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Forbidden(web.HTTPError):
    """403, with a page of its own: `kind` names the page's texts. `why` is for the log."""

    def __init__(self, kind: str, why: str | None = None) -> None:
        super().__init__(403, why or kind)
        self.kind = kind


class ClientHandler(BaseHandler):
    """A request to the login server. `prepare` sets `client` and `server` before GET or POST."""

    client: Client
    policy: Policy
    for_anybody = False
    """Whether the answer is the same for every client, so that any client may have it."""
    for_indistinct = False
    """Whether it also answers a client that looks like others: one without `ids`."""

    def initialize(self, context: WebContext) -> None:
        """Tornado calls it with the arguments of the route."""
        self.context = context
        self.policy = context.gate.policy
        self.server: LoginServer

    def set_default_headers(self) -> None:
        """Sets the headers of every answer. Tornado calls it again after clearing for an error."""
        super().set_default_headers()
        for name, value in _SECURITY.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Finds out which client asks. Refuses a client it cannot identify, and another Host."""
        if self.policy.login_server is None:
            # A new policy has just removed the login server, so there are no conditions to meet.
            raise web.HTTPError(503, "the policy has no login server")
        self.server = self.policy.login_server
        try:
            self.client = self._find_client()
        except AskingError as error:
            raise web.HTTPError(403, str(error)) from error
        if not self.asks_us():
            raise web.HTTPError(421)  # RFC 9110 section 15.5.20
        if not (self.client.ids or self.for_anybody or self.for_indistinct):
            why = "the client's frames come from a device that does not have its address"
            raise Forbidden("indistinct", why)

    @property
    def standing(self) -> Standing:
        """How the client stands with the gate at this moment."""
        return self.context.gate.standing(self.client)

    def can_extend(self, session: Session) -> bool:
        """Whether the login server would grant more time than `session` has left."""
        raise NotImplementedError

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Reads bytes that are not UTF-8 too: no state, language or voucher code matches them."""
        return value.decode("utf-8", "replace")

    def asks_us(self) -> bool:
        """Whether the Host field names us: against DNS rebinding, and RFC 6585 appendix B."""
        try:
            named = parse_authority(self.request.host, default_port(self.request.protocol)).host
        except ValueError:
            return False
        return named in self._our_names() or any(
            holds(name, named) for name in self.context.certified
        )

    def asked_at(self) -> Address | None:
        """The address at our end of the connection; None if the connection has ended."""
        stream = getattr(self.request.server_connection, "stream", None)
        if isinstance(stream, iostream.IOStream) and stream.socket is not None:
            return parse_address(stream.socket.getsockname()[0])
        return None

    # ------------------------------------------------------------------------------------------

    def _find_client(self) -> Client:
        context = getattr(self.request.connection, "context", None)
        peer = getattr(context, "address", None)
        if peer and (vouched := self.context.vouched.find(peer)):
            return self.context.gate.client(vouched)
        asks = parse_address(self.request.remote_ip or "")
        fields = self.request.headers.get_list(HEADER)
        may_be_proxy = not fields and self.context.may_be_proxy(asks, self.asked_at())
        if may_be_proxy and not self.for_anybody:
            if self.context.faults.is_due(self.context.gate.now(), "proxied"):
                logger.warning(
                    f"A request from {asks} comes through the proxy, which does not say for which"
                    " client: refused. Let clients reach the login server without the proxy, or end"
                    " capport login, so that the login server runs in the proxy's process"
                )
            why = "it comes through a proxy that does not say which client asks"
            raise Forbidden("proxied", why)
        if not fields:
            stream = getattr(self.request.server_connection, "stream", None)
            return self.context.gate.client(Peer(asks, self.context.frames.get(stream, UNSEEN)))
        if len(fields) > 1:
            raise AskingError(f"the request has {HEADER} {len(fields)} times")
        if asks != self.asked_at():  # the addon runs on this machine, so this field was copied
            raise AskingError(f"{HEADER} comes from {asks}, which is not this machine")
        secret, now = self.context.records.secret, self.context.gate.now()
        return self.context.gate.client(verify_client(fields[0], secret, now))

    def _our_names(self) -> set[Host]:
        names = {place.host for place in self.policy.login_places}
        if (address := self.asked_at()) is not None:
            names.add(address)
            if address.is_loopback:
                names.add("localhost")
        return names
