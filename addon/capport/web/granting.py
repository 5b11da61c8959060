"""Grants and revokes sessions for the login server and its API, off the event loop."""

import math
from functools import partial

from capport.core.client import Client, ClientId
from capport.core.session import Session
from capport.gate import Gate
from capport.web.work_thread import WorkThread


class NoMacError(OSError):
    """The client has a MAC, but it is not known yet: its session would be for its address."""

    def __init__(self, client: Client) -> None:
        super().__init__(
            f"{client.address} is on the link, but its MAC is not known yet; try again"
        )


class Grants:
    """The sessions that the gate keeps. Call every method on the event loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        # Two threads, so that no revocation waits behind a grant that waits for a lock. A late
        # revocation is better than none, so its patience has no end.
        self._granting = WorkThread("portal-grants")
        self._revoking = WorkThread("portal-revocations", patience=math.inf)

    def find(self, client: Client | ClientId) -> Session | None:
        """The open session of a client, or the one under an id. It does not ask the policy."""
        ids = client.ids if isinstance(client, Client) else (client,)
        return self._gate.store.find(ids, self._gate.now())

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
        """Opens or renews a session of `lifetime` seconds (None: the policy's lifetime).

        The session is filed under the id of a Client, or under the id given. On return the session
        is durable, and in force as `Gate.grant` says. Raises, and changes nothing: NoMacError if
        the id would be an address that another device may have next; OSError if the session cannot
        be made durable; LookupError if `renews` is set and the session was revoked before its turn
        came.
        """
        under = client.id if isinstance(client, Client) else client
        if isinstance(client, Client) and self._gate.is_without_mac(client):
            raise NoMacError(client)
        said = {"by": by, "how": how, "name": name}
        grant = partial(self._gate.grant, under, lifetime=lifetime, renews=renews, **said)
        return await self._granting.do(grant)

    async def revoke(self, *clients: ClientId) -> bool:
        """Ends sessions and cuts their connections; returns whether there was a session.

        Raises OSError if an end cannot be made durable; the sessions are over nevertheless.
        """
        return await self._revoking.do(partial(self._gate.revoke, *clients))

    def close(self) -> None:
        """Ends the threads once their work is done."""
        self._granting.close()
        self._revoking.close()
