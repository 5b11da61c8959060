"""Asks Linux what the portal needs to know; here, the protocol for finding an address's MAC."""

from collections.abc import Callable
from typing import Protocol

from capport.core.client import Address, Mac, Way


class Neighbours(Protocol):
    """A replica of the kernel's neighbour table."""

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now; None if it is off-link or not known. Never waits."""

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has now."""

    def is_on_link(self, address: Address) -> bool:
        """Whether `address` is on one of the clients' links, so that it has a MAC, known or not.

        It makes one system call, which does not wait. True if the kernel gives no answer.
        """

    def way(self, address: Address) -> Way | None:
        """How frames go to `address` and come from it; None if they use no link of the clients."""

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Calls `watcher` with each address whose MAC changed; returns a function to stop this."""

    def close(self) -> None:
        """Closes the netlink socket."""


class NoNeighbours:
    """The Neighbours of a network where every client is known by its address alone."""

    def find_mac(self, address: Address) -> Mac | None:
        """Always None."""
        return None

    def addresses(self, mac: Mac) -> list[Address]:
        """Always empty."""
        return []

    def is_on_link(self, address: Address) -> bool:
        """Always False: no client has a MAC."""
        return False

    def way(self, address: Address) -> Way | None:
        """Always None: no frame is checked."""
        return None

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Never calls `watcher`: nothing changes."""
        return lambda: None

    def close(self) -> None:
        """Does nothing: there is no socket."""
