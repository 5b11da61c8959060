"""Asks Linux what the portal needs to know; here, what there is to ask about clients' links."""

from collections.abc import Callable

from capport.core.client import Address, Mac, Way


class Neighbours:
    """Which MAC has which address; here nobody has one, so each client is known by its address.

    `NetlinkNeighbours` has what the kernel's neighbour table says.
    """

    def find_mac(self, address: Address) -> Mac | None:
        """The MAC that `address` has now; None if it is off-link or not known. Never waits."""
        return None

    def addresses(self, mac: Mac) -> list[Address]:
        """Every address that `mac` has now."""
        return []

    def items(self) -> list[tuple[Address, Mac]]:
        """Every address and its MAC."""
        return []

    def is_on_link(self, address: Address) -> bool:
        """Whether `address` is on one of the clients' links, so that it has a MAC, known or not."""
        return self.way(address) == Way(address)

    def way(self, address: Address) -> Way | None:
        """How frames go to `address` and come from it; None if they use no link of the clients.

        It makes one system call, which does not wait.
        """
        return None

    def watch(self, watcher: Callable[[Address], None]) -> Callable[[], None]:
        """Calls `watcher` with each address whose MAC changed; returns a function to stop this."""
        return lambda: None

    def close(self) -> None:
        """Closes the netlink socket."""
