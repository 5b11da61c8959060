"""Resolves the policy's names and keeps their addresses in the kernel's sets for them.

These are the walled garden's names with ports that mitmproxy does not see, and the hosts that
require conditions (`ruleset.sets_of_names`). A name is resolved as this machine resolves names.
`*.example.org` cannot be resolved, so the resolver that `nftables.stars` configures adds the
addresses below it.
"""

import logging
import socket
import threading
from collections.abc import Callable

from capport.core.client import Address, parse_address
from capport.core.policy import Policy
from capport.lasting import lasting_on_thread
from capport.linux.libnftables import Nftables, RulesError
from capport.router import nftables, ruleset

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between look-ups; the clients' resolver caches an answer as long
KEPT = 3  # an address stays for 3 * EVERY after the last answer that had it


def resolve(name: str) -> list[Address]:
    """The addresses of `name`, resolved as this machine resolves names. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(parse_address(str(entry[4][0])) for entry in found))


class GardenFollower:
    """Looks the names up from `start` to `close`, on its own thread.

    `policy` returns the policy in force. While our table is not loaded, the answers are discarded.
    """

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self._policy = policy
        self._rules = Nftables()
        self._failed: set[str] = set()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="garden", daemon=True)

    def start(self) -> None:
        """Looks the names up now, and then every minute."""
        self._thread.start()

    def look_up_now(self) -> None:
        """Looks the names up at once, because the policy or the table has changed."""
        self._wake.set()

    def close(self) -> None:
        """Stops. Does not wait for the thread: a name server may not answer."""
        self._closed.set()
        self._wake.set()
        if self._thread.ident is None:  # the thread never started, so it cannot close them
            self._rules.close()

    def _follow(self) -> None:
        lasting_on_thread("Looking up the policy's names", self._look_up_each_minute, self._closed)
        self._rules.close()

    def _look_up_each_minute(self) -> None:
        while not self._closed.is_set():
            self._look_up()
            self._wake.wait(EVERY)
            self._wake.clear()

    def _look_up(self) -> None:
        policy = self._policy()
        for name in {name for name, _ in ruleset.sets_of_names(policy)}:
            if name.startswith("*.") or self._closed.is_set():
                continue
            try:
                addresses = resolve(name)
            except OSError as error:
                if name not in self._failed:
                    logger.warning(f"Cannot resolve {name}, a name in the policy: {error}")
                self._failed.add(name)
                continue
            self._failed.discard(name)
            try:
                nftables.update_names(policy, name, addresses, KEPT * EVERY, self._rules)
            except RulesError as error:
                if not error.missing:
                    logger.error(f"Cannot update the addresses of {name}: {error}")
