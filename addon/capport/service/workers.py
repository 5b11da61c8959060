"""Starts the workers of `capport run --workers`, and replaces each that dies or does not answer.

The first process opens the listening sockets of all workers, and keeps them. So when a worker ends,
nobody is refused a connection: another one accepts from its sockets until its replacement is ready.
A worker that does not answer is killed first, which cuts the connections that it has.

A worker reads strangers' bytes, and one of them may have taken it over. So whatever it sends is
checked, and a worker that sends anything else is killed and replaced.
"""

import asyncio
import itertools
import logging
import math
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from capport.core.client import (
    Address,
    Client,
    ClientId,
    Peer,
    parse_address,
    parse_frame,
    parse_mac,
)
from capport.lasting import cancel_all, keep, start
from capport.service.channel import Channel, ChannelMessage, pair
from capport.service.login_links import End
from capport.service.nursery import STARTING, Nursery, Process
from capport.service.service import Service
from capport.service.shared_state import Shared

logger = logging.getLogger(__name__)

SILENCE = 2.0  # seconds without a sign of life after which a worker is replaced
STOPPING = 5.0  # seconds that a worker may take to end
AGAIN = 10.0  # seconds before a worker that was never ready is started again, at most
LOOK = 0.1  # seconds between two looks at the workers
LINGER = 30.0  # seconds for the login server to accept a connection that has ended meanwhile
AT_ONCE = 100  # events of one worker that are read before the event loop does something else
WAITING = 100  # times as many messages: more than can wait in a channel
LONGEST = 100  # characters of an address or a MAC
MOST = 100_000  # connections of one worker


class Worker:
    """One worker, from its start to its end."""

    def __init__(self, index: int, process: Process, channel: Channel, events: Channel) -> None:
        self.index, self.process = index, process
        self.channel, self.events = channel, events
        self.why = "it has ended"  # why it is replaced
        self.is_ready = False
        self.heard = time.monotonic()
        self.unknown = 0  # unknown clients that have a connection to it
        self.shared: bytes | None = None  # what it decides by
        self.listens: list[int] = []  # the workers whose sockets it accepts from
        self.dialled: dict[End, Peer] = {}  # the clients of its connections to the login server

    def is_silent(self) -> bool:
        """Whether it has not answered for too long."""
        return time.monotonic() - self.heard > (SILENCE if self.is_ready else STARTING)


class Workers:
    """As many workers as `count`; it implements `OpenConnections` for them."""

    def __init__(self, service: Service, nursery: Nursery, count: int) -> None:
        self._service, self._nursery = service, nursery
        self._vouched = service.vouched
        self._vouched.read_notes = self._read_channels
        self._workers: list[Worker | None] = [None] * count
        self._starts: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._shared: tuple[Shared, bytes] | None = None

    async def start(self) -> None:
        """Starts every worker. Raises OSError if one is not ready the first time."""
        loop = asyncio.get_running_loop()
        self._starts = [loop.create_future() for _ in self._workers]
        for index in range(len(self._workers)):
            start(self._keep(index), self._tasks)
        keep("The look at the workers", self._look, self._tasks)
        await asyncio.gather(*self._starts)

    async def stop(self) -> None:
        """Ends every worker."""
        await cancel_all(self._tasks)
        try:
            await asyncio.gather(*(self._end(worker) for worker in self._workers if worker))
        finally:
            await self._nursery.stop()

    def recheck(self, ids: Iterable[ClientId]) -> None:
        """Does nothing, because each worker follows the sessions by itself."""

    def recheck_all(self) -> None:
        """Sends the workers the policy, and everything else by which they decide from now on."""
        self._share()

    def drop(self, client: Client) -> None:
        """Ends every connection of `client`, which may have addresses that other workers have."""
        for worker in filter(None, self._workers):
            worker.channel.send("drop", str(client.address), client.mac, client.astray)

    @property
    def unknown(self) -> int:
        """How many unknown clients have a connection."""
        return sum(worker.unknown for worker in self._workers if worker)

    # --- processes -------------------------------------------------------------------------------

    async def _keep(self, index: int) -> None:
        """Starts a worker, and a new one each time that it has ended.

        Returns only if the first one has not become ready.
        """
        pause = 0.0
        while True:
            worker, why = None, ""
            try:
                worker = self._workers[index] = await self._spawn(index)
                await worker.process.ended()
            except Exception as error:  # the edge; mostly OSError: no descriptor, no memory
                why = str(error) if isinstance(error, OSError) else repr(error)
            self._workers[index] = None
            if worker is not None:
                worker.process.signal(signal.SIGKILL)
                self._forget(worker)
                why = why or worker.why
            if not self._starts[index].done():
                self._starts[index].set_exception(OSError(f"worker {index} cannot start: {why}"))
                return
            logger.error(f"Worker {index}: {why}; another one is started")
            self._service.gate.events.write("fault", what=f"a worker is replaced: {why}")
            self._assign()
            pause = 0.0 if worker and worker.is_ready else min(AGAIN, 2 * pause + 0.5)
            await asyncio.sleep(pause)

    async def _spawn(self, index: int) -> Worker:
        with ExitStack() as on_error:
            (ours, its), (our_events, its_events) = pairs = pair(), pair()
            for end in itertools.chain(*pairs):
                on_error.callback(end.close)
            process = await self._nursery.fork(its, its_events)
            on_error.pop_all()
        its.close()
        its_events.close()
        worker = Worker(index, process, Channel(ours), Channel(our_events))
        _, worker.shared = self._current()
        if not worker.channel.send("start", index, pickled=worker.shared):
            worker.why = "it could not be sent the policy"  # no descriptor is left, or it has ended
            process.signal(signal.SIGKILL)
        for channel in (worker.channel, worker.events):
            asyncio.get_running_loop().add_reader(channel.fileno(), self._read, worker, channel)
        return worker

    async def _end(self, worker: Worker) -> None:
        worker.process.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOPPING):
                await worker.process.ended()
        except TimeoutError:
            worker.process.signal(signal.SIGKILL)
            await worker.process.ended()
        self._workers[worker.index] = None
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """Reads what an ended worker has still sent, and forgets it."""
        for channel in (worker.channel, worker.events):
            self._read_all(worker, channel)
            self._close(channel)
        worker.process.close()
        for end in tuple(worker.dialled):
            self._hung_up(worker, end)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._read_channels()  # first: if this process was stopped, signs of life wait
            for index, worker in enumerate(self._workers):
                if worker and worker.is_silent():
                    logger.error(f"Worker {index} does not answer; it is killed")
                    worker.process.signal(signal.SIGKILL)
                    worker.heard = math.inf
            self._share()

    # --- to the workers --------------------------------------------------------------------------

    def _current(self) -> tuple[Shared, bytes]:
        shared = self._service.shared()
        if self._shared is None or shared != self._shared[0]:
            self._shared = shared, pickle.dumps(shared)
        return self._shared

    def _share(self) -> None:
        _, pickled = self._current()
        for worker in self._workers:
            if (
                worker
                and worker.shared is not pickled
                and worker.channel.send("use", pickled=pickled)
            ):
                worker.shared = pickled

    def _assign(self) -> None:
        """Makes each worker accept from its own sockets; if it is not ready, the next one does."""
        ready = [worker for worker in self._workers if worker and worker.is_ready]
        count, listens = len(self._workers), defaultdict[Worker, list[int]](list)
        for index, started in enumerate(self._starts):
            # Otherwise its clients wait in the kernel's queue until it serves for the first time.
            if ready and started.done():
                by = min(ready, key=lambda worker: (worker.index - index) % count)
                listens[by].append(index)
        for worker, wanted in listens.items():
            if wanted != worker.listens and worker.channel.send("listen", wanted):
                worker.listens = wanted

    # --- from the workers ------------------------------------------------------------------------

    def _read_channels(self) -> None:
        """Reads all that the workers have sent, but their events."""
        for worker in filter(None, self._workers):
            self._read_all(worker, worker.channel)

    def _read_all(self, worker: Worker, channel: Channel) -> None:
        """Reads the messages that are here; not without end, if the worker sends all the time."""
        for _ in range(WAITING):
            if not self._read(worker, channel):
                return

    def _read(self, worker: Worker, channel: Channel) -> int:
        """Reads the messages that are here, but at most `AT_ONCE`; returns how many."""
        count = 0
        try:
            for message in itertools.islice(channel.messages(), AT_ONCE):
                count += 1
                self._take(worker, message)
        except Exception:  # the edge: whatever it is that the worker sent, it must not go on
            logger.exception(f"Worker {worker.index} sent what no worker sends; it is killed")
            worker.why = "it sent what no worker sends"
            worker.process.signal(signal.SIGKILL)
            self._close(worker.channel)
            self._close(worker.events)
        if channel.is_closed:
            self._close(channel)
        return count

    @staticmethod
    def _close(channel: Channel) -> None:
        if channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(channel.fileno())
        channel.close()

    def _take(self, worker: Worker, message: ChannelMessage) -> None:
        match message:
            case ["alive", int(unknown), dict(counts)] if 0 <= unknown <= MOST:
                worker.heard, worker.unknown = time.monotonic(), unknown
                self._service.gate.metrics.merge(counts)
            case ["event", dict(event)]:
                self._service.gate.events.merge(event)
            case ["connected", [str(address), int(port)], str(at), None | str() as frame]:
                _address(address)
                if len(worker.dialled) >= MOST:
                    raise ValueError("no worker has so many connections")
                peer = worker.dialled[address, port] = _peer(at, frame)
                self._vouched.connected((address, port), peer)
            case ["disconnected", [str(address), int(port)]]:
                self._hung_up(worker, (address, port))
            case ["drop", str(at), None | str() as mac, bool(astray), float(seconds)]:
                client = Client(_address(at), None if mac is None else parse_mac(mac), astray)
                if (limit := self._service.gate.policy.limits.drop_after) is not None:
                    self._service.drop(client, min(seconds, limit.per))
            case ["reached", str(at), None | str() as frame]:
                peer = _peer(at, frame)
                self._service.is_held(peer, self._service.gate.client(peer))
            case ["ready"]:
                self._ready(worker)
            case _:
                raise ValueError(f"{message[0]!r:.50}")

    def _hung_up(self, worker: Worker, end: End) -> None:
        """Forgets which client a connection was for, once the login server must have accepted it.

        Until it has, what is on it would count as this machine's own.
        """
        peer = worker.dialled.pop(end)

        def forget() -> None:
            if self._vouched.find(end) is peer:  # else another connection comes from there now
                self._vouched.hung_up(end)

        asyncio.get_running_loop().call_later(LINGER, forget)

    def _ready(self, worker: Worker) -> None:
        index = worker.index
        worker.is_ready, worker.heard, worker.listens = True, time.monotonic(), [index]
        if not self._starts[index].done():
            self._starts[index].set_result(None)
        self._assign()
        logger.info(f"Worker {index} serves: process {worker.process.pid}")


def _peer(address: str, frame: str | None) -> Peer:
    return Peer(_address(address), None if frame is None else parse_frame(frame))


def _address(text: str) -> Address:
    if len(text) > LONGEST:  # `parse_address` keeps what it has parsed
        raise ValueError("an address cannot be so long")
    return parse_address(text)
