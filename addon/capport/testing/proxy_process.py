"""The process of a portal in tests: the real portal in a real mitmproxy, steered by `Portal`.

It is a process of its own, so that nothing that an app's tests do to Python (a frozen clock, closed
sockets, another event loop) reaches the proxy. It ends when its parent closes the connection.
"""

import asyncio
import json
import re
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

from mitmproxy import connection

from capport.core.client import Address, ClientId, parse_address, parse_client_id
from capport.core.place import Host, Place
from capport.core.policy import Connect, Policy
from capport.linux.own_addresses import source_for
from capport.policy.policy_file import PolicyError
from capport.proxy.addon import CaptivePortal, Hooks
from capport.proxy.gate_enforcer import GateEnforcer
from capport.proxy.internals.addons import put_where_scripts_stand
from capport.proxy.processes.appliance import assembled
from capport.proxy.resolver import SystemResolver
from capport.proxy.upstream import Dialling
from capport.service.settings import SettingError
from capport.testing.authority import Authority
from capport.testing.kinds import kind_named
from capport.testing.network import CLIENT, LIE, ORIGIN, PORTAL, Entrance, end_all
from capport.testing.origin import Origin, OriginAnswer, serve_sign_in
from capport.testing.resolver_for_clients import ClientsResolver

EXPIRY = 0.01  # seconds until sessions end that `expire` ends


class _OriginResolver(SystemResolver):
    """Resolves every name to the origin, and this machine's own as it does."""

    async def resolve(self, host: Host) -> list[Address]:
        """The addresses of `host`."""
        if isinstance(host, str) and host.rpartition(".")[2] != "localhost":
            return [ORIGIN]
        return await super().resolve(host)


class _Detours(Dialling):
    """Sends connections for the origin and the sign-in page to where these listen."""

    def __init__(
        self,
        enforcer: GateEnforcer,
        resolver: SystemResolver,
        ports: dict[Address, Callable[[int], int]],
    ) -> None:
        super().__init__(enforcer, resolver)
        self._ports = ports

    def dial(self, server: connection.Server, address: Address) -> None:
        """Makes mitmproxy connect to `address`, or to the server that stands for it here."""
        super().dial(server, address)
        assert server.address
        if ports := self._ports.get(address):
            server.address = ("127.0.0.1", ports(server.address[1]))


class _Subject:
    """The running portal, with what its parent may do to it. Each public method is a command."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._files = 0
        self._offline: bool = settings["offline"]
        authority = Authority(folder)
        self._origin = Origin(authority)
        self._namespace: int | None = settings["namespace"]
        host = "127.0.0.1" if self._namespace else settings["listen"][0]
        sign_in_port = serve_sign_in(host, self.grant)
        self._entrance = Entrance(self._namespace) if self._namespace else None
        here = PORTAL if self._entrance else Place(_reachable(host), sign_in_port)
        self._here = f"http://{here}/"
        self._text = settings["policy"]
        events = self._events = folder / "events-0.jsonl"
        policy = self._write_policy(self._text)
        given: dict[str, object] = {
            "confdir": str(folder / "mitmproxy"),
            "mode": ["transparent" if self._entrance else "regular"],
            "listen_host": host,
            "listen_port": settings["listen"][1],
            "ssl_verify_upstream_trusted_ca": str(authority.ca_file) if self._offline else None,
        }
        ours = [
            f"portal_policy={policy}",
            "portal_sessions=:memory:",
            f"portal_events={events}",
        ]
        self._started = asyncio.Event()
        self._master = assembled(
            given, ours, CaptivePortal(), _Running("running", self._is_running)
        )
        if self._entrance:
            # mitmproxy listens by now; our other connections must stay outside the namespace.
            put_where_scripts_stand(_Running("listening", self._entrance.leave))
        self._hooks = cast(Hooks, self._master.addons.get(Hooks.name))
        resolver = _OriginResolver() if self._offline else SystemResolver()
        ports = dict[Address, Callable[[int], int]]()
        ports[PORTAL] = ports[LIE] = lambda dialled: sign_in_port
        if self._offline:
            ports[ORIGIN] = self._origin.port
        self._hooks.dialling = _Detours(self._hooks.enforcer, resolver, ports)
        self._policy: Policy = self._hooks.gate.policy
        local = "::1" if ":" in host else "127.0.0.1"
        self._clients = [str(CLIENT) if self._entrance else local]
        self._use_kind(settings["kind"])
        self._watch()

    async def run(self, commands: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Serves until the parent closes its end."""
        if self._entrance:
            self._entrance.enter()
        serving = asyncio.create_task(self._master.run())
        starting = asyncio.create_task(self._started.wait())
        await asyncio.wait([serving, starting], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
            return
        _send(answers, {"port": self._port(), "login_url": self._hooks.gate.policy.login_url})
        with suppress(ConnectionError):
            while line := await commands.readline():
                _send(answers, await self._carry_out(json.loads(line)))
        if self._namespace:  # its way out ends here; and the parent may have been killed
            await asyncio.to_thread(end_all, self._namespace)
        self._master.shutdown()
        await serving

    async def reset(self, kind: str, policy: str) -> None:
        """Forgets every session, answer and event; another kind and policy are in force."""
        gate = self._hooks.gate
        await self.revoke()  # the events of that belong to what was before
        gate.forget_counts()
        self._origin.answers.clear()
        if policy != self._text:
            self._hooks.service.follow_policy_file(self._write_policy(policy))
            self._policy, self._text = gate.policy, policy
        self._use_kind(kind)
        self._files += 1
        before, self._events = self._events, self._folder / f"events-{self._files}.jsonl"
        await self._write_events()
        self._watch()
        before.unlink()

    async def grant(self, clients: Collection[str] = (), seconds: float | None = None) -> None:
        """Opens a session for each of these clients; by default for those of this machine."""
        chosen = clients or self._clients
        with self._changes() as reported:
            for client in chosen:
                self._hooks.gate.grant(parse_client_id(client), lifetime=seconds, by="test")
            await reported(len(chosen))
        self._network()

    async def revoke(self) -> None:
        """Ends every session."""
        store = self._hooks.gate.store
        with self._changes() as reported:
            ended = [store.revoke(session.client) for session in store.sessions()]
            await reported(len(ended))
        self._network()

    async def expire(self) -> None:
        """Lets every session end by time, now."""
        gate = self._hooks.gate
        now = gate.now()
        clients = []
        for session in gate.store.sessions():
            since = now - max(session.granted, session.last_seen)
            gate.store.put(replace(session, idle=since + EXPIRY))
            clients.append(session.client)
        await asyncio.sleep(EXPIRY)
        self._hooks.connections.recheck(clients)
        self._network()

    @contextmanager
    def _changes(self) -> Iterator[Callable[[int], Awaitable[None]]]:
        """Yields a function that waits until all watchers of the store know of that many changes.

        By then, open connections have been checked again, and events have been written.
        """
        loop, known = asyncio.get_running_loop(), asyncio.Queue[ClientId]()

        async def reported(count: int) -> None:
            for _ in range(count):
                await known.get()

        def changed(client: ClientId) -> None:
            loop.call_soon_threadsafe(known.put_nowait, client)

        with ThreadPoolExecutor(1) as thread:  # a watcher that is added on a thread is called last
            stop = thread.submit(self._hooks.gate.store.watch, changed).result()
        try:
            yield reported
        finally:
            stop()

    async def serve(
        self, path: str, body: str, status: int, headers: list[list[str]], hold_after: int | None
    ) -> None:
        """Makes the origin answer this at `path`. `body` is bytes, read as Latin-1."""
        fields = tuple((name, value) for name, value in headers)
        self._origin.answers[path] = OriginAnswer(
            body.encode("latin-1"), status, fields, hold_after
        )

    async def events(self) -> str:
        """Writes every event that is due; returns the file."""
        for _ in range(50):  # a client that has hung up in a handshake was not noticed yet
            if not self._hooks.enforcer.handshakes.pending:
                break
            await asyncio.sleep(0.01)
        await self._write_events()
        return str(self._events)

    async def _carry_out(self, asked: dict[str, Any]) -> dict[str, Any]:
        command: Callable[..., Awaitable[Any]] = getattr(self, asked.pop("do"))
        try:
            return {"result": await command(**asked)}
        except (PolicyError, SettingError, ValueError, OSError) as error:
            return {"error": str(error)}

    def _watch(self) -> None:
        """Watches every client, and writes the event `watched` for the expected ones."""
        self._hooks.gate.events.watched.everybody = True
        for client in self._clients:
            self._hooks.service.watch(parse_client_id(client))

    async def _write_events(self) -> None:
        if writing := self._hooks.service.write_events_to(self._events):
            await writing

    def _write_policy(self, text: str) -> Path:
        has_login = re.search("^login_(url|server):", text, re.MULTILINE)
        file = self._folder / f"policy-{self._files}.yaml"
        file.write_text(text if has_login else f"login_url: {self._here}\n{text}")
        return file

    def _use_kind(self, name: str) -> None:
        gate, self._kind = self._hooks.gate, kind_named(name)
        gate.imitate(self._kind.imitate if self._kind.answer else None)
        gate.policy = self._policy
        if self._kind.tls is not None:
            tls = replace(gate.policy.tls, unknown=self._kind.tls, connect=Connect.ALERT)
            gate.policy = replace(gate.policy, tls=tls)
        self._network()

    def _network(self) -> None:
        """Makes the kernel of the namespace do what the kind says, for the client as it is now."""
        if self._entrance and self._started.is_set():
            vanishes = self._kind.vanishes and not self._is_known()
            self._entrance.redirect(self._port(), tcp=not vanishes)

    def _address_of_names(self) -> IPv4Address | None:
        """The address that the resolver gives for every name; None: the name's own."""
        if self._kind.lies and not self._is_known():
            return LIE
        return ORIGIN if self._offline else None

    def _is_known(self) -> bool:
        gate = self._hooks.gate
        return bool(gate.known(gate.client(str(CLIENT))))

    def _is_running(self) -> None:
        if self._entrance:
            ClientsResolver(self._entrance.resolver, self._address_of_names)
        self._started.set()
        self._network()

    def _port(self) -> int:
        addresses: list[tuple[str, int]] = self._master.addons.get("proxyserver").listen_addrs()
        return addresses[0][1]


class _Running:
    """An addon that calls a function when mitmproxy runs."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name = name
        self.running = then


def _reachable(host: str) -> Address:
    """The address of this machine by which clients find what listens at `host`."""
    address = parse_address(host)
    if not address.is_unspecified:
        return address
    return source_for(ORIGIN) or parse_address("127.0.0.1")


def _send(answers: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")


async def _serve(channel: socket.socket, folder: Path) -> None:
    # A command may have the body that the origin is to send.
    commands, answers = await asyncio.open_connection(sock=channel, limit=1 << 30)
    settings = json.loads(await commands.readline())
    await _Subject(folder, settings).run(commands, answers)


def serve(descriptor: int, folder: str) -> int:
    """Serves until the parent closes the other end of the socket. Returns the exit status."""
    try:
        asyncio.run(_serve(socket.socket(fileno=descriptor), Path(folder)))
    except (OSError, SettingError, PolicyError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the parent may have been killed
    return 0


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1]), sys.argv[2]))
