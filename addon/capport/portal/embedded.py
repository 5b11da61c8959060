"""The login server inside the addon: all that the addon needs of it, in one place."""

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path

from capport.core.client import Address, Client
from capport.core.place import Place
from capport.gate import Gate
from capport.portal.asking import sign_client
from capport.portal.backchannel import BackChannel
from capport.portal.gated import GateGrants
from capport.portal.portal import Portal
from capport.portal.records import Records, RecordsError
from capport.portal.server import LoginServer
from capport.portal.states import login_url
from capport.stores import store_path

logger = logging.getLogger(__name__)

TIDY = 3600.0
"""Seconds between two clearings of spent states."""


class Embedded:
    """The login server, its API for others, and the links that lead to it.

    `records` is the file they keep (None: in memory); `socket` is where the API for a login server
    of the operator's own listens, and `api` where it does so with tokens, on loopback.
    """

    def __init__(
        self,
        gate: Gate,
        records: Path | None,
        *,
        socket: Path | None = None,
        api: Place | None = None,
    ) -> None:
        """Opens the records. Raises RecordsError."""
        self._gate = gate
        self._grants = GateGrants(gate)
        self.portal = Portal(self._grants, Records(records))
        self.server = LoginServer(self.portal)
        self.back_channel = BackChannel(self.portal, socket, api) if socket else None
        self._tidying: asyncio.Task[None] | None = None

    def link(self, client: Client, url: str | None) -> str:
        """`Gate.link`: the login URL for `client`, who asked for `url`, with its state."""
        return login_url(self._gate.policy, self.portal.states.mint(client, url))

    def sign(self, address: Address) -> str:
        """The value of `asking.HEADER` on a request to the login server that `address` made.

        The addon takes the field out of what every client sends, wherever it goes, and puts this in
        where it passes a request on to `policy.login_place` or to `login_server.listen`.
        """
        return sign_client(address, self.portal.records.secret, self._gate.now())

    async def start(self) -> None:
        """Listens, in the running event loop. Raises OSError."""
        await self.server.start()
        if self.back_channel is not None:
            self.back_channel.start()
        self._tidying = asyncio.create_task(self._tidy())

    async def follow(self) -> None:
        """To be called when the policy has changed. Raises OSError, as `start`."""
        await self.server.follow()

    async def stop(self) -> None:
        """Ends everything, and lets go of the records."""
        if self._tidying is not None:
            self._tidying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tidying
        await self.server.stop()
        if self.back_channel is not None:
            await self.back_channel.stop()
        self.portal.close()
        self._grants.close()

    async def _tidy(self) -> None:
        clear = self.portal.records.clear_spent
        while True:
            try:
                await self.portal.recorded(partial(clear, self.portal.boot, self._gate.now()))
            except RecordsError as error:
                logger.warning("%s; spent states are cleared later", error)
            await asyncio.sleep(TIDY)


def records_beside(store: str) -> Path | None:
    """Where the login server keeps its records, for a session store: `portal.db` in its folder.

    None (in memory) for `:memory:`. Raises StoreError for a store that is in no folder.
    """
    path = store_path(store)
    return None if path is None else path.with_name("portal.db")
