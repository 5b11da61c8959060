"""What the login server asks of the gate: who a client is, and to let it on."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from capport.core.client import Address, Client, ClientId, Peer
from capport.core.policy import Policy
from capport.core.session import Instant, Session
from capport.core.standing import Standing


class NoMacError(OSError):
    """A client has a MAC that is not known now, so that its session would be for its address."""

    def __init__(self, client: Client) -> None:
        super().__init__(
            f"{client.address} is on the link, and its MAC is not known yet; ask again"
        )


class Grants(Protocol):
    """The gate, as far as the login server may know it.

    Every method but the two coroutines answers from memory and is asked on the event loop.
    """

    @property
    def policy(self) -> Policy:
        """The policy in force now; never kept across an await."""

    def now(self) -> Instant:
        """The boot clock that sessions are counted by."""

    def client_at(self, address: Address) -> Client:
        """The client that has `address` now, with its MAC where the neighbour table has one."""

    def client_of(self, peer: Peer) -> Client:
        """The client at the other end of a connection, as the kernel's rules have it."""

    def find(self, client: Client | ClientId) -> Session | None:
        """The open session of `client`'s, or under an id alone. The policy is not asked here."""

    def standing(self, client: Client) -> Standing:
        """How `client` stands with the gate now."""

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
        """Opens or renews a session of `lifetime` seconds (None: as the policy has it).

        A Client is there now, and filed under its own id: NoMacError where that would be an address
        that another device may have next. On return the session is durable and every enforcement
        point has changed. Raises OSError, and changes nothing, where it cannot be made durable;
        LookupError where it `renews` a session that was revoked before its turn came.
        """

    async def revoke(self, *clients: ClientId) -> bool:
        """Ends sessions and cuts what they had open; whether there was one.

        Raises OSError where one is not durable; each is over all the same.
        """

    def sessions(self) -> Iterable[Session]:
        """Each session, open or over."""

    def sessions_of(self, client: ClientId) -> list[Session]:
        """Each open session of the device with this address or MAC; of MAC@ADDRESS, that one."""

    def explain(self, client: Client, url: str, method: str = "GET") -> Mapping[str, object]:
        """The verdict on a request as `capport explain --json` has it. Raises ValueError."""
