"""Connects the login server to the gate of the same process."""

import math
from collections.abc import Iterable, Mapping
from functools import partial

from capport.core import explanation
from capport.core.client import Address, Client, ClientId, Peer
from capport.core.policy import Policy
from capport.core.session import Instant, Session
from capport.core.standing import Standing
from capport.gate import Gate
from capport.web.gate_protocol import NoMacError
from capport.web.worker import Worker


class GateGrants:
    """Implements `Grants` with the gate of the same process."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        # Two threads, so that no revocation waits behind a grant that waits for a lock. A late
        # revocation is better than none, so its patience has no end.
        self._granting = Worker("portal-grants")
        self._revoking = Worker("portal-revocations", patience=math.inf)

    @property
    def policy(self) -> Policy:
        """The policy in force now."""
        return self._gate.policy

    def now(self) -> Instant:
        """The gate's clock."""
        return self._gate.now()

    def client_at(self, address: Address) -> Client:
        """The client at `address`, with its MAC if that is known."""
        return self._gate.client(str(address))

    def client_of(self, peer: Peer) -> Client:
        """The client at the other end of a connection."""
        return self._gate.client(peer)

    def find(self, client: Client | ClientId) -> Session | None:
        """The open session of a client, or the one under an id."""
        ids = client.ids if isinstance(client, Client) else (client,)
        return self._gate.store.find(ids, self.now())

    def standing(self, client: Client) -> Standing:
        """How the gate sees `client` now."""
        return self._gate.standing(client)

    async def grant(
        self,
        client: Client | ClientId,
        *,
        lifetime: float | None,
        by: str,
        how: str,
        name: str,
        renews: bool = False,
    ) -> Session:
        """Opens or renews a session, on a thread of its own."""
        under = client.id if isinstance(client, Client) else client
        if isinstance(client, Client) and self._gate.is_without_mac(client):
            raise NoMacError(client)
        said = {"by": by, "how": how, "name": name}
        grant = partial(self._gate.grant, under, lifetime=lifetime, renews=renews, **said)
        return await self._granting.do(grant)

    async def revoke(self, *clients: ClientId) -> bool:
        """Ends sessions, on a thread of its own."""
        return await self._revoking.do(partial(self._gate.revoke, *clients))

    def close(self) -> None:
        """Ends the threads once their work is done."""
        self._granting.close()
        self._revoking.close()

    def sessions(self) -> Iterable[Session]:
        """All sessions, open or over."""
        return self._gate.store.sessions()

    def sessions_of(self, client: ClientId) -> list[Session]:
        """The open sessions of the device with this id."""
        return self._gate.sessions_of(client)

    def explain(self, client: Client, url: str, method: str = "GET") -> Mapping[str, object]:
        """What `capport explain --json` prints, without its command line. Raises ValueError."""
        found = self._gate.explain_url(client, explanation.parse_url(url), method)
        return explanation.document(found, self.policy)
