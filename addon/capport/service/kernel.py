"""The kernel's part of the portal: its set of known clients and the rules around it, followed."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

from capport.core.client import Client, ClientId, Peer
from capport.core.session import Instant
from capport.gate import Gate
from capport.linux.libnftables import RulesError
from capport.router.garden_addresses import GardenFollower
from capport.router.known_clients import KnownSet, Neighbourhood
from capport.router.membership import is_let_through
from capport.router.restorer import RulesKeeper
from capport.service.session_changes import Subscriber

logger = logging.getLogger(__name__)

CARRIED_OUT = 1.0  # seconds in which the kernel has what was granted, or has ended


class Kernel:
    """Follows the gate once its policy has a router; until then it has nothing to do."""

    def __init__(self, gate: Gate, fault: Callable[[str], None]) -> None:
        self._gate = gate
        self._fault = fault
        self._hears: KnownSet | None = None  # as soon as it is made, so that it misses nothing
        self._known: KnownSet | None = None  # once it has started
        self._garden: GardenFollower | None = None
        self._held: dict[ClientId, Instant] = {}  # whom the kernel lacks, and until when: in order
        self._closing = ExitStack()
        self.subscriber = Subscriber(self._changed, self._carry_out)

    async def follow(self) -> None:
        """Brings the kernel up to date with the policy in force."""
        if self._known is None:
            await self._start()
            return
        try:
            await asyncio.to_thread(self._known.reapply)
            if self._garden:
                self._garden.again()
        except (OSError, ValueError) as error:
            logger.error(f"The router's rules do not follow the policy: {error}")

    async def stop(self) -> None:
        """Ends following; the kernel's set stays as it is, and runs out."""
        await asyncio.to_thread(self._closing.close)

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Whether the kernel holds back a client that has a session, which is a fault.

        The rules are in force, and their set lacks what was put into it. That is reported, and
        repaired within the second for which the client is held here too.
        """
        now, session = self._gate.now(), self._gate.session(client)
        if self._known is None or session is None or not self._known.has(client):
            return False  # or it is new where it is, and about to be put in
        if now < session.granted + CARRIED_OUT or now > session.ends - CARRIED_OUT:
            return False
        while self._held and next(iter(self._held.values())) <= now:
            del self._held[next(iter(self._held))]
        if session.client in self._held:
            return True
        sender = client.mac or peer.frame
        if is_let_through(client.address, sender):
            return False
        self._held[session.client] = now + CARRIED_OUT
        self._known.again(session.client)
        what = "the kernel's set lacks a client that has a session; it is put in again"
        self._gate.events.write("fault", client, what=what)
        return True

    async def _start(self) -> None:
        gate = self._gate
        if gate.policy.router is None:
            return
        try:
            neighbours = cast(Neighbourhood, gate.neighbours)
            known = KnownSet(
                lambda: gate.policy, gate.store, neighbours, now=gate.now, told=self._fault
            )
            self._closing.callback(known.close)
            garden = GardenFollower(lambda: gate.policy)
            self._closing.callback(garden.close)
            restorer = RulesKeeper(known, self._fault, garden.again)
            self._closing.callback(restorer.close)
            self._hears = known
            for follower in (known, garden, restorer):
                await asyncio.to_thread(follower.start)
        except OSError as error:
            self._hears = None
            logger.error(f"The router's set of known clients cannot be kept: {error}")
            await asyncio.to_thread(self._closing.close)
            return
        self._known, self._garden = known, garden

    def _changed(self, client: ClientId) -> None:
        if self._hears:
            self._hears.changed(client)

    def _carry_out(self, client: ClientId) -> None:
        if self._known is None:
            return
        try:
            self._known.update([client])
        except RulesError as error:
            logger.error(f"{client}: the router's rules do not follow: {error}")
