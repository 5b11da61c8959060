"""What the proxy needs of the login server, in the same process or in another."""

from collections.abc import Callable
from typing import Protocol

from capport.core.client import Address, Client, Peer
from capport.core.place import Place
from capport.core.policy import Policy
from capport.linux.own_addresses import is_own

type End = tuple[str, int] | tuple[str, int, int, int]
"""An end of a TCP connection, as Python's sockets name it."""


class LoginLinks(Protocol):
    """Leads clients to the login server, and tells it which client a connection is for."""

    def state(self, client: Client, url: str | None) -> str | None:
        """The state in the login URL of `client`, which asked for `url`."""

    def sign(self, asks: Peer) -> str:
        """The value of the field `vouching.HEADER` for a request of `asks` to the login server.

        The addon removes the field from every request of a client, and adds its own value to each
        request that it passes on to one of `policy.login_places`.
        """

    def is_at(self, place: Place | None) -> bool:
        """Whether `place` is this login server, or a proxy in front of it.

        With `return.pem`, another login server signs clients in, and `login_url` points to it.
        """

    def connected(self, here: End, there: End, client: Peer) -> None:
        """The proxy has connected from `here` to `there` on behalf of `client`.

        In a tunnel, the addon cannot add a field to the requests, and the login server sees only
        the proxy at the other end. So if `there` is the login server, note which client it is.
        Raises OSError if the login server cannot be told.
        """

    def disconnected(self, here: End) -> None:
        """The proxy's connection from `here` has ended."""


def leads_to_login(policy: Policy, place: Place | None, elsewhere: Callable[[], bool]) -> bool:
    """Whether `place` is the login server of `policy` (`LoginLinks.is_at`).

    `elsewhere` returns whether an external login server signs clients in nevertheless.
    """
    if policy.login_server is None:
        return False
    if place in policy.login_server.listen:
        return True
    return place in policy.login_places and not elsewhere()


def is_among(places: tuple[Place, ...], port: int, address: Address) -> bool:
    """Whether a connection to `port` of `address` ends at a server that listens at `places`."""
    return any(
        place.port == port and (place.host == address or is_own(address)) for place in places
    )
