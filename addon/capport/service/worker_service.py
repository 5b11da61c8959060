"""The service of a worker of `capport run --workers`, which gets its policy from the first process.

The worker reads the sessions itself, so a revocation cuts its connections even while the first
process is busy. Everything else comes from the first process: the policy, whether the login server
answers, and the secret of the links. Its events go there. It never touches the kernel's sets.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from capport import clock
from capport.budgets import Budgets
from capport.core.client import Address, Client, ClientId, Peer, parse_address
from capport.core.place import Place
from capport.core.reach import Machine
from capport.events import EventLog
from capport.gate import Gate
from capport.lasting import cancel_all, keep, start
from capport.linux.neighbours import NetlinkNeighbours
from capport.log_limits import Seldom
from capport.metrics import Metrics
from capport.service.channel import Channel, ChannelMessage
from capport.service.enforcement import Enforcement, OpenConnections
from capport.service.login_links import End, is_among, leads_to_login
from capport.service.settings import SettingError
from capport.service.shared_state import LoginState, Shared
from capport.session_events import SessionEvents
from capport.stores.opening import open_store
from capport.web.states import States
from capport.web.vouching import sign_client

logger = logging.getLogger(__name__)

ALIVE = 0.25  # seconds between two signs of life
REACHED = 1.0  # seconds between two reports that the same known client has reached the worker


class WorkerLogin:
    """What the proxy needs of a login server in the first process (`login_server.Embedded`)."""

    def __init__(self, state: LoginState, gate: Gate, channel: Channel) -> None:
        self._gate, self._channel = gate, channel
        self._told: set[End] = set()
        self.replace(state)

    def replace(self, state: LoginState) -> None:
        """Uses the login server's new state."""
        self._state = state
        self._states = States(state.secret, clock.boot_id(), self._gate.now)

    def state(self, client: Client, url: str | None) -> str | None:
        """The state in the login URL of `client`, which asked for `url`; None if it has none."""
        return self._states.link(client, url) if self._state.makes_links else None

    def sign(self, asks: Peer) -> str:
        """The value of the field `vouching.HEADER` for a request of `asks`."""
        return sign_client(asks, self._state.secret, self._gate.now())

    def is_at(self, place: Place | None) -> bool:
        """Whether `place` is the login server, or a proxy in front of it."""
        elsewhere = self._state.signs_in_elsewhere
        return leads_to_login(self._gate.policy, place, lambda: elsewhere)

    def connected(self, here: End, there: End, client: Peer) -> None:
        """Tells the first process which client a connection to it is for, before using it.

        The login server reads this note before it looks at what came on the connection. Raises
        OSError if the note does not get there: without it, the login server would take the client
        for this machine.
        """
        # The policy's places too: a new policy gets here before the login server listens there.
        server = self._gate.policy.login_server
        places = (*self._state.places, *(server.listen if server else ()))
        if not is_among(places, there[1], parse_address(there[0])):
            return
        if not self._channel.send("connected", here[:2], str(client.address), client.frame):
            raise OSError("no message to the login server says which client the connection is for")
        self._told.add(here)

    def disconnected(self, here: End) -> None:
        """Tells the first process that the worker's connection from `here` has ended."""
        if here in self._told:
            self._told.discard(here)
            self._channel.send("disconnected", here[:2])


class WorkerService:
    """Has the part of `Service` that the proxy's hooks use.

    `ended` is called when the first process is gone: then the worker has to end, because nobody
    would tell it of a new policy.
    """

    def __init__(
        self,
        sessions: str,
        shared: Shared,
        channel: Channel,
        events: EventLog,
        *,
        machine: Machine,
        metrics: Metrics,
        budgets: Budgets,
        listen: Callable[[list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        """Opens the sessions. Raises StoreError or OSError, and then leaves nothing open."""
        self._channel, self._listen, self._ended = channel, listen, ended
        self._answering: dict[Place, Address] = {}
        self._reported = Seldom(REACHED)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.login: WorkerLogin | None = None
        with ExitStack() as opened:
            opened.callback(events.close)
            store = open_store(sessions, start_closed=True, follows=True)
            opened.callback(store.close)
            neighbours = NetlinkNeighbours(shared.policy.client_interfaces)
            self._neighbours = neighbours
            opened.callback(neighbours.close)
            self.gate = Gate(
                shared.policy,
                store,
                machine=machine,
                neighbours=neighbours,
                events=events,
                state=self._state,
                answering=self._answering,
                drop=self._drop,
                metrics=metrics,
                budgets=budgets,
            )
            # The first process writes the events of sessions.
            self._enforcement = Enforcement(SessionEvents(store, EventLog, self.gate.now))
            self._use(shared)
            self._opened = opened.pop_all()

    async def start(self, connections: OpenConnections | None = None) -> None:
        """Starts to follow the sessions and the first process."""
        self._enforcement.connections = connections
        self.gate.store.watch(self._enforcement.changed)
        self.gate.neighbours.watch(lambda at: self._enforcement.recheck(ClientId(str(at))))
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._read)
        keep("The check which sessions are over", self._enforcement.follow, self._tasks)
        start(self._report_alive(), self._tasks)
        self._channel.send("ready")

    async def stop(self) -> None:
        """Ends everything."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        await cancel_all(self._tasks)
        self._opened.close()

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Reports that a known client has reached the worker; the worker itself holds nobody.

        If the kernel should have let the client through, the first process repairs its sets
        (`Kernel.is_held`). Until then, the worker relays for the client.
        """
        if self._reported.is_due(self.gate.now(), client.id):
            self._channel.send("reached", str(peer.address), peer.frame)
        return False

    def follow_policy_file(self, path: Path | None) -> NoReturn:
        """Raises SettingError: only the first process follows the file."""
        raise SettingError("portal_policy: a worker follows the first process")

    def write_events_to(self, path: Path | None) -> NoReturn:
        """Raises SettingError: only the first process writes events."""
        raise SettingError("portal_events: a worker follows the first process")

    def watch(self, client: ClientId) -> NoReturn:
        """Raises SettingError: nobody can give a worker commands."""
        raise SettingError("a worker has no commands")

    unwatch = watch

    def _use(self, shared: Shared) -> None:
        before, self.gate.policy = self.gate.policy, shared.policy
        self._neighbours.use(shared.policy.client_interfaces)
        self._answering.clear()
        self._answering.update(shared.answering)
        if shared.login is None:
            self.login = None
        elif self.login is None:
            self.login = WorkerLogin(shared.login, self.gate, self._channel)
        else:
            self.login.replace(shared.login)
        if self._enforcement.connections and shared.policy is not before:
            self._enforcement.connections.recheck_all()

    def _drop(self, client: Client, seconds: float) -> None:
        """Asks the first process to end the client's connections to all workers."""
        self._channel.send("drop", str(client.address), client.mac, client.astray, seconds)

    def _state(self, client: Client, url: str | None) -> str | None:
        return self.login.state(client, url) if self.login else None

    def _read(self) -> None:
        try:
            for message in self._channel.messages():
                self._take(message)
        except Exception:  # the edge: with an old policy it might admit an unknown client
            logger.exception("Cannot follow what the first process has sent; the worker ends")
            self._ended()
        if self._channel.is_closed:
            self._ended()

    def _take(self, message: ChannelMessage) -> None:
        match message:
            case ["use", Shared() as shared]:
                self._use(shared)
            case ["listen", list(indices)]:
                self._listen(indices)
            case ["drop", str(address), mac, bool(astray)]:
                if self._enforcement.connections:
                    self._enforcement.connections.drop(Client(parse_address(address), mac, astray))
            case _:
                raise ValueError(f"the first process sent {message[0]!r}")

    async def _report_alive(self) -> None:
        while True:
            self._channel.send("alive", self._enforcement.unknown(), self.gate.metrics.take())
            await asyncio.sleep(ALIVE)
