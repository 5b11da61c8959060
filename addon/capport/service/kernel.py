"""Keeps the kernel's rules and its sets of known clients as the gate says."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack

from capport.core.bounded_map import BoundedMap
from capport.core.client import Client, ClientId, Peer
from capport.core.session import Instant
from capport.gate import Gate
from capport.linux.libnftables import RulesError
from capport.router.garden_addresses import GardenFollower
from capport.router.known_clients import KnownClients
from capport.router.membership import is_let_through
from capport.router.restorer import Restorer

logger = logging.getLogger(__name__)

CARRIED_OUT = 1.0  # seconds within which a grant, or the end of a session, is in the kernel
HELD = 4096  # clients that are remembered as held up, at most


class Kernel:
    """Makes the kernel follow the gate, once the policy has a `router`; before, it does nothing."""

    def __init__(self, gate: Gate, fault: Callable[[str], None]) -> None:
        self._gate = gate
        self._fault = fault
        self._listener: KnownClients | None = None  # set before it starts: it misses no change
        self._known: KnownClients | None = None  # the same, set after it has started
        self._garden: GardenFollower | None = None
        self._held = BoundedMap[ClientId, Instant](HELD)  # until when each is held
        self._closing = ExitStack()

    async def follow(self) -> None:
        """Brings the kernel up to date with the policy in force."""
        if self._known is None:
            await self._start()
            return
        try:
            await asyncio.to_thread(self._known.reapply)
            if self._garden:
                self._garden.look_up_now()
        except (OSError, ValueError) as error:
            logger.error(f"Cannot load the policy's rules into the kernel: {error}")

    @property
    def works(self) -> bool:
        """Whether the kernel's sets are kept. False also if the policy has no `router`."""
        return self._known is not None and self._known.works

    async def stop(self) -> None:
        """Stops; the kernel's sets stay as they are, and their elements time out."""
        await asyncio.to_thread(self._closing.close)

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Whether the kernel holds up a client although it has a session, which is a fault.

        That is so if our table is loaded, but its sets lack a client that we added. Then this
        method writes an event, makes `KnownClients` add the client again, and returns True for a
        second.
        """
        now, session = self._gate.now(), self._gate.standing(client).open_session
        if self._known is None or session is None:
            return False
        if self._held.get(session.client, now) > now:
            return True
        if not self._known.has(client):
            return False  # a client that we never added is new here, and is added in a moment
        if now < session.granted + CARRIED_OUT or now > session.ends - CARRIED_OUT:
            return False
        sender = client.mac or peer.frame
        if is_let_through(client.address, sender):
            return False
        self._held[session.client] = now + CARRIED_OUT
        self._known.add_again(session.client)
        what = "the kernel's sets have lost a client that has a session; capport adds it again"
        self._gate.events.write("fault", client, what=what)
        return True

    async def drop(self, client: Client, seconds: float) -> None:
        """Makes the kernel drop a client's new connections; if it cannot, only the portal does."""
        if self._known is None:
            return
        try:
            known = self._gate.known(client) is not None
            await asyncio.to_thread(self._known.drop, client, seconds, known=known)
        except RulesError as error:
            logger.error(f"{client}: the kernel cannot drop its connections: {error}")

    def changed(self, client: ClientId) -> None:
        """Makes the sets follow a session that any process has changed; does not wait."""
        if self._listener:
            self._listener.changed(client)

    def carry_out(self, client: ClientId) -> None:
        """Puts a session that this process has changed into the sets, and waits for the kernel.

        Raises StoreError if they have no room for the client. Logs any other error of the kernel.
        """
        if self._known is None:
            return
        try:
            self._known.update([client])
        except RulesError as error:
            logger.error(f"{client}: cannot update the kernel's sets: {error}")

    async def _start(self) -> None:
        gate = self._gate
        if gate.policy.router is None:
            return
        try:
            known = KnownClients(
                lambda: gate.policy, gate.store, gate.neighbours, now=gate.now, report=self._fault
            )
            self._closing.callback(known.close)
            garden = GardenFollower(lambda: gate.policy)
            self._closing.callback(garden.close)
            restorer = Restorer(known, self._fault, garden.look_up_now)
            self._closing.callback(restorer.close)
            self._listener = known
            for follower in (known, garden, restorer):
                await asyncio.to_thread(follower.start)
        except OSError as error:
            self._listener = None
            logger.error(f"Cannot keep the kernel's set of known clients: {error}")
            await asyncio.to_thread(self._closing.close)
            return
        self._known, self._garden = known, garden
