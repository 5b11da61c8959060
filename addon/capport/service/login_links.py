"""Says which connections lead to the login server, in the same process or in another."""

from collections.abc import Callable

from capport.core.client import Address
from capport.core.place import Place
from capport.core.policy import Policy
from capport.linux.own_addresses import HERE

type End = tuple[str, int] | tuple[str, int, int, int]
"""An end of a TCP connection, as Python's sockets name it."""


def needs_login_server(policy: Policy) -> bool:
    """Whether the policy's 511 links to our login server, or with a state that we must make."""
    return policy.login_server is not None or "{state}" in policy.login_url


def leads_to_login(policy: Policy, place: Place | None, elsewhere: Callable[[], bool]) -> bool:
    """Whether `place` is the login server of `policy`, or a proxy in front of it.

    `elsewhere` returns whether an external login server signs clients in, although the policy has
    the embedded one (there is a `return.pem`). Then `login_url` points to the external one.
    """
    if policy.login_server is None:
        return False
    if place in policy.login_server.listen:
        return True
    return place in policy.login_places and not elsewhere()


def is_among(places: tuple[Place, ...], port: int, address: Address) -> bool:
    """Whether a connection to `port` of `address` ends at a server that listens at `places`."""
    return any(
        place.port == port and (place.host == address or HERE.is_own(address)) for place in places
    )
