"""Makes mitmproxy listen, in a worker, with sockets that the first process has opened.

It relies on `AsyncioServerInstance.listen`, which opens the servers of a mode, and on `_servers`,
which holds them. The sockets of all workers are open in each worker. It accepts from its own, and
from those of another worker while that one is being replaced.
"""

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from mitmproxy import ctx
from mitmproxy.proxy import mode_servers

from capport import lasting
from capport.proxy.internals.listeners import BACKLOG

type Share = Mapping[str, Sequence[int]]
"""Descriptors of listening sockets, by the mode that they are for."""


class SharedSockets:
    """The listening sockets of all workers; `index` is the number of this one."""

    def __init__(self, shares: Sequence[Share], index: int) -> None:
        self._shares, self._wanted = shares, [index]
        self._changing = asyncio.Lock()

    def install(self) -> None:
        """Makes mitmproxy listen with them from now on."""
        shared = self

        async def listen(
            self: mode_servers.AsyncioServerInstance[Any], host: str, port: int
        ) -> list[Any]:
            opened = [await shared._opened(self, index) for index in shared._wanted]
            return [server for servers in opened for server in servers]

        mode_servers.AsyncioServerInstance.listen = listen  # type: ignore[method-assign]

    def listen(self, wanted: Sequence[int]) -> None:
        """Accepts from the sockets of these workers, and from no other's."""
        lasting.start(self._change(list(wanted)))

    async def _change(self, wanted: list[int]) -> None:
        async with self._changing:
            before, self._wanted = self._wanted, wanted
            servers = ctx.master.addons.get("proxyserver").servers
            for instance in servers:
                for index in set(before) - set(wanted):
                    self._close(instance, index)
                for index in set(wanted) - set(before):
                    instance._servers += await self._opened(instance, index)
            await servers.changed.send()

    async def _opened(self, instance: Any, index: int) -> list[Any]:
        """Servers that accept from the sockets of a worker, which stay open when these close."""
        own = self._shares[index].get(instance.mode.full_spec, ())
        sockets = [socket.socket(fileno=os.dup(one)) for one in own]
        return [
            await asyncio.start_server(instance.handle_stream, sock=one, backlog=BACKLOG)
            for one in sockets
        ]

    def _close(self, instance: Any, index: int) -> None:
        own = self._shares[index].get(instance.mode.full_spec, ())
        inodes = {os.fstat(one).st_ino for one in own}
        for server in instance._servers[:]:
            if any(os.fstat(one.fileno()).st_ino in inodes for one in server.sockets):
                instance._servers.remove(server)
                server.close()
