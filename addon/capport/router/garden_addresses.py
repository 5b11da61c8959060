"""Keeps the kernel's garden sets at the addresses that the garden's names have, as we resolve them.

For the ports that mitmproxy does not see (`ruletext.garden_names`). A name is asked for as this
machine resolves names; `*.example.org`, which nobody can ask for, is left to `nftables.stars`.
"""

import logging
import socket
import threading
from collections.abc import Callable

from capport.core.client import Address, parse_address
from capport.core.policy import Policy
from capport.linux.libnftables import Nftables, RulesError
from capport.router import nftables, ruleset

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between look-ups: what a name server keeps the clients' own answers for
KEPT = 3  # times as long an address stays when its name has another, or cannot be resolved


def resolve(name: str) -> list[Address]:
    """The addresses of `name` as this machine has them. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(parse_address(str(entry[4][0])) for entry in found))


class GardenFollower:
    """Looks the names up from `start` to `close`, on a thread of its own.

    `policy` gives the policy in force, which is replaced whole; `again` has its names looked up at
    once. Without the table nothing is done.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        *,
        rules: Nftables | None = None,
        resolver: Callable[[str], list[Address]] = resolve,
        every: float = EVERY,
    ) -> None:
        self._policy = policy
        self._rules = rules or Nftables()
        self._resolve = resolver
        self._every = every
        self._failed: set[str] = set()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="garden", daemon=True)

    def start(self) -> None:
        """Looks the names up now, and then every so often."""
        self._thread.start()

    def again(self) -> None:
        """Looks the names up now: the policy is another, or the table."""
        self._wake.set()

    def close(self) -> None:
        """Ends it. It does not wait for a name server that does not answer."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is None:  # it never started, so nobody else lets go of them
            self._rules.close()

    def _follow(self) -> None:
        while not self._closed:
            try:
                self._look_up()
            except Exception:  # the edge: the garden stays as it is, and runs out
                logger.exception("The walled garden's addresses are not up to date")
            self._wake.wait(self._every)
            self._wake.clear()
        self._rules.close()

    def _look_up(self) -> None:
        policy = self._policy()
        for name in {name for name, _ in ruleset.garden_names(policy)}:
            if name.startswith("*.") or self._closed:
                continue
            try:
                addresses = self._resolve(name)
            except OSError as error:
                if name not in self._failed:
                    logger.warning("%s, in the walled garden, has no address: %s", name, error)
                self._failed.add(name)
                continue
            self._failed.discard(name)
            try:
                nftables.update_garden(policy, name, addresses, KEPT * self._every, self._rules)
            except RulesError as error:
                if not error.missing:
                    logger.error("%s, in the walled garden, does not follow: %s", name, error)
