"""What the login server asks of the gate: who a client is, and to grant it a session."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from capport.core.client import Address, Client, ClientId, Peer
from capport.core.policy import Policy
from capport.core.session import Instant, Session
from capport.core.standing import Standing


class NoMacError(OSError):
    """The client has a MAC, but it is not known yet: its session would be for its address."""

    def __init__(self, client: Client) -> None:
        super().__init__(
            f"{client.address} is on the link, but its MAC is not known yet; try again"
        )


class Grants(Protocol):
    """The part of the gate that the login server may use.

    Call every method on the event loop: all but the two coroutines answer from memory.
    """

    @property
    def policy(self) -> Policy:
        """The policy in force now. Read it again after each await: it may have changed."""

    def now(self) -> Instant:
        """The boot clock, in which sessions count their time."""

    def client_at(self, address: Address) -> Client:
        """The client that has `address` now, with its MAC if the neighbour table has one."""

    def client_of(self, peer: Peer) -> Client:
        """The client at the other end of a connection, as the kernel's rules identify it."""

    def find(self, client: Client | ClientId) -> Session | None:
        """The open session of a client, or the one under an id. It does not ask the policy."""

    def standing(self, client: Client) -> Standing:
        """How the gate sees `client` now: known, blocked, or neither."""

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
        is durable and every enforcement point has changed. Raises, and changes nothing:
        NoMacError if the id would be an address that another device may have next; OSError if the
        session cannot be made durable; LookupError if `renews` is set and the session was revoked
        before its turn came.
        """

    async def revoke(self, *clients: ClientId) -> bool:
        """Ends sessions and cuts their connections; returns whether there was a session.

        Raises OSError if an end cannot be made durable; the sessions are over nevertheless.
        """

    def sessions(self) -> Iterable[Session]:
        """All sessions, open or over."""

    def sessions_of(self, client: ClientId) -> list[Session]:
        """The open sessions of the device with this address or MAC; for MAC@ADDRESS, that one."""

    def explain(self, client: Client, url: str, method: str = "GET") -> Mapping[str, object]:
        """The verdict on a request, as `capport explain --json` prints it. Raises ValueError."""
