"""The strict way without sockets: the layers of proxy/, driven by hand, with the real hooks.

The law of the front (test_law.py) is tested against it.
"""

import contextlib
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from mitmproxy import connection, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer

from capport.core.client import Client, Peer
from capport.core.place import Place
from capport.front.conversation import HandOver
from capport.gate import Gate
from capport.proxy.addon import Hooks
from capport.proxy.connections import Connections
from capport.proxy.fail_closed import Guard
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.flows.handshakes import Handshakes
from capport.proxy.flows.shown import Shown
from capport.proxy.front_protocol import Front
from capport.proxy.gate_enforcer import GateEnforcer
from capport.proxy.internals import http1_reader, http2_bounds
from capport.proxy.layers.http1 import RefusalLayer
from capport.proxy.upstream import Dialling
from capport.service.service import Service

PORT = 8080  # of the proxy


def _options() -> Options:
    """mitmproxy's options without a master, because a master takes over all logging."""
    made = Options()
    Proxyserver().load(Loader(cast(Master, SimpleNamespace(options=made))))  # type: ignore[no-untyped-call]
    made.update(connection_strategy="lazy", validate_inbound_headers=True)  # type: ignore[no-untyped-call]
    return made


OPTIONS = _options()
http1_reader.install()
http2_bounds.bound()


class Book:
    """Stands for `Connections`, with one connection in it."""

    def __init__(self, gate: Gate, peer: Peer) -> None:
        self.gate, self.peer = gate, peer
        self.was_reset = False

    def client_of(self, _: connection.Client) -> Client:
        return self.gate.client(self.peer)

    def peer_of(self, _: connection.Client) -> Peer:
        return self.peer

    def logins(self, *_: object) -> None:
        return None

    def answers(self, _: connection.Client) -> int:
        return 0

    def speaks_http1(self, _: connection.Client, *, in_tunnel: bool) -> bool:
        return False

    def abort_connection(self, _: connection.Client, *, reset: bool = False) -> None:
        self.was_reset = self.was_reset or reset

    def is_gone(self, _: connection.Client) -> bool:
        return False

    def nothing(self, *_: object, **__: object) -> None:
        pass

    let_through = answered = lingers = takes_tls = nothing


@dataclass
class Strict:
    """One connection. `passes` is what the layers let through; after that, nothing more is read."""

    gate: Gate
    peer: Peer
    dialled: Place | None
    before: HandOver | None = None  # what came before, if the front handed it over
    sent: bytes = b""
    passes: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.book = Book(self.gate, self.peer)
        book = cast(Connections, self.book)
        service = cast(
            Service, SimpleNamespace(gate=self.gate, login=None, is_held=lambda *_: False)
        )
        marks = FlowMarks(self.gate, book)
        marks.event = self._event  # type: ignore[method-assign]
        marks.fault = self._fault  # type: ignore[method-assign]
        enforcer = GateEnforcer(service, book, marks, Handshakes(self._event, lambda *_: None))
        none = (cast(Dialling, None), cast(Front, None), cast(Shown, None))
        self.hooks = Hooks(service, book, marks, enforcer, *none, Guard())
        self.client = connection.Client(
            peername=(str(self.peer.address), 50000),
            sockname=(str(self.dialled.host), self.dialled.port) if self.dialled else ("::", PORT),
            timestamp_start=0.0,
            state=connection.ConnectionState.OPEN,
            proxy_mode=mode_specs.ProxyMode.parse("transparent" if self.dialled else "regular"),
        )
        context = Context(self.client, OPTIONS)
        self.top: layer.Layer
        if self.dialled:
            context.server.address = str(self.dialled.host), self.dialled.port
            self.top = modes.TransparentProxy(context)
        else:
            self.top = modes.HttpProxy(context)
        self._handle(events.Start())

    def receive(self, *pieces: bytes) -> "Strict":
        """The answer to these segments, without what comes after the end."""
        for piece in pieces:
            if piece and not self.passes and not self.ended:
                self._handle(events.DataReceived(self.client, piece))
        return self

    def _handle(self, first: events.Event) -> None:
        waiting = [first]
        while waiting:
            for command in self.top.handle_event(waiting.pop(0)):
                if self.passes:
                    return
                if isinstance(command, commands.SendData):
                    assert command.connection is self.client
                    self.sent += command.data
                elif isinstance(command, commands.CloseConnection | commands.RequestWakeup):
                    self.ended = True  # or it lingers, which drops what comes
                elif isinstance(command, commands.OpenConnection):
                    self.passes.append(f"to {command.connection.address}")
                elif isinstance(command, commands.StartHook):
                    self._hook(command)
                    if command.blocking:
                        waiting.append(events.HookCompleted(command))

    def _hook(self, hook: commands.StartHook) -> None:
        if hook.name.startswith("tls_"):
            self.passes.append("to mitmproxy's TLS")
        elif isinstance(hook, layer.NextLayerHook):
            self._next_layer(hook.data)
        elif call := getattr(self.hooks, hook.name, None):
            call(*hook.args())

    def _next_layer(self, asked: layer.NextLayer) -> None:
        in_tunnel = any(isinstance(it, HttpLayer) for it in asked.context.layers)
        if self.before and self.before.answers and bool(self.before.connect) == in_tunnel:
            asked.layer = RefusalLayer(asked.context, self.hooks.enforcer)
            asked.layer.answers = self.before.answers
            return
        with contextlib.suppress(exceptions.AddonHalt):
            self.hooks.next_layer(asked)
            if asked.layer is None:
                self.passes.append("to mitmproxy's own layers")

    def _event(self, event: str, client: Client | None = None, **fields: Any) -> None:
        shown = {name: value for name, value in fields.items() if value is not None}
        self.reports.append({"event": event, "client": client, **shown})

    def _fault(self, where: str) -> None:
        raise AssertionError(f"a fault in {where}")


_DATE = re.compile(rb"\r\nDate: [^\r]+")


def undated(data: bytes) -> bytes:
    """`data` without the Date fields in it."""
    return _DATE.sub(b"", data)
