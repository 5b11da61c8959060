"""`capport login`: the embedded login server in a process of its own, beside the proxy's."""

import asyncio
import contextlib
import logging
import signal
from argparse import Namespace
from pathlib import Path

from capport.commands import CommandError, store_url, writable_store
from capport.core.client import Address
from capport.core.policy import Policy
from capport.gate import Gate
from capport.linux.own_addresses import is_own
from capport.policy.watcher import PolicyWatcher
from capport.service.login_server import Embedded
from capport.web.records import records_beside

logger = logging.getLogger(__name__)


def serve(arguments: Namespace) -> None:
    """Serves until SIGINT or SIGTERM, and follows the policy file.

    The sessions and the records are those of the proxy with the same policy and store, so its 511s
    lead here, and who signs in here is known there. Raises CommandError, OSError.
    """
    from capport.policy.policy_file import PolicyError

    watcher = _Watching(Path(arguments.policy))
    try:
        policy = watcher.load()
    except PolicyError as error:
        raise CommandError(str(error)) from None
    if policy.login_server is None:
        raise CommandError(f"{arguments.policy} has no login_server to serve")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(_serve(watcher, policy, store_url(arguments, policy), arguments.socket))


async def _serve(watcher: "_Watching", policy: Policy, url: str, socket: str | None) -> None:
    from capport.linux.neighbours import NetlinkNeighbours

    with contextlib.closing(writable_store(url)) as store:
        router = policy.router
        neighbours = NetlinkNeighbours([router.client_interface] if router else None)
        gate = Gate(policy, store, neighbours=neighbours)
        api = Path(socket) if socket else None
        embedded = Embedded(gate, records_beside(url), socket=api, may_be_proxy=_may_be_proxy)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await embedded.start()
            logger.info(
                "The login server listens on %s", ", ".join(map(str, embedded.server.places))
            )
            watcher.follow(gate, embedded)
            await stop.wait()
        finally:
            await watcher.end()
            await embedded.stop()
            neighbours.close()


def _may_be_proxy(asks: Address, asked_at: Address | None) -> bool:
    """Whether it comes from this machine: the proxy is another process, and a tunnel says nothing.

    What connects to an address of its own does so from that one, but for `connect_addr`.
    """
    return asks == asked_at or (not asks.is_loopback and is_own(asks))


class _Watching:
    """Has the gate decide by the policy that is in force, and the login server listen by it."""

    def __init__(self, path: Path) -> None:
        self._watcher = PolicyWatcher(path, self._changed, lambda error: logger.error("%s", error))
        self._moves: set[asyncio.Task[None]] = set()

    def load(self) -> Policy:
        """The policy to start by. Raises PolicyError."""
        return self._watcher.load()

    def follow(self, gate: Gate, embedded: Embedded) -> None:
        """From here on, each new policy is the gate's."""
        self._gate, self._embedded = gate, embedded
        self._watcher.start()

    async def end(self) -> None:
        """No more policies, and no move is under way."""
        self._watcher.stop()
        await asyncio.gather(*self._moves, return_exceptions=True)

    def _changed(self, policy: Policy) -> None:
        self._gate.policy = policy
        move = asyncio.get_running_loop().create_task(self._move())
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _move(self) -> None:
        try:
            await self._embedded.follow()
        except OSError as error:
            logger.error("The login server does not listen: %s", error)
        else:
            logger.info("Policy in force")
