"""Decides on a connection to an origin, and chooses its address: each name is resolved once."""

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import connection
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from capport.core.client import Address, Client
from capport.core.place import Place
from capport.core.verdict import Closed, Pass, TooManyRequests
from capport.linux import neighbour_lookup
from capport.proxy.gate_enforcer import HELD, GateEnforcer
from capport.proxy.internals.server import name_again
from capport.proxy.request_head import place_of
from capport.proxy.resolver import SystemResolver

logger = logging.getLogger(__name__)


class Dialling:
    """Decides for the hook `server_connect`. mitmproxy dials the address that is found here."""

    def __init__(self, enforcer: GateEnforcer, resolver: SystemResolver) -> None:
        self.resolver = resolver
        self._enforcer = enforcer
        self._connections = enforcer.connections
        # The names of what is being opened. Weak, because mitmproxy does not report the end of a
        # connection that waits for its turn when its client disconnects.
        self.named: WeakKeyDictionary[connection.Server, connection.Address] = WeakKeyDictionary()

    async def address_for(self, data: ServerConnectionHookData) -> Address:
        """The address to connect to. Raises OSError if the connection is denied or impossible."""
        self._connections.dials(data.client, data.server.id)
        place = place_of(data.server.address)
        if place is None:
            raise PermissionError(f"{data.server.address} names no place")
        client = self._connections.client_of(data.client)
        self._allowed(client, place, data)
        found = await self.resolver.resolve(place.host)
        verdict = self._allowed(client, place, data)  # it may have been revoked meanwhile
        to_login = place in self._enforcer.gate.policy.login_places
        if to_login:
            self._connections.logs_in(data.client, data.server.id)
        by_name = verdict.to is not None and not to_login and isinstance(place.host, str)
        closed: Closed | None = None
        for address in found:
            among_clients = by_name and self._is_behind(address)
            at = self._enforcer.gate.connection(client, place, address, among_clients=among_clients)
            if isinstance(at, Pass):
                return address
            closed = at if isinstance(at, Closed) else closed
        raise self._closed(client, place, closed or Closed(f"{place} has no address"))

    def dial(self, server: connection.Server, address: Address) -> None:
        """Makes mitmproxy connect to `address`, and remembers the name that `server` had."""
        assert server.address
        self.named[server] = server.address
        server.address = (str(address), server.address[1])

    def connected(self, data: ServerConnectionHookData) -> None:
        """Gives an open connection its name back: mitmproxy finds it by the name later."""
        self._connections.dialled(data.client, data.server.id)
        if named := self.named.pop(data.server, None):
            name_again(data.server, named)

    def failed(self, data: ServerConnectionHookData) -> None:
        """Remembers an address that did not answer, so that the name's others are tried first."""
        self._connections.dialled(data.client, data.server.id)
        self._connections.hung_up(data.client, data.server.id)
        place = place_of(data.server.address)
        if self.named.pop(data.server, None) and place and not isinstance(place.host, str):
            self.resolver.did_not_answer(place.host)

    def _allowed(self, client: Client, place: Place, data: ServerConnectionHookData) -> Pass:
        conn = data.client
        logins = self._connections.logins(conn, data.server.id)
        verdict = self._enforcer.gate.connection(client, place, logins=logins)
        if isinstance(verdict, Pass):
            if verdict.to is None and self._enforcer.is_held(conn, client):
                raise PermissionError(HELD)
            return verdict
        if isinstance(verdict, Closed | TooManyRequests):
            raise self._closed(client, place, verdict)
        # The other hooks refuse earlier, with an answer. Such a verdict here means that they
        # overlooked something, or that the client has become unknown meanwhile.
        denied = f"Denied a connection to {place}: {verdict.because}"
        logger.warning(denied, extra={"client": conn.peername})
        fields: dict[str, Any] = {"what": "server_connect", "host": str(place)}
        self._enforcer.marks.event("fault", client, **fields, because=verdict.because)
        abort = self._connections.abort_connection
        asyncio.get_running_loop().call_later(1.0, abort, conn)
        raise PermissionError(verdict.because)

    def _closed(
        self, client: Client, place: Place, closed: Closed | TooManyRequests
    ) -> PermissionError:
        self._enforcer.marks.event("refused", client, host=str(place.host), because=closed.because)
        return PermissionError(closed.because)

    def _is_behind(self, address: Address) -> bool:
        """Whether `address` is on the clients' side of the router."""
        router = self._enforcer.gate.policy.router
        return router is not None and neighbour_lookup.is_behind(address, router.client_interface)
