"""Starts the process that the workers of `capport run --workers` are forked from.

That process has imported everything already, so a new worker serves after a moment. The first
process cannot fork workers itself, because it has threads.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from capport.service.channel import pair

STARTING = 90.0  # seconds that a new worker may take to be ready

# systemd's messages are for the first process (sd_notify(3)).
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Process:
    """A process that another one has forked for us: its id, and a descriptor that stands for it."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self._descriptor = pid, descriptor

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it has not ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    async def ended(self) -> None:
        """Waits until it has ended."""
        await _readable(self._descriptor)

    def close(self) -> None:
        """Frees the descriptor."""
        os.close(self._descriptor)


class Nursery:
    """The process that workers are forked from, started by `command`, again if it has ended.

    It gets the descriptor of its channel as one more argument, and `setting` as JSON on that
    channel. It inherits the descriptors `inherited` under the same numbers, so they must stay open.
    """

    def __init__(self, command: Sequence[str], setting: object, inherited: Iterable[int]) -> None:
        self._command, self._setting = command, json.dumps(setting).encode()
        self._inherited = tuple(inherited)
        self._forking = asyncio.Lock()
        self._running: tuple[asyncio.subprocess.Process, socket.socket] | None = None

    async def fork(self, *ends: socket.socket) -> Process:
        """Forks a worker, which gets the descriptors of `ends`. Raises OSError."""
        async with self._forking:
            try:
                async with asyncio.timeout(STARTING):
                    _, channel = self._running = self._running or await self._start()
                    socket.send_fds(channel, [b"fork"], [end.fileno() for end in ends])
                    await _readable(channel.fileno())
                    answer, descriptors, _, _ = socket.recv_fds(channel, 100, 1)
                if not answer:
                    raise ConnectionResetError("the process that forks the workers has ended")
            except (ConnectionError, TimeoutError):
                await self.stop()
                raise
            pid, _, why = answer.decode().partition(" ")
            if not descriptors:
                raise OSError(why)  # if there is a worker, it ends, without its channels
            return Process(int(pid), descriptors[0])

    async def stop(self) -> None:
        """Ends it, and with it all workers that are left."""
        if self._running is not None:
            (process, channel), self._running = self._running, None
            channel.close()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _start(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        ours, its = pair()
        ours.setblocking(False)
        with its:
            process = await asyncio.create_subprocess_exec(
                *(*self._command, str(its.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[its.fileno(), *self._inherited],
                env={name: at for name, at in os.environ.items() if name not in _NOT_INHERITED},
                start_new_session=True,  # a terminal's Ctrl-C is for the first process alone
            )
        ours.send(self._setting)
        return process, ours


async def _readable(descriptor: int) -> None:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
