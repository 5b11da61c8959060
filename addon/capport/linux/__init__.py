"""Who a client is: from the address we see to the MAC behind it."""

from collections.abc import Callable
from typing import Protocol

from capport.core.client import Address, Mac, Way


class Neighbours(Protocol):
    """A replica of the kernel's neighbour table."""

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now, None where it is off-link or not known. Never waits."""

    def is_on_link(self, address: Address) -> bool:
        """Whether `address` is on a link of the clients', so that it has a MAC, found or not.

        One system call, which does not wait for anybody; True where the kernel does not say.
        """

    def way(self, address: Address) -> Way | None:
        """How frames go to `address` and come from it; None where by no link that is followed."""

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Has `watcher` called with each address whose MAC changed; returns what ends that."""

    def close(self) -> None:
        """Lets go of the netlink socket."""


class NoNeighbours:
    """Every client is known by its address alone."""

    def find_mac(self, address: Address) -> Mac | None:
        """Always None."""
        return None

    def is_on_link(self, address: Address) -> bool:
        """Always False: no client has a MAC."""
        return False

    def way(self, address: Address) -> Way | None:
        """Always None: no frame is looked at."""
        return None

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Nothing changes."""
        return lambda: None

    def close(self) -> None:
        """Nothing to let go of."""
