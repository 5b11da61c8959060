"""The values by which each worker of `capport run --workers` decides, from the first process."""

from dataclasses import dataclass

from capport.core.client import Address
from capport.core.place import Place
from capport.core.policy import Policy


@dataclass(frozen=True, slots=True)
class LoginState:
    """The login server in the first process: where it listens, and what its links need.

    `makes_links` is whether a 511 links to it, or has a link with a state in it.
    """

    secret: bytes
    places: tuple[Place, ...]
    signs_in_elsewhere: bool
    makes_links: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """The policy, the login server, and which login servers answer. It is replaced as a whole."""

    policy: Policy
    login: LoginState | None
    answering: dict[Place, Address]
